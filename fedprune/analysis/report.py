"""The report of a sweep: one table and three figures over all its runs; tables by level, axes and methods where they apply."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fedprune.analysis import figures
from fedprune.analysis.by_axes import axes_markdown, by_axes, over_taxonomy
from fedprune.analysis.by_level import DENSITY, by_level, gains, gains_markdown, levels_markdown
from fedprune.analysis.by_method import by_method, methods_markdown, named, over_methods, target_of
from fedprune.analysis.cells import levels, table, varying
from fedprune.analysis.markdown import markdown
from fedprune.analysis.metric import metric_of, warn_of_several
from fedprune.analysis.read import Runs, load_rounds, load_runs
from fedprune.analysis.tuning import settings, tuning_markdown
from fedprune.errors import FedpruneError

log = logging.getLogger(__name__)


def report(runs: Runs, into: Path | str, against: Sequence[str] = ()) -> pd.DataFrame:
    """Write table.csv, table.md and figures/accuracy_{density,bytes,rounds}.{png,svg} into `into`; return the table.

    Runs that reach more than one density also get levels.csv and levels.md, the latter with each level's gain over level 0 and
    over the cells of these labels (`against`), by equal seeds. A sweep over the taxonomy also gets taxonomy.md and
    figures/accuracy_taxonomy.{png,svg}; a sweep over methods gets methods.{md,csv}, figures/accuracy_bytes_methods.{png,svg},
    and tuning.md if it tries several settings of each. If runs are judged by another metric, files have its name instead of
    `accuracy`. Levels and figures show the runs that are done. A figure without data is not drawn, an older one of its name is
    removed, and the log says why. Raises what `load_runs` raises.
    """
    frame, into = load_runs(runs), Path(into)
    warn_of_several(frame)
    results = table(frame)
    into.mkdir(parents=True, exist_ok=True)
    results.to_csv(into / "table.csv", index=False)
    (into / "table.md").write_text(markdown(results))
    rounds = load_rounds(runs)
    done = rounds[rounds["status"] == "done"] if len(rounds) else rounds
    _write_levels(done, into, against)
    draw(done, into / "figures")
    _write_taxonomy(frame, into)
    _write_methods(frame, rounds, into)
    _write_tuning(frame, into)
    return results


def _write_levels(rounds: pd.DataFrame, into: Path, against: Sequence[str]) -> None:
    """Write the tables by level if there are several levels; else remove older ones."""
    _remove(into / "levels.csv", into / "levels.md")
    if levels(rounds).empty:
        return
    by, metric = varying(rounds), metric_of(rounds)
    by_levels = by_level(rounds, by)
    if by_levels[DENSITY].nunique() > 1:
        by_levels.to_csv(into / "levels.csv", index=False)
        compared = [gains_markdown(gains(rounds, by, cell), metric, cell) for cell in (None, *against)]
        (into / "levels.md").write_text("\n".join(text for text in (levels_markdown(by_levels, metric), *compared) if text))


def _write_taxonomy(runs: pd.DataFrame, into: Path) -> None:
    """Write the tables and the heat map of a sweep over the taxonomy; remove those of an earlier sweep."""
    metric = metric_of(runs)
    page, figure = into / "taxonomy.md", into / "figures" / f"{metric.name}_taxonomy"
    _remove(page, *_files(figure))
    if not over_taxonomy(runs):
        return
    cells = by_axes(runs)
    page.write_text(axes_markdown(cells, metric))
    with suppress(FedpruneError):  # `draw` has logged already that there is nothing to draw
        figures.save(figures.accuracy_taxonomy(cells, metric), figure)


def _write_methods(runs: pd.DataFrame, rounds: pd.DataFrame, into: Path) -> None:
    """Write the comparison of methods and the figure of its front; remove those of an earlier sweep."""
    metric = metric_of(runs)
    page, values, figure = into / "methods.md", into / "methods.csv", into / "figures" / f"{metric.name}_bytes_methods"
    _remove(page, values, *_files(figure))
    if not over_methods(runs):
        return
    target = target_of(runs)
    methods = by_method(runs, rounds, target)
    page.write_text(methods_markdown(methods, target, metric))
    methods.to_csv(values, index=False)
    with suppress(FedpruneError):  # `draw` has logged already that there is nothing to draw
        figures.save(figures.accuracy_bytes_methods(methods, metric), figure)


def _write_tuning(runs: pd.DataFrame, into: Path) -> None:
    """Write the tried settings of each method if there are several; remove the file of an earlier sweep."""
    _remove(into / "tuning.md")
    if over_methods(runs) and settings(named(runs)):
        (into / "tuning.md").write_text(tuning_markdown(named(runs)))


def _files(figure: Path) -> list[Path]:
    """Return the files of a figure, from their path without suffix."""
    return [figure.with_name(figure.name + suffix) for suffix in figures.SUFFIXES]


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def draw(rounds: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the three figures of `report` over all cells in `rounds` into `folder`; return the files written."""
    by, judged = varying(rounds) if len(rounds) else [], metric_of(rounds).name
    drawings: dict[str, Callable[[], Figure]] = {
        f"{judged}_density": lambda: figures.accuracy_density(levels(rounds), by),
        f"{judged}_bytes": lambda: figures.accuracy_bytes(rounds, by),
        f"{judged}_rounds": lambda: figures.accuracy_rounds(rounds, by),
    }
    written: list[Path] = []
    for name, drawing in drawings.items():
        try:
            written += figures.save(drawing(), folder / name)
        except FedpruneError as error:
            log.warning("figure %s is left out: %s", name, error)
            _remove(*_files(folder / name))
    return written
