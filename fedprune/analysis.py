"""From run folders to one table and its figures; reading the folders is in run_folders.py, drawing in figures.py.

    python -m fedprune.analysis outputs/lth_fedavg

A *cell* is all runs that differ in nothing but the seed: a row of the table, a line in the figures.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import rich.table
from rich.console import Console
from rich.markup import escape

from fedprune import figures
from fedprune.errors import FedpruneError
from fedprune.run_folders import Runs, find_runs, load_rounds, load_runs

__all__ = ["find_runs", "levels", "load_rounds", "load_runs", "report", "show", "table", "varying"]

log = logging.getLogger(__name__)

NOT_IDENTIFYING = {"run", "status", "reason", "seed", "round"}

# These change how a run is carried out or watched, never what comes out. A run that was resumed with other workers stays in
# its cell: such columns tell cells apart only where nothing else does.
CIRCUMSTANCES = ("executor", "logger", "hydra", "force", "dry_run", "profile")

STATUSES = ("done", "unfinished", "failed", "skipped")

TEST, TEST_SD = "test accuracy (%)", "test sd (%)"

# Column of the table: (metric, factor to the unit, digits behind the point; None for three significant digits).
COLUMNS: dict[str, tuple[str, float, int | None]] = {
    TEST: ("test/accuracy", 100, 2),
    "val accuracy (%)": ("val/accuracy", 100, 2),
    "client accuracy (%)": ("client/accuracy_mean", 100, 2),
    "client p10 (%)": ("client/accuracy_p10", 100, 2),
    "density (%)": ("density/weights", 100, None),
    "sent up (MB)": ("total/up_bytes", 1e-6, None),
    "sent down (MB)": ("total/down_bytes", 1e-6, None),
    "training GFLOPs": ("total/flops", 1e-9, None),
    "seconds": ("time/total_s", 1, None),
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
    telling = [column for column in several if column.split(".")[0] not in CIRCUMSTANCES]
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
    done = cell[cell["status"] == "done"].reindex(columns=[*cell, *{metric for metric, _, _ in COLUMNS.values()} - {*cell}])
    means = {column: done[metric].astype(float).mean() * factor for column, (metric, factor, _) in COLUMNS.items()}
    spread = {TEST: means.pop(TEST), TEST_SD: done["test/accuracy"].astype(float).std(ddof=1) * 100}
    counts = {status: n for status in STATUSES if (n := int((cell["status"] == status).sum()))}
    status = ", ".join(f"{n} {status}" for status, n in counts.items()) if len(counts) > 1 else next(iter(counts))
    reason = "; ".join(dict.fromkeys(reason for reason in cell["reason"] if reason))
    return {**which, "seeds": len(done), **spread, **means, "status": status, "reason": reason}


def report(runs: Runs, into: Path) -> pd.DataFrame:
    """Write table.csv, table.md and figures/accuracy_{density,bytes,rounds}.{png,svg} into `into`; return the table.

    Figures show the runs that are done. One that has no data is not drawn, an older one of its name is removed, and the log
    says why. Raises as `load_runs`.
    """
    results = table(load_runs(runs))
    into.mkdir(parents=True, exist_ok=True)
    results.to_csv(into / "table.csv", index=False)
    (into / "table.md").write_text(_markdown(results))
    rounds = load_rounds(runs)
    draw(rounds[rounds["status"] == "done"] if len(rounds) else rounds, into / "figures")
    return results


def draw(rounds: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the three figures of `report` over all cells in `rounds` into `folder`; return the files written."""
    by = varying(rounds) if len(rounds) else []
    kinds = {
        "accuracy_density": lambda: figures.accuracy_density(levels(rounds), by),
        "accuracy_bytes": lambda: figures.accuracy_bytes(rounds, by),
        "accuracy_rounds": lambda: figures.accuracy_rounds(rounds, by),
    }
    written: list[Path] = []
    for name, figure in kinds.items():
        try:
            written += figures.save(figure(), folder / name)
        except FedpruneError as error:
            log.warning("figure %s is left out: %s", name, error)
            for suffix in figures.SUFFIXES:
                (folder / name).with_suffix(suffix).unlink(missing_ok=True)
    return written


def show(results: pd.DataFrame) -> rich.table.Table:
    """The table for a terminal: `rich.print(show(table(load_runs(folder))))`. Columns without any value are left out."""
    filled = [column for column in results if (results[column].notna() & (results[column] != "")).any()]
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for column in filled:
        shown.add_column(escape(column), justify="right" if _is_number(results[column]) else "left", overflow="fold")
    for row in _texts(results[filled]):
        shown.add_row(*map(escape, row))
    return shown


def _markdown(results: pd.DataFrame) -> str:
    rules = ["---:" if _is_number(results[column]) else "---" for column in results]
    lines = [list(results), rules, *_texts(results)]
    return "".join("| " + " | ".join(map(_one_cell, line)) + " |\n" for line in lines)


def _one_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)


def _texts(results: pd.DataFrame) -> list[list[str]]:
    return [
        [_text(value, column) for column, value in zip(results, row, strict=True)] for row in results.itertuples(index=False)
    ]


def _text(value: object, column: str) -> str:
    if pd.isna(value):
        return ""
    digits = 2 if column == TEST_SD else COLUMNS.get(column, ("", 1, None))[2]
    if not isinstance(value, float):
        return str(value)
    return f"{value:.{digits}f}" if digits is not None else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main() -> None:
    """`python -m fedprune.analysis FOLDER [--into DIR]`: write the report, print the table and what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m fedprune.analysis", description="One table and figures over all runs of a sweep."
    )
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as outputs/lth_fedavg")
    parser.add_argument("--into", type=Path, help="where the report goes (default: the folder itself)")
    given = parser.parse_args()
    into = given.into or given.folder
    try:
        results = report(given.folder, into)
    except FedpruneError as error:
        parser.exit(1, f"{error}\n")
    console = Console()
    console.print(show(results))
    for path in [into / "table.csv", into / "table.md", *sorted((into / "figures").glob("accuracy_*"))]:
        console.print(path, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    main()
