"""Line charts of the task's metric, such as accuracy, against density, bytes and rounds: a line per cell.

Lines are means over seeds, with one sample standard deviation around them. `levels` and `rounds` are what `analysis.levels` and
`analysis.load_rounds` return, `by` is `analysis.varying` of them. One panel is as wide as a column of a paper, several are as
wide as its page.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedprune.analysis.curves import (
    LINES_IN_A_PANEL,
    at_densities,
    best_lines,
    complete,
    curve,
    evaluated,
    label_columns,
    labels,
    panel_column,
)
from fedprune.analysis.figures.legend import beneath
from fedprune.analysis.figures.looks import Look, looks
from fedprune.analysis.figures.style import COLUMN, PAGE, STYLE, logarithmic, whole_numbers
from fedprune.analysis.metric import metric_of

MANY_EVENTS = 12
"""Lines with more prune events than this are not marked at every event: the marks would hide the line."""

IN_A_ROW = 3
"""Panels side by side, at most."""

BETWEEN = Line2D([], [], color="0.4", alpha=0.4, linewidth=0.7, label="rounds between the ends of levels")
EVENTS = Line2D([], [], color="0.85", linewidth=0.8, label="prune events")
"""Entries of legends for what is drawn besides the lines."""

DrawLine = Callable[[Axes, pd.DataFrame, Look], None]


def accuracy_density(levels: pd.DataFrame, by: list[str]) -> Figure:
    """Draw test accuracy (%) against weights remaining (%, log, from dense to sparse): a line per cell, a point per level.

    Cells that differ in nothing but the target density make one line together. A cell that was never pruned is also drawn as a
    horizontal line. Raises FedpruneError if there is nothing to draw.
    """
    rows, by = at_densities(complete(evaluated(levels, "density/weights", by), "prune/events"), by)
    figure = _chart(rows, by, "x", _with_bars, "weights remaining (%)")
    least, most = rows["x"].min(), rows["x"].max()
    for axes in figure.axes:
        logarithmic(axes, most * 1.15, min(least, most / 2) / 1.15)
    return figure


def accuracy_bytes(rounds: pd.DataFrame, by: list[str]) -> Figure:
    """Draw test accuracy (%) against the megabytes (10^6 bytes, up and down, log) sent so far: a line per cell.

    Markers are at the ends of levels. Runs that send nothing have no place on the axis. Raises FedpruneError if there is
    nothing to draw.
    """
    sent = rounds[rounds["wire/total_bytes"] > 0] if "wire/total_bytes" in rounds else rounds
    rows = complete(evaluated(sent, "wire/total_bytes", by), "round")
    rows = rows.assign(x=rows["wire/total_bytes"] / 1e6)
    climbs = bool((rows.groupby("cell")["prune/events"].nunique() > 1).any())
    figure = _chart(rows, by, "round", _with_climbs, "sent up and down (MB)", [BETWEEN] * climbs)
    least, most = rows["x"].min(), rows["x"].max()
    for axes in figure.axes:
        logarithmic(axes, min(least, most / 2) / 1.15, most * 1.15)
    return figure


def accuracy_rounds(rounds: pd.DataFrame, by: list[str]) -> Figure:
    """Draw test accuracy (%) against rounds of training: a line per cell, grey marks at prune events.

    Markers are at the ends of levels. Raises FedpruneError if there is nothing to draw.
    """
    rows = complete(evaluated(rounds, "round", by), "round")
    marked = bool((rows.groupby("cell")["prune/events"].nunique() > 1).any())
    figure = _chart(rows.assign(x=rows["round"] + 1), by, "round", _with_marks, "rounds", [EVENTS] * marked)
    for axes in figure.axes:
        axes.grid(visible=False, axis="x")
        axes.set_xlim(left=0)
        whole_numbers(axes.xaxis)
    return figure


def _chart(
    rows: pd.DataFrame, by: list[str], point: str, draw: DrawLine, xlabel: str, besides: list[Line2D] | None = None
) -> Figure:
    """Draw all lines in one panel; where they are too many, a panel for each value of one column, with shared axes.

    point: the column whose values are the points of a line. besides: entries of the legend for what else is drawn.
    """
    by = label_columns(rows, by)
    split = panel_column(rows, by)
    within = [column for column in by if column not in split]
    rows, left_out = best_lines(rows.assign(panel=labels(rows, split), line=labels(rows, within)), point)
    lone_points = bool((rows.groupby("cell")[point].nunique() == 1).any())
    styles, panels = looks(rows, within, lone_points), list(rows.groupby("panel", sort=False))
    lines = [Line2D([], [], label=line, **style) for line, style in styles.items() if line]
    with matplotlib.rc_context(STYLE):
        figure, grid = _panels(len(panels), crowded=len(lines) > LINES_IN_A_PANEL)
        for axes, (title, panel) in zip(grid, panels, strict=True):
            axes.set_title(title if "=" in title else ": ".join([*split, title]))
            for line, rows_of_line in panel.groupby("line", sort=False):
                draw(axes, curve(rows_of_line, point), styles[line])
        _name_axes(grid, xlabel, metric_of(rows).axis("test"))
        beneath(figure, [*lines, *(besides or [])], left_out)
    return figure


def _panels(number: int, crowded: bool) -> tuple[Figure, list[Axes]]:
    """Return so many panels with shared axes, in rows of IN_A_ROW; a single one is as wide as a page if it is crowded."""
    if number == 1:
        figure = Figure(figsize=(PAGE, 3.4) if crowded else (COLUMN, 2.3), layout="constrained")
        return figure, [figure.add_subplot()]
    columns = number if number <= IN_A_ROW else 2 if number == 4 else IN_A_ROW
    figure = Figure(figsize=(PAGE, 2.3 * ceil(number / columns)), layout="constrained")
    grid = list(figure.subplots(ceil(number / columns), columns, sharex=True, sharey=True, squeeze=False).flatten())
    for axes in grid[number:]:
        axes.remove()
    for axes in grid[number - columns : number]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    return figure, grid[:number]


def _name_axes(grid: list[Axes], xlabel: str, ylabel: str) -> None:
    """Write the labels of the axes outside of the grid of panels."""
    for axes in grid:
        axes.set_xlabel(xlabel if axes.xaxis.get_tick_params().get("labelbottom", True) else "")
        axes.set_ylabel(ylabel if axes.get_subplotspec().is_first_col() else "")  # type: ignore[union-attr]  # of a grid


def _with_bars(axes: Axes, line: pd.DataFrame, style: Look) -> None:
    axes.errorbar(line["x"], line["mean"], line["sd"], elinewidth=0.7, **style)
    if list(line["events"]) == [0]:
        axes.axhline(line["mean"].iloc[0], linewidth=0.7, color=style["color"], linestyle=style["linestyle"], zorder=1)


def _with_climbs(axes: Axes, line: pd.DataFrame, style: Look) -> None:
    # Late levels of an iterative run lie close together on this axis, so only their ends are joined; the rounds between are
    # faint.
    ends = line[_ends_level(line)]
    if len(ends) == 1:
        _with_band(axes, line, style)
        axes.errorbar(ends["x"], ends["mean"], ends["sd"], fmt="none", ecolor=style["color"], elinewidth=0.7)
        return
    axes.plot(line["x"], line["mean"], linewidth=0.5, alpha=0.4, color=style["color"])
    _with_bars(axes, ends, style)


def _with_band(axes: Axes, line: pd.DataFrame, style: Look) -> None:
    ends = list(line.index[_ends_level(line)])
    shown = ends if len(ends) <= MANY_EVENTS else [*range(0, len(line), ceil(len(line) / MANY_EVENTS))]
    axes.plot(line["x"], line["mean"], markevery=shown, **style)
    if len(line) == 1:  # a band has no width at one point
        axes.errorbar(line["x"], line["mean"], line["sd"], fmt="none", ecolor=style["color"], elinewidth=0.7)
    low, high = line["mean"] - line["sd"], line["mean"] + line["sd"]
    axes.fill_between(line["x"], low, high, color=style["color"], alpha=0.15, linewidth=0)


def _with_marks(axes: Axes, line: pd.DataFrame, style: Look) -> None:
    _with_band(axes, line, style)
    # The round before a prune event is always evaluated: it is the last point with the old count of events.
    pruned = line["x"][line["events"].diff().shift(-1) > 0]
    height = 1 if len(pruned) <= MANY_EVENTS else 0.03
    axes.vlines(pruned, 0, height, color="0.85", linewidth=0.8, zorder=0, transform=axes.get_xaxis_transform())


def _ends_level(line: pd.DataFrame) -> pd.Series:
    """Return which points are the last with their count of prune events; the round before an event is always evaluated."""
    return line["events"].diff().shift(-1) != 0
