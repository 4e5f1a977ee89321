"""The table by cell. A *cell* is all runs that differ in nothing but the seed: a row of the table, a line in the figures."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from fedprune.analysis.metric import LARGER, METRIC, Metric, metric_of
from fedprune.analysis.read import METHOD
from fedprune.identity import VOLATILE

NOT_IDENTIFYING = {"run", "status", "reason", "seed", "round", METRIC, LARGER}

# A run that was resumed with other workers stays in its cell: these keys tell cells apart only where no other key does.
CIRCUMSTANCES = {*VOLATILE, "data.root"}

ORDERED = "ordered by"
"""The key in a table's attrs of the column by which its cells are ordered."""

STATUSES = ("done", "running", "unfinished", "failed", "skipped")

COSTS = {
    "density (%)": ("density/weights", 100),
    "sent up (MB)": ("total/up_bytes", 1e-6),
    "sent down (MB)": ("total/down_bytes", 1e-6),
    "training (GFLOPs)": ("total/flops", 1e-9),
    "time (s)": ("time/total_s", 1),
}
"""The columns of cost, for every task: (metric, factor to the unit)."""


def columns(metric: Metric, frame: pd.DataFrame) -> dict[str, tuple[str, float]]:
    """Return all measured columns of the table: (metric, factor to the unit)."""
    parts = {metric.head(part): (metric.column(part), metric.factor) for part in ("test", "val", "client")}
    tail = {f"client {metric.tail} ({metric.unit})": (metric.tail_column, metric.factor)}
    return parts | metric.measured(frame) | tail | COSTS


def levels(rounds: pd.DataFrame) -> pd.DataFrame:
    """Return the last round that was evaluated on test data of each run and each number of prune events done.

    These are the points of accuracy (or the task's other metric) against density, the lottery-ticket curve: level 0 is the
    dense network, and an iterative run has a level per prune event. A level that ended without an evaluation has no row.
    """
    test = metric_of(rounds).column("test")
    if test not in rounds:
        return rounds.iloc[:0]
    evaluated = rounds[rounds[test].notna()]
    return evaluated.drop_duplicates(["run", "prune/events"], keep="last").reset_index(drop=True)


def varying(frame: pd.DataFrame) -> list[str]:
    """Return the identifying columns (name, axes, density, swept keys; never the seed) that take more than one value.

    They tell cells apart: they are the first columns of the table, and the labels of the legends. Columns of circumstances
    (executor, logger, ...) are left out, unless two runs could then not be told apart.
    """
    runs = frame.drop_duplicates("run")
    # A job that failed before it had a plan has no density; nunique does not count that as a value.
    several = [c for c in runs if c not in NOT_IDENTIFYING and "/" not in c and runs[c].nunique() > 1]
    if {METHOD, "name"} <= {*several} and (runs["name"] == runs[METHOD]).all():  # each run has the name of its method
        several.remove("name")
    telling = [column for column in several if not CIRCUMSTANCES & {column, column.split(".")[0]}]
    return several if runs.duplicated([*telling, "seed"]).any() else telling


def table(runs_frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell: the varying columns (the name where nothing varies), means over the seeds that are done, status,
    reason.

    The best on validation data comes first, or on test data if there are no others; attrs[ORDERED] names the column. Cells
    without a finished run are at the bottom, with their reason. `test sd (%)` is the sample standard deviation over seeds, NaN
    with one seed. MB are 10^6 bytes, sent over the whole run.
    """
    by, metric = varying(runs_frame) or ["name"], metric_of(runs_frame)
    measured = columns(metric, runs_frame)
    rows = pd.DataFrame([_row(which, cell, metric, measured) for which, cell in _cells(runs_frame, by)])
    rank = rows["status"].map(lambda status: next(rank for rank, known in enumerate(STATUSES) if known in status))
    ascending = [True, not metric.larger_is_better]
    by_column = metric.head("val") if rows[metric.head("val")].notna().any() else metric.test
    order = rows.assign(rank=rank).sort_values(["rank", by_column], ascending=ascending, kind="stable").index
    ordered = rows.loc[order].reset_index(drop=True)
    ordered.attrs[ORDERED] = by_column
    return ordered


def _cells(frame: pd.DataFrame, by: list[str]) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    for values, cell in frame.groupby(by, dropna=False, sort=False):
        yield dict(zip(by, values, strict=True)), cell


def _row(
    which: dict[str, object], cell: pd.DataFrame, metric: Metric, measured: dict[str, tuple[str, float]]
) -> dict[str, object]:
    done = cell[cell["status"] == "done"]
    means = {column: _measured(done, name).mean() * factor for column, (name, factor) in measured.items()}
    sd = _measured(done, metric.column("test")).std(ddof=1) * metric.factor
    test = {metric.test: means.pop(metric.test), metric.test_sd: sd}
    reason = "; ".join(dict.fromkeys(reason for reason in cell["reason"] if reason))
    return {**which, "seeds": len(done), **test, **means, "status": _status(cell), "reason": reason}


def _status(cell: pd.DataFrame) -> str:
    """Return the status of all runs, or how many have which: '2 done, 1 failed'."""
    counts = {status: int((cell["status"] == status).sum()) for status in STATUSES}
    texts = {status: f"{count} {status}" for status, count in counts.items() if count}
    return ", ".join(texts.values()) if len(texts) > 1 else next(iter(texts))


def _measured(runs: pd.DataFrame, metric: str) -> pd.Series:
    return runs[metric].astype(float) if metric in runs else pd.Series(dtype=float)
