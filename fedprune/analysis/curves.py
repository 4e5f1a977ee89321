"""The lines of a figure from the tidy rows of all runs: their points and labels. This module needs pandas only, not matplotlib.

A line is the mean over a cell's seeds. It has a point only where every one of its seeds has a value, so that it never jumps
because a seed joins or leaves.
"""

from __future__ import annotations

import re

import pandas as pd

from fedprune.analysis.metric import metric_of
from fedprune.analysis.read import EXPERIMENT, METHOD
from fedprune.errors import FedpruneError

LINES_IN_A_PANEL, PANELS = 8, 6  # at most, where one column can divide them so

MOST_LINES = 24
"""No panel shows more lines than this: of more it shows the best."""

WORDS, MOST_WORDS, LETTERS = 3, 5, 28
"""A label has more words than WORDS only if lines could not be told apart by fewer; from more than MOST_WORDS those are left
out that most lines share. A word of more than LETTERS is cut, if that leaves it different from the others of its column."""

USUAL = "all as in most lines"
"""The label of the line whose words are all left out."""


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


def best_lines(rows: pd.DataFrame, point: str) -> tuple[pd.DataFrame, int]:
    """Return the rows of the MOST_LINES best lines of each panel, by the mean of their last point; and how many are left out.

    rows: with the columns `panel` and `line`.
    """
    metric = metric_of(rows)
    last = rows.sort_values(point).groupby(["panel", "line", "seed"])[metric.column("test")].last().groupby(["panel", "line"])
    ranks = last.mean().groupby("panel").rank(method="first", ascending=not metric.larger_is_better)
    kept = ranks[ranks <= MOST_LINES].index
    return rows[pd.MultiIndex.from_frame(rows[["panel", "line"]]).isin(kept)], len(ranks) - len(kept)


def labels(rows: pd.DataFrame, by: list[str]) -> pd.Series:
    """Return the label of each row, such as 'magnitude · init · clients=100'; empty where nothing varies."""
    columns = [rows[column].map(_words(column, rows[column])) for column in by]
    if not columns:
        return pd.Series("", index=rows.index, dtype=str)
    words = pd.concat(columns, axis=1, keys=by)
    whole, short = _joined(words), _joined(_unusual(words))
    telling = whole.groupby(short).nunique().max() == 1 if len(by) > MOST_WORDS else False
    return short.replace("", USUAL) if telling else whole


def _joined(words: pd.DataFrame) -> pd.Series:
    rows = words.itertuples(index=False, name=None)
    return pd.Series([" · ".join(filter(None, row)) for row in rows], index=words.index, dtype=str)


def _unusual(words: pd.DataFrame) -> pd.DataFrame:
    """Return the words without those that most lines have in a column."""
    usual = words.drop_duplicates().mode().iloc[0] if len(words) else words
    return words.mask(words == usual, "")


def label_columns(rows: pd.DataFrame, by: list[str]) -> list[str]:
    """Return the columns of `by` that make up a label: the name alone if no two cells share one, as published methods do not.

    Else columns that tell no cells apart are left out, the last ones first, until WORDS are left; beside the methods of a
    sweep over them, all of these.
    """
    if "name" in by and rows["name"].nunique() == rows["cell"].nunique():
        return ["name"]
    cells = rows.drop_duplicates("cell")
    columns = [column for column in by if cells[column].nunique(dropna=False) > 1]
    methods = [column for column in (METHOD, EXPERIMENT) if column in columns]
    enough = len(methods) or WORDS
    for column in [column for column in reversed(columns) if column not in methods]:
        fewer = [other for other in columns if other != column]
        if len(columns) > enough and not cells.duplicated(fewer).any():
            columns = fewer
    return columns


def panel_column(rows: pd.DataFrame, by: list[str]) -> list[str]:
    """Return the column whose values get a panel each, as a list; [] if all lines fit into one panel.

    Of the columns that make the panels small enough it is the one with fewest values; if none does, the one that comes nearest,
    if it takes a quarter of the lines away from the fullest panel.
    """
    few = [column for column in by if rows[column].nunique() <= PANELS]
    if len(by) < 2 or rows["cell"].nunique() <= LINES_IN_A_PANEL or not few:
        return []
    lines = {column: int(rows.groupby(column)["cell"].nunique().max()) for column in few}
    best = min(few, key=lambda column: (max(lines[column], LINES_IN_A_PANEL), rows[column].nunique()))
    return [best] if lines[best] <= 0.75 * rows["cell"].nunique() else []


def _words(column: str, values: pd.Series) -> dict[object, str]:
    """Return a word for each value of a column."""
    words = {value: _word(column, value) for value in values.unique()}
    short = {value: _short(word) for value, word in words.items()}
    taken = list(short.values())
    return {value: short[value] if taken.count(short[value]) == 1 else word for value, word in words.items()}


def _word(column: str, value: object) -> str:
    """Return an option by its name, and a number, a switch or a default as key=value."""
    text = f"{value:.10g}" if isinstance(value, (int, float)) else str(value)
    number = re.fullmatch(r"-?[\d.]+(e-?\d+)?", text)
    return f"{column}={text}" if number or text in {"true", "false", "default", "none", "null"} else text


def _short(word: str) -> str:
    """Return a word of at most LETTERS: the last name of a path, of a dotted name, or of the `_target_` of a JSON object."""
    target = re.search(r'"_target_": "[\w.]*?(\w+)"', word) or re.fullmatch(r"(?:\w+\.){2,}([A-Za-z]\w*)", word)
    word = target[1] if target else word.rpartition("/")[2]
    return word if len(word) <= LETTERS else word[: LETTERS - 1] + "…"


def _sortable(column: pd.Series) -> pd.Series:
    return column if pd.api.types.is_numeric_dtype(column) else column.astype(str)
