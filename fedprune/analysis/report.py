"""One table, three figures and the tables by level over all runs of a sweep."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import pandas as pd

from fedprune.analysis import figures
from fedprune.analysis.by_axes import axes_markdown, by_axes, over_taxonomy
from fedprune.analysis.by_level import DENSITY, by_level, levels_markdown
from fedprune.analysis.by_method import by_method, methods_markdown, named, over_methods, target_of
from fedprune.analysis.cells import levels, table, varying
from fedprune.analysis.markdown import markdown
from fedprune.analysis.metric import metric_of, warn_of_several
from fedprune.analysis.read import Runs, load_rounds, load_runs
from fedprune.analysis.tuning import settings, tuning_markdown
from fedprune.errors import FedpruneError

log = logging.getLogger(__name__)


def report(runs: Runs, into: Path | str) -> pd.DataFrame:
    """Write table.csv, table.md and figures/accuracy_{density,bytes,rounds}.{png,svg} into `into`; return the table.

    Where runs come to more than one density, also levels.csv and levels.md; of a sweep over the taxonomy also taxonomy.md and
    figures/accuracy_taxonomy.{png,svg}; of one over methods methods.{md,csv} and figures/accuracy_bytes_methods.{png,svg}, and
    tuning.md if it tries several settings of each. Where runs are judged by another metric, files have its name instead of
    `accuracy`. Levels and figures show the runs that are done. A figure that has no data
    is not drawn, an older one of its name is removed, and the log says why. Raises as `load_runs`.
    """
    frame, into = load_runs(runs), Path(into)
    warn_of_several(frame)
    results = table(frame)
    into.mkdir(parents=True, exist_ok=True)
    results.to_csv(into / "table.csv", index=False)
    (into / "table.md").write_text(markdown(results))
    rounds = load_rounds(runs)
    done = rounds[rounds["status"] == "done"] if len(rounds) else rounds
    _write_levels(done, into)
    draw(done, into / "figures")
    _write_taxonomy(frame, into)
    _write_methods(frame, rounds, into)
    _write_tuning(frame, into)
    return results


def _write_levels(rounds: pd.DataFrame, into: Path) -> None:
    """The tables by level; where there are none to tell apart, older ones are removed."""
    for name in ("levels.csv", "levels.md"):
        (into / name).unlink(missing_ok=True)
    if levels(rounds).empty:
        return
    by_levels = by_level(rounds, varying(rounds))
    if by_levels[DENSITY].nunique() > 1:
        by_levels.to_csv(into / "levels.csv", index=False)
        (into / "levels.md").write_text(levels_markdown(by_levels, metric_of(rounds)))


def _write_taxonomy(runs: pd.DataFrame, into: Path) -> None:
    """The tables and the heat map of a sweep over the taxonomy; older ones of another sweep are removed."""
    metric = metric_of(runs)
    written = [into / "taxonomy.md", *_figure(into, f"{metric.name}_taxonomy")]
    for path in written:
        path.unlink(missing_ok=True)
    if not over_taxonomy(runs):
        return
    by = by_axes(runs)
    written[0].write_text(axes_markdown(by, metric))
    with suppress(FedpruneError):  # that there is nothing to draw is said of the other figures
        figures.save(figures.accuracy_taxonomy(by, metric), written[1])


def _write_methods(runs: pd.DataFrame, rounds: pd.DataFrame, into: Path) -> None:
    """The comparison of methods and its front; older ones of another sweep are removed."""
    metric = metric_of(runs)
    written = [into / "methods.md", into / "methods.csv", *_figure(into, f"{metric.name}_bytes_methods")]
    for path in written:
        path.unlink(missing_ok=True)
    if not over_methods(runs):
        return
    target = target_of(runs)
    by = by_method(runs, rounds, target)
    written[0].write_text(methods_markdown(by, target, metric))
    by.to_csv(written[1], index=False)
    with suppress(FedpruneError):  # that there is nothing to draw is said of the other figures
        figures.save(figures.accuracy_bytes_methods(by, metric), written[2])


def _write_tuning(runs: pd.DataFrame, into: Path) -> None:
    """What was tried of each method, if several settings were; an older one of another sweep is removed."""
    (into / "tuning.md").unlink(missing_ok=True)
    if over_methods(runs) and settings(named(runs)):
        (into / "tuning.md").write_text(tuning_markdown(named(runs)))


def _figure(into: Path, name: str) -> list[Path]:
    return [into / "figures" / f"{name}{suffix}" for suffix in figures.SUFFIXES]


def draw(rounds: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the three figures of `report` over all cells in `rounds` into `folder`; return the files written."""
    by, judged = varying(rounds) if len(rounds) else [], metric_of(rounds).name
    kinds = {
        f"{judged}_density": lambda: figures.accuracy_density(levels(rounds), by),
        f"{judged}_bytes": lambda: figures.accuracy_bytes(rounds, by),
        f"{judged}_rounds": lambda: figures.accuracy_rounds(rounds, by),
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
