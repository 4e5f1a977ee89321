"""A row per cell and level: the task's metric at the level's end, and where its training would have stopped early.

A *level* is what a run trains between two prune events; level 0 is before the first. Rows are joined by the density that they
have come to, not by their number: one-shot pruning is at its target in level 1, iterative pruning many levels later. Cells that
differ in nothing but the target density are one cell, as in the figure of accuracy against density.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from fedprune.analysis.cells import levels
from fedprune.analysis.curves import at_densities, evaluated, labels, panel_column, telling
from fedprune.analysis.markdown import markdown_lines
from fedprune.analysis.metric import ACCURACY, Metric, metric_of

LEVEL, DENSITY, SEEDS = "level", "weights remaining (%)", "seeds"

STOP, AT_STOP = "early-stopping round", " at early stopping"


def measures(metric: Metric) -> dict[str, tuple[str, float]]:
    """Return the measured columns of levels.csv: (metric, factor to the unit)."""
    return {
        metric.test: (metric.column("test"), metric.factor),
        STOP: ("early/round", 1),
        metric.head("test", AT_STOP): (f"early/test_{metric.name}", metric.factor),
        metric.head("val", AT_STOP): (f"early/val_{metric.name}", metric.factor),
    }


def titles(metric: Metric) -> dict[str, str]:
    """Return what levels.md shows of them, under these titles."""
    return {
        metric.test: f"{metric.head('Test')} at the end of each level",
        STOP: "Early-stopping round of each level",
        metric.head("test", AT_STOP): f"{metric.head('Test')} at the early-stopping round",
    }


INTRODUCTION = (
    "Mean ± sample standard deviation over seeds; (n of m) where only n of the m seeds have a value. *Level*: prune events "
    "done before it; several where cells come to the same density in different levels.\n"
)
EARLY = (
    "The early-stopping round is that of least validation loss among the level's evaluated rounds, counted from the level's "
    "first round = 1 (Frankle & Carbin 2019).\n"
)


def early_stopping(rounds: pd.DataFrame) -> pd.DataFrame:
    """Of each run and each level, the evaluated round of least `val/loss`, the first of equals: how fast it learns.

    Columns: run, prune/events, early/round (counted from the level's first round = 1), early/val_accuracy,
    early/test_accuracy (fractions), or what else the task is judged by. Frankle & Carbin 2019 ("early-stopping iteration").
    Test data have no part in the choice.
    A level that was never evaluated on validation data has no row; nor has any if each was evaluated once only. `rounds`: from
    `analysis.load_rounds`.
    """
    level, metric = ["run", "prune/events"], metric_of(rounds)
    names = {metric.column(part): f"early/{part}_{metric.name}" for part in ("val", "test")}
    if "val/loss" not in rounds:
        return pd.DataFrame(columns=[*level, "early/round", *names.values()])
    counted = rounds.assign(**{"early/round": rounds["round"] - rounds.groupby(level)["round"].transform("min") + 1})
    judged = counted[counted["val/loss"].notna()].assign(least=lambda rows: rows["val/loss"]).rename(columns=names)
    if judged.groupby(level).size().max() < 2:  # every level was evaluated at its end, and there is nothing to choose
        judged = judged.iloc[:0]
    least = judged.sort_values("least", kind="stable").drop_duplicates(level).sort_index()
    return least.reindex(columns=[*level, "early/round", *names.values()]).reset_index(drop=True)


def by_level(rounds: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """A row per density, from dense to sparse, and cell: the columns of `by` but the density, `level`, `weights remaining (%)`,
    `seeds` of the cell, and of each measure the mean, the sample standard deviation (`... sd`; NaN with one seed) and over how
    many seeds (`... n`). `level` is text, with commas where the cell comes to one density in several levels.

    `by`: `analysis.varying(rounds)`. Raises FedpruneError where nothing was evaluated.
    """
    ends = levels(rounds).merge(early_stopping(rounds), on=["run", "prune/events"], how="left")
    rows, by = at_densities(evaluated(ends, "density/weights", by), by)
    points = rows.sort_values("x", ascending=False, kind="stable").groupby(["cell", "x"], sort=False)
    first = points[[*by] or ["name"]].first()
    of_cell = rows.groupby("cell")["seed"].nunique()
    columns: dict[str, Any] = {
        LEVEL: points["prune/events"].agg(_numbers),
        DENSITY: first.index.get_level_values("x"),
        SEEDS: of_cell.loc[first.index.get_level_values("cell")].to_numpy(),
    }
    for column, (name, factor) in measures(metric_of(rounds)).items():
        measured = rows.assign(measured=rows[name].astype(float) * factor).groupby(["cell", "x"])["measured"]
        columns |= {column: measured.mean(), f"{column} sd": measured.std(ddof=1), f"{column} n": measured.count()}
    return first.assign(**columns).reset_index(drop=True)


def levels_markdown(table: pd.DataFrame, metric: Metric = ACCURACY) -> str:
    """What `by_level` returns for reading: of each measure a table with a row per level and a column per cell.

    Where the cells are too many for one table, there is one for each value of one column, as the figures have panels. A
    measure without any value is left out.
    """
    by = list(table.columns[: list(table).index(LEVEL)])
    rows = table.assign(cell=labels(table, by))
    by = telling(rows, by)
    split = panel_column(rows, by)
    rows = rows.assign(cell=labels(rows, [column for column in by if column not in split]), panel=labels(rows, split))
    shown = {column: title for column, title in titles(metric).items() if rows[column].notna().any()}
    sections = (_section(rows, column, title, metric) for column, title in shown.items())
    return "\n".join([INTRODUCTION, *[EARLY] * (STOP in shown), *sections])


def _section(rows: pd.DataFrame, column: str, title: str, metric: Metric) -> str:
    parts = [f"## {title}\n"]
    for panel, cells in rows.groupby("panel", sort=False):
        parts += [f"### {panel}\n"] * bool(panel) + [_pivot(cells, column, metric)]
    return "\n".join(parts)


def _pivot(cells: pd.DataFrame, column: str, metric: Metric) -> str:
    """A row per density with its levels, a column per cell, texts; empty where a cell does not come to that density."""
    by_density = cells.groupby(DENSITY)
    numbers = by_density[LEVEL].agg(lambda texts: _numbers(int(n) for text in texts for n in text.split(", ")))
    texts = cells.assign(text=_texts(cells, column, metric)).pivot(index=DENSITY, columns="cell", values="text")
    texts = texts[cells["cell"].drop_duplicates()].fillna("").sort_index(ascending=False)
    rows = [[f"{density:g}", numbers[density], *texts.loc[density]] for density in texts.index]
    return markdown_lines([DENSITY, LEVEL, *texts], ["---:"] * (2 + len(texts.columns)), rows)


def _texts(cells: pd.DataFrame, column: str, metric: Metric) -> list[str]:
    of_rounds = ACCURACY if column == STOP else metric  # a round has one digit, as percents have
    measured = zip(cells[column], cells[f"{column} sd"], cells[f"{column} n"], cells[SEEDS], strict=True)
    return [_text(of_rounds, *of_cell) for of_cell in measured]


def _text(metric: Metric, mean: float, sd: float, n: int, seeds: int) -> str:
    return metric.spread(mean, sd) + (f" ({n} of {seeds})" if 0 < n < seeds else "")


def _numbers(events: Iterable[float]) -> str:
    return ", ".join(f"{event:g}" for event in sorted(set(events)))
