"""The lines of a figure from the tidy rows of all runs: their points and labels. This module needs pandas only, not matplotlib.

A line is the mean over a cell's seeds. It has a point only where every one of its seeds has a value, so that it never jumps
because a seed joins or leaves.
"""

from __future__ import annotations

import pandas as pd

from fedprune.analysis.metric import metric_of
from fedprune.errors import FedpruneError

LINES_IN_A_PANEL, PANELS = 8, 6  # at most


def evaluated(frame: pd.DataFrame, x: str, by: list[str]) -> pd.DataFrame:
    """Return the rows that have the task's metric on test data and a value of `x`, sorted by `by`, with their labels as `cell`.

    Raises FedpruneError if there is none.
    """
    test = metric_of(frame).column("test")
    for metric in (test, x):
        if metric not in frame or frame[metric].isna().all():
            raise FedpruneError(f"nothing to draw: none of these runs has finished a round with a value of {metric}")
    rows = frame[frame[test].notna() & frame[x].notna()]
    rows = rows.sort_values(by, key=_sortable, kind="stable") if by else rows
    return rows.assign(cell=labels(rows, by))


def complete(rows: pd.DataFrame, point: str) -> pd.DataFrame:
    """Return the rows of those points of each cell at which every one of its seeds has a value."""
    seeds = rows.groupby("cell")["seed"].transform("nunique")
    return rows[rows.groupby(["cell", point])["seed"].transform("nunique") == seeds]


def at_densities(rows: pd.DataFrame, by: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of levels with the density that their cell has reached as `x` (% of weights, three digits); and `by`
    without the density.

    Cells that differ in nothing but the target density become one. Of levels of equal density the last one counts.
    """
    # With personal masks or gates the density of a level differs a little from seed to seed; the mean makes it one point.
    density = rows.groupby(["cell", "prune/events"])["density/weights"].transform("mean") * 100
    rows = rows.assign(x=[float(f"{percent:.3g}") for percent in density])
    by = [column for column in by if column != "density"]
    return rows.assign(cell=labels(rows, by)).drop_duplicates(["cell", "seed", "x"], keep="last"), by


def curve(rows: pd.DataFrame, point: str) -> pd.DataFrame:
    """Return the points of one line: `x`; `mean` and `sd`, the sample standard deviation (NaN with one seed), of the task's
    metric on test data, in its unit; and `events`, the prune events done."""
    points, metric = rows.groupby(point), metric_of(rows)
    test = points[metric.column("test")]
    values = {"x": points["x"].mean(), "mean": test.mean() * metric.factor, "sd": test.std(ddof=1) * metric.factor}
    return pd.DataFrame({**values, "events": points["prune/events"].mean()}).reset_index(drop=True)


def labels(rows: pd.DataFrame, by: list[str]) -> pd.Series:
    """Return the label of each row, such as 'magnitude · init · clients=100'; empty where nothing varies."""
    words = [[_word(column, value) for value in rows[column]] for column in by] or [[""] * len(rows)]
    return pd.Series([" · ".join(label) for label in zip(*words, strict=True)], index=rows.index, dtype=str)


def label_columns(rows: pd.DataFrame, by: list[str]) -> list[str]:
    """Return the columns that suffice as a label: the name alone if no two cells share one, as published methods do not; else
    `by`."""
    return ["name"] if "name" in by and rows["name"].nunique() == rows["cell"].nunique() else by


def panel_column(rows: pd.DataFrame, by: list[str]) -> list[str]:
    """Return the column whose values get a panel each, as a list; [] if all lines fit into one panel.

    Of the columns that make the panels small enough it is the one with fewest values; if none does, the one that comes nearest.
    """
    few = [column for column in by if rows[column].nunique() <= PANELS]
    if len(by) < 2 or rows["cell"].nunique() <= LINES_IN_A_PANEL or not few:
        return []
    lines = {column: int(rows.groupby(column)["cell"].nunique().max()) for column in few}
    return [min(few, key=lambda column: (max(lines[column], LINES_IN_A_PANEL), rows[column].nunique()))]


def _word(column: str, value: object) -> str:
    """Return an option by its name, and a number, a switch or a default as key=value."""
    number = isinstance(value, (int, float))
    text = f"{value:.10g}" if number else str(value)
    return f"{column}={text}" if number or text in {"true", "false", "default", "none", "null"} else text


def _sortable(column: pd.Series) -> pd.Series:
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)
