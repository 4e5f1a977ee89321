"""The table by level: the task's metric at the end of each level, and the round in which its training would have stopped early.

A *level* is the training between two prune events; level 0 is before the first. Levels are joined by the density that they
reach, not by their number: one-shot pruning is at its target in level 1, iterative pruning many levels later. Cells that differ
in nothing but the target density are one cell, as in the figure of accuracy against density.

`gains` compares levels by the differences of equal seeds: by default with the cell's own level 0, the dense network that was
trained for as many rounds as one level. A cell's levels have together been trained for more rounds, so its gain is no gain at
equal cost; for that, compare with a cell that was never pruned and trained for all of them (`against`).
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from fedprune.analysis.cells import levels
from fedprune.analysis.curves import at_densities, evaluated, label_columns, labels, panel_column
from fedprune.analysis.markdown import markdown_lines
from fedprune.analysis.metric import ACCURACY, Metric, metric_of
from fedprune.analysis.verdict import Interval, gain_over, judged
from fedprune.errors import FedpruneError

LEVEL, DENSITY, SEEDS = "level", "weights remaining (%)", "seeds"

LEVEL_0 = "level 0 of the same cell"

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
    """Return the columns that levels.md shows, with the titles of their sections."""
    return {
        metric.test: f"{metric.head('Test')} at the end of each level",
        STOP: "Early-stopping round of each level",
        metric.head("test", AT_STOP): f"{metric.head('Test')} at the early-stopping round",
    }


INTRODUCTION = (
    "Mean ± sample standard deviation over seeds; (n of m) where only n of the m seeds have a value. *Level*: prune events "
    "done before it; several where cells reach the same density in different levels.\n"
)
PAIRED = (
    "Mean difference of equal seeds, and its 95 % interval (Student's). Bold: the interval does not cover 0. Each interval is "
    "taken by itself: of twenty that should cover 0, one does not.\n"
)
EARLY = (
    "The early-stopping round is that of least validation loss among the level's evaluated rounds, counted from the level's "
    "first round = 1 (Frankle & Carbin 2019).\n"
)


def early_stopping(rounds: pd.DataFrame) -> pd.DataFrame:
    """Return the evaluated round of least `val/loss` of each run and level, the first of equals: it tells how fast a run
    learns.

    Columns: run, prune/events, early/round (counted from the level's first round = 1), early/val_accuracy,
    early/test_accuracy (fractions), or the task's other metric. Source: Frankle & Carbin 2019 ("early-stopping iteration").
    Test data have no part in the choice. A level that was never evaluated on validation data has no row; the table is empty if
    every level was evaluated once only. `rounds`: from `analysis.load_rounds`.
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
    """Return a row per density, from dense to sparse, and cell.

    Columns: those of `by` but the density, `level`, `weights remaining (%)`, `seeds` of the cell; then for each measure the
    mean, the sample standard deviation (`... sd`; NaN with one seed) and the number of seeds that have a value (`... n`).
    `level` is text, with commas where the cell reaches one density in several levels. `by`: `analysis.varying(rounds)`. Raises
    FedpruneError where nothing was evaluated.
    """
    ends = levels(rounds).merge(early_stopping(rounds), on=["run", "prune/events"], how="left")
    rows, by = at_densities(evaluated(ends, "density/weights", by), by)
    points = rows.sort_values("x", ascending=False, kind="stable").groupby(["cell", "x"], sort=False)
    first = points[[*by] or ["name"]].first()
    seeds = rows.groupby("cell")["seed"].nunique()
    columns: dict[str, object] = {
        LEVEL: points["prune/events"].agg(_numbers),
        DENSITY: first.index.get_level_values("x"),
        SEEDS: seeds.loc[first.index.get_level_values("cell")].to_numpy(),
    }
    for column, (name, factor) in measures(metric_of(rounds)).items():
        measured = rows.assign(measured=rows[name].astype(float) * factor).groupby(["cell", "x"])["measured"]
        columns |= {column: measured.mean(), f"{column} sd": measured.std(ddof=1), f"{column} n": measured.count()}
    return first.assign(**columns).reset_index(drop=True)


def gains(rounds: pd.DataFrame, by: list[str], against: str | None = None) -> pd.DataFrame:
    """Return a row per density and cell: how much better it is on test data than its reference, by equal seeds.

    Columns: `cell` (its label), `weights remaining (%)`, `gain` (an Interval in the metric's unit, positive where the cell is
    better). against: the label of the cell that is the reference, at the same density, or at its end if it was never pruned;
    None: each cell's own level 0. A reference has no row of its own, and a pair has none that shares fewer than two seeds.
    Raises FedpruneError where nothing was evaluated or no cell has that label.
    """
    rows = _labelled(rounds, by)
    if against is not None and against not in set(rows["cell"]):
        listed = "\n  ".join(rows["cell"].drop_duplicates())
        raise FedpruneError(f"no cell is called '{against}'; choose one of these:\n  {listed}")
    metric = metric_of(rounds)
    better = [
        {"cell": cell, DENSITY: x, "gain": gain_over(_by_seed(of, metric), _reference(rows, of, metric, against))}
        for (cell, x), of in rows.groupby(["cell", "x"], sort=False)
        if against != cell and (against is not None or of["prune/events"].gt(0).all())
    ]
    table = pd.DataFrame(better, columns=["cell", DENSITY, "gain"])
    return table[[gain.n > 1 for gain in table["gain"]]].reset_index(drop=True)


def cells_of(rounds: pd.DataFrame, by: list[str]) -> set[str]:
    """Return the labels that `gains` can compare with."""
    return set(_labelled(rounds, by)["cell"])


def _labelled(rounds: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the ends of all levels, with the label of their cell as `cell`."""
    rows, by = at_densities(evaluated(levels(rounds), "density/weights", by), by)
    return rows.assign(cell=labels(rows, label_columns(rows, by) or ["name"]))


def gains_table(table: pd.DataFrame, against: str | None) -> pd.DataFrame:
    """Return `gains` as numbers for a file: cell, density, against, difference, low, high, seeds, verdict."""
    numbers = [(gain.mean, gain.low, gain.high, gain.n, judged(gain)) for gain in table["gain"]]
    columns = ["difference", "low", "high", "seeds", "verdict"]
    which = table[["cell", DENSITY]].assign(against=against or LEVEL_0)
    return which.join(pd.DataFrame(numbers, columns=columns, index=table.index))


def _by_seed(rows: pd.DataFrame, metric: Metric) -> pd.Series:
    """Return the metric on test data by seed, in its unit, with the sign that makes more better."""
    sign = 1 if metric.larger_is_better else -1
    return rows.set_index("seed")[metric.column("test")].astype(float) * metric.factor * sign


def _reference(rows: pd.DataFrame, level: pd.DataFrame, metric: Metric, against: str | None) -> pd.Series:
    """Return what the level of one cell and density is compared with, by seed; empty where there is none."""
    if against is None:
        own = rows[rows["cell"] == level["cell"].iloc[0]]
        return _by_seed(own[own["prune/events"] == 0], metric)
    other = rows[rows["cell"] == against]
    never_pruned = other["prune/events"].eq(0).all()
    return _by_seed(other if never_pruned else other[other["x"] == level["x"].iloc[0]], metric)


def gains_markdown(table: pd.DataFrame, metric: Metric, against: str | None = None) -> str:
    """Return `gains` as a section of levels.md, with a row per density and a column per cell; '' without any row."""
    if table.empty:
        return ""
    texts = table.assign(text=[_interval(gain, metric) for gain in table["gain"]])
    wide = texts.pivot(index=DENSITY, columns="cell", values="text")[texts["cell"].drop_duplicates()]
    wide = wide.fillna("").sort_index(ascending=False)
    lines = [[f"{density:g}", *wide.loc[density]] for density in wide.index]
    title = f"## Gain in {metric.head('test')} over {against or LEVEL_0}\n"
    return "\n".join([title, PAIRED, markdown_lines([DENSITY, *wide], ["---:"] * (1 + len(wide.columns)), lines)])


def _interval(gain: Interval, metric: Metric) -> str:
    mean, low, high = (f"{value:+.1f}" if metric.percent else f"{value:+.4g}" for value in (gain.mean, gain.low, gain.high))
    text = f"{mean} ({low} to {high})"
    return f"**{text}**" if gain.low > 0 or gain.high < 0 else text


def levels_markdown(table: pd.DataFrame, metric: Metric = ACCURACY) -> str:
    """Return `by_level` as Markdown: a table per measure, with a row per level and a column per cell.

    Cells that are too many for one table get one for each value of one column, as the figures have panels. A measure without
    any value is left out.
    """
    by = list(table.columns[: list(table).index(LEVEL)])
    rows = table.assign(cell=labels(table, by))
    by = label_columns(rows, by)
    split = panel_column(rows, by)
    rows = rows.assign(cell=labels(rows, [column for column in by if column not in split]), panel=labels(rows, split))
    shown = {column: title for column, title in titles(metric).items() if rows[column].notna().any()}
    sections = (_section(rows, column, title, metric) for column, title in shown.items())
    return "\n".join([INTRODUCTION, *[EARLY] * (STOP in shown), *sections])


def _section(rows: pd.DataFrame, column: str, title: str, metric: Metric) -> str:
    lines = [f"## {title}\n"]
    for panel, cells in rows.groupby("panel", sort=False):
        lines += [f"### {panel}\n"] * bool(panel) + [_pivot(cells, column, metric)]
    return "\n".join(lines)


def _pivot(cells: pd.DataFrame, column: str, metric: Metric) -> str:
    """Return a table with a row per density and a column per cell; empty where a cell does not reach that density."""
    by_density = cells.groupby(DENSITY)
    numbers = by_density[LEVEL].agg(lambda levels: _numbers(int(number) for text in levels for number in text.split(", ")))
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
