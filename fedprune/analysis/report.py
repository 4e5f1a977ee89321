"""One table and three figures over all runs of a sweep."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from fedprune.analysis import figures
from fedprune.analysis.cells import levels, table, varying
from fedprune.analysis.read import Runs, load_rounds, load_runs
from fedprune.analysis.tables import markdown
from fedprune.errors import FedpruneError

log = logging.getLogger(__name__)


def report(runs: Runs, into: Path | str) -> pd.DataFrame:
    """Write table.csv, table.md and figures/accuracy_{density,bytes,rounds}.{png,svg} into `into`; return the table.

    Figures show the runs that are done. One that has no data is not drawn, an older one of its name is removed, and the log
    says why. Raises as `load_runs`.
    """
    results, into = table(load_runs(runs)), Path(into)
    into.mkdir(parents=True, exist_ok=True)
    results.to_csv(into / "table.csv", index=False)
    (into / "table.md").write_text(markdown(results))
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
