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
from fedprune.analysis.by_level import DENSITY, by_level, cells_of, gains, gains_markdown, gains_table, levels_markdown
from fedprune.analysis.by_method import by_method, methods_markdown, named, over_methods, target_of
from fedprune.analysis.cells import levels, table, varying
from fedprune.analysis.markdown import markdown
from fedprune.analysis.metric import Metric, metric_of, warn_of_several
from fedprune.analysis.paper.differences import differences, differences_markdown
from fedprune.analysis.paper.latex import differences_latex, levels_latex, methods_latex, table_latex
from fedprune.analysis.read import Runs, load_rounds, load_runs
from fedprune.analysis.terminal import with_results
from fedprune.analysis.tuning import settings, tuning_markdown
from fedprune.errors import FedpruneError
from fedprune.running.lock import one_at_a_time

log = logging.getLogger(__name__)

TABLES = (".csv", ".md", ".tex")
"""The suffixes of a table's files."""


def report(runs: Runs, into: Path | str, against: Sequence[str] = ()) -> pd.DataFrame:
    """Write table.csv, .md and .tex and figures/accuracy_{density,bytes,rounds}.{png,svg,pdf} into `into`; return the table.

    against: labels of cells, such as the name of a method. differences.csv, .md and .tex then say how much better every other
    cell is at the end, by equal seeds, with a verdict. Runs that reach more than one density also get levels.csv, .md and
    .tex, and gains.csv: each level's gain over level 0 and over these cells. A sweep over the taxonomy also gets taxonomy.md
    and figures/accuracy_taxonomy; a sweep over methods gets methods.csv, .md and .tex, figures/accuracy_bytes_methods, and
    tuning.md if it tries several settings of each. If runs are judged by another metric, files have its name instead of
    `accuracy`. Levels and figures show the runs that are done. A figure without data is not drawn, an older one of its name is
    removed, and the log says why. Raises what `load_runs` raises, and FedpruneError if no cell has such a label.
    """
    frame, into = load_runs(runs), Path(into)
    warn_of_several(frame)
    results, metric = table(frame), metric_of(frame)
    compared = [differences(frame, label) for label in against]
    with one_at_a_time(into):  # another terminal with the same sweep may end at the same moment
        results.to_csv(into / "table.csv", index=False)
        (into / "table.md").write_text(markdown(with_results(results)) + _left_out(results), encoding="utf-8")
        (into / "table.tex").write_text(table_latex(with_results(results), metric), encoding="utf-8")
        _write_differences(compared, metric, into)
        rounds = load_rounds(runs)
        done = rounds[rounds["status"] == "done"] if len(rounds) else rounds
        _write_levels(done, into, [str(table["against"].iloc[0]) for table in compared if len(table)])
        draw(done, into / "figures")
        _write_taxonomy(frame, into)
        _write_methods(frame, rounds, into)
        _write_tuning(frame, into)
    return results


def _left_out(results: pd.DataFrame) -> str:
    """Return the line below a table that says how many cells are not in it, and where they are; "" if all are."""
    number = len(results) - len(with_results(results))
    return f"\n{number} of {len(results)} cells have no result; table.csv has them, with their reasons.\n" if number else ""


def _write_differences(compared: Sequence[pd.DataFrame], metric: Metric, into: Path) -> None:
    """Write the paired differences to the cells that were named; remove those of before."""
    _remove(*(into / f"differences{suffix}" for suffix in TABLES))
    if any(map(len, compared)):
        rows = pd.concat(compared, ignore_index=True)
        rows.to_csv(into / "differences.csv", index=False)
        (into / "differences.md").write_text(differences_markdown(rows, metric), encoding="utf-8")
        (into / "differences.tex").write_text(differences_latex(rows, metric), encoding="utf-8")


def _write_levels(rounds: pd.DataFrame, into: Path, against: Sequence[str]) -> None:
    """Write the tables by level if there are several levels; else remove older ones."""
    _remove(into / "gains.csv", *(into / f"levels{suffix}" for suffix in TABLES))
    if levels(rounds).empty:
        return
    by, metric = varying(rounds), metric_of(rounds)
    by_levels = by_level(rounds, by)
    if by_levels[DENSITY].nunique() > 1:
        by_levels.to_csv(into / "levels.csv", index=False)
        (into / "levels.tex").write_text(levels_latex(by_levels, metric), encoding="utf-8")
        compared = {cell: gains(rounds, by, cell) for cell in (None, *against) if cell is None or cell in cells_of(rounds, by)}
        pd.concat([gains_table(of_cell, cell) for cell, of_cell in compared.items()]).to_csv(into / "gains.csv", index=False)
        texts = [levels_markdown(by_levels, metric), *(gains_markdown(gain, metric, cell) for cell, gain in compared.items())]
        (into / "levels.md").write_text("\n".join(text for text in texts if text), encoding="utf-8")


def _write_taxonomy(runs: pd.DataFrame, into: Path) -> None:
    """Write the tables and the heat map of a sweep over the taxonomy; remove those of an earlier sweep."""
    metric = metric_of(runs)
    page, figure = into / "taxonomy.md", into / "figures" / f"{metric.name}_taxonomy"
    _remove(page, *_files(figure))
    if not over_taxonomy(runs):
        return
    cells = by_axes(runs)
    page.write_text(axes_markdown(cells, metric), encoding="utf-8")
    with suppress(FedpruneError):  # `draw` has logged already that there is nothing to draw
        figures.save(figures.accuracy_taxonomy(cells, metric), figure)


def _write_methods(runs: pd.DataFrame, rounds: pd.DataFrame, into: Path) -> None:
    """Write the comparison of methods and the figure of its front; remove those of an earlier sweep."""
    metric = metric_of(runs)
    page, values, paper = (into / f"methods{suffix}" for suffix in (".md", ".csv", ".tex"))
    figure = into / "figures" / f"{metric.name}_bytes_methods"
    _remove(page, values, paper, *_files(figure))
    if not over_methods(runs):
        return
    target = target_of(runs)
    methods = by_method(runs, rounds, target)
    page.write_text(methods_markdown(methods, target, metric), encoding="utf-8")
    methods.to_csv(values, index=False)
    paper.write_text(methods_latex(methods, metric), encoding="utf-8")
    with suppress(FedpruneError):  # `draw` has logged already that there is nothing to draw
        figures.save(figures.accuracy_bytes_methods(methods, metric), figure)


def _write_tuning(runs: pd.DataFrame, into: Path) -> None:
    """Write the tried settings of each method if there are several; remove the file of an earlier sweep."""
    _remove(into / "tuning.md")
    if over_methods(runs) and settings(named(runs)):
        (into / "tuning.md").write_text(tuning_markdown(named(runs)), encoding="utf-8")


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
