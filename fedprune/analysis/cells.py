"""Runs -> cells. A *cell* is all runs that differ in nothing but the seed: a row of the table, a line in the figures."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from fedprune.analysis.tables import TEST, TEST_SD
from fedprune.identity import VOLATILE

NOT_IDENTIFYING = {"run", "status", "reason", "seed", "round"}

# A run that was resumed with other workers stays in its cell: these tell cells apart only where nothing else does.
CIRCUMSTANCES = {*VOLATILE, "data.root"}

STATUSES = ("done", "unfinished", "failed", "skipped")

# Column of the table: (metric, factor to the unit).
COLUMNS = {
    TEST: ("test/accuracy", 100),
    "val accuracy (%)": ("val/accuracy", 100),
    "client accuracy (%)": ("client/accuracy_mean", 100),
    "client p10 (%)": ("client/accuracy_p10", 100),
    "density (%)": ("density/weights", 100),
    "sent up (MB)": ("total/up_bytes", 1e-6),
    "sent down (MB)": ("total/down_bytes", 1e-6),
    "training (GFLOPs)": ("total/flops", 1e-9),
    "time (s)": ("time/total_s", 1),
}


def levels(rounds: pd.DataFrame) -> pd.DataFrame:
    """Of each run and each number of prune events done, the last round that was evaluated on test data.

    This is accuracy as a function of density, the lottery-ticket curve: level 0 is the dense network, and an iterative run
    has a level per prune event. A level that ended without an evaluation has no row.
    """
    if "test/accuracy" not in rounds:
        return rounds.iloc[:0]
    evaluated = rounds[rounds["test/accuracy"].notna()]
    return evaluated.drop_duplicates(["run", "prune/events"], keep="last").reset_index(drop=True)


def varying(frame: pd.DataFrame) -> list[str]:
    """The identifying columns (name, axes, density, swept keys; never the seed) that take more than one value.

    They tell cells apart: the first columns of the table, the labels of the legends. Columns of mere circumstance (executor,
    logger, ...) are left out, unless two runs would then be one and the same.
    """
    runs = frame.drop_duplicates("run")
    # nunique ignores a missing density, which is that of a job that failed before it had a plan.
    several = [c for c in runs if c not in NOT_IDENTIFYING and "/" not in c and runs[c].nunique() > 1]
    telling = [column for column in several if not CIRCUMSTANCES & {column, column.split(".")[0]}]
    return several if runs.duplicated([*telling, "seed"]).any() else telling


def table(runs_frame: pd.DataFrame) -> pd.DataFrame:
    """A row per cell: the varying columns (the name where nothing varies), means over the seeds that are done, status, reason.

    The best test accuracy comes first; cells without a finished run are at the bottom, with their reason. `test sd (%)` is
    the sample standard deviation over seeds, NaN with one seed. MB are 10^6 bytes, sent over the whole run.
    """
    by = varying(runs_frame) or ["name"]
    rows = pd.DataFrame([_row(which, cell) for which, cell in _cells(runs_frame, by)])
    rank = rows["status"].map(lambda status: next(i for i, known in enumerate(STATUSES) if known in status))
    order = rows.assign(rank=rank).sort_values(["rank", TEST], ascending=[True, False], kind="stable").index
    return rows.loc[order].reset_index(drop=True)


def _cells(frame: pd.DataFrame, by: list[str]) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    for values, cell in frame.groupby(by, dropna=False, sort=False):
        yield dict(zip(by, values, strict=True)), cell


def _row(which: dict[str, object], cell: pd.DataFrame) -> dict[str, object]:
    done = cell[cell["status"] == "done"]
    means = {column: _measured(done, metric).mean() * factor for column, (metric, factor) in COLUMNS.items()}
    test = {TEST: means.pop(TEST), TEST_SD: _measured(done, "test/accuracy").std(ddof=1) * 100}
    counts = {status: n for status in STATUSES if (n := int((cell["status"] == status).sum()))}
    status = ", ".join(f"{n} {status}" for status, n in counts.items()) if len(counts) > 1 else next(iter(counts))
    reason = "; ".join(dict.fromkeys(reason for reason in cell["reason"] if reason))
    return {**which, "seeds": len(done), **test, **means, "status": status, "reason": reason}


def _measured(runs: pd.DataFrame, metric: str) -> pd.Series:
    return runs[metric].astype(float) if metric in runs else pd.Series(dtype=float)
