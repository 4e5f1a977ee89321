"""Line charts of the task's metric, such as accuracy, against density, bytes and rounds: a line per cell.

Lines are means over seeds, with one sample standard deviation around them. `levels` and `rounds` are what `analysis.levels` and
`analysis.load_rounds` return, `by` is `analysis.varying` of them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedprune.analysis.curves import at_densities, complete, curve, evaluated, label_columns, labels, panel_column
from fedprune.analysis.figures.looks import Look, Looks, looks
from fedprune.analysis.figures.style import STYLE, logarithmic, whole_numbers
from fedprune.analysis.metric import metric_of

MANY_EVENTS = 12
"""Lines with more prune events than this are not marked at every event: the marks would hide the line."""

LEGEND_LINE = 0.17
"""The height of a line of a legend, in inches."""

DrawLine = Callable[[Axes, pd.DataFrame, Look], None]


def accuracy_density(levels: pd.DataFrame, by: list[str]) -> Figure:
    """Draw test accuracy (%) against weights remaining (%, log, from dense to sparse): a line per cell, a point per level.

    Cells that differ in nothing but the target density make one line together. A cell that was never pruned is also drawn as a
    horizontal line. Raises FedpruneError if there is nothing to draw.
    """
    rows, by = at_densities(complete(evaluated(levels, "density/weights", by), "prune/events"), by)
    figure = _chart(rows, by, "x", _with_bars, "weights remaining (%, less is better)")
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
    faint = "; faint: the rounds between the ends of levels" if climbs else ""
    figure = _chart(rows, by, "round", _with_climbs, f"sent up and down (MB, less is better{faint})")
    least, most = rows["x"].min(), rows["x"].max()
    for axes in figure.axes:
        logarithmic(axes, min(least, most / 2) / 1.15, most * 1.15)
    return figure


def accuracy_rounds(rounds: pd.DataFrame, by: list[str]) -> Figure:
    """Draw test accuracy (%) against rounds of training: a line per cell, grey marks at prune events.

    Markers are at the ends of levels. Raises FedpruneError if there is nothing to draw.
    """
    rows = complete(evaluated(rounds, "round", by), "round")
    figure = _chart(rows.assign(x=rows["round"] + 1), by, "round", _with_marks, "rounds (grey: prune events)")
    for axes in figure.axes:
        axes.grid(visible=False, axis="x")
        axes.set_xlim(left=0)
        whole_numbers(axes.xaxis)
    return figure


def _chart(rows: pd.DataFrame, by: list[str], point: str, draw: DrawLine, xlabel: str) -> Figure:
    """Draw all lines in one panel; where they are too many, a panel for each value of one column, with shared axes.

    point: the column whose values are the points of a line.
    """
    by = label_columns(rows, by)
    split = panel_column(rows, by)
    within = [column for column in by if column not in split]
    rows = rows.assign(panel=labels(rows, split), line=labels(rows, within))
    points_only = bool((rows.groupby("cell")[point].nunique() == 1).all())
    styles, panels = looks(rows, within, points_only), list(rows.groupby("panel", sort=False))
    with matplotlib.rc_context(STYLE):
        figure, grid = _beside(styles) if len(panels) == 1 else _below(styles, len(panels))
        for axes, (title, panel) in zip(grid, panels, strict=True):
            axes.set_title(": ".join([*split, title]))
            for line, rows_of_line in panel.groupby("line", sort=False):
                draw(axes, curve(rows_of_line, point), styles[line])
        figure.supylabel(metric_of(rows).axis("test"))
        for axes in grid:
            axes.set_xlabel(xlabel if axes.xaxis.get_tick_params().get("labelbottom", True) else "")
    return figure


def _beside(styles: Looks) -> tuple[Figure, list[Axes]]:
    """Return one panel, whose width is always the same, with the legend to its right; a single line without label has none."""
    unlabelled = list(styles) == [""]
    size = (4.6 + (0 if unlabelled else _width(styles)), max(3.4, 0.3 + LEGEND_LINE * len(styles)))
    figure = Figure(figsize=size, layout="constrained")
    if not unlabelled:
        figure.legend(handles=_handles(styles), loc="outside right upper")
    return figure, [figure.add_subplot()]


def _below(styles: Looks, panels: int) -> tuple[Figure, list[Axes]]:
    """Return panels in one row or two, with the legend below them; the figure is as large as both need."""
    rows, width = 1 if panels <= 3 else 2, max(7.5, _width(styles))
    columns, ncols = ceil(panels / rows), max(1, min(4, int(width / _width(styles))))
    figure = Figure(figsize=(width, 0.6 + 2.5 * rows + LEGEND_LINE * ceil(len(styles) / ncols)), layout="constrained")
    figure.legend(handles=_handles(styles), loc="outside lower center", ncols=ncols)
    grid = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten())
    for axes in grid[panels:]:
        axes.remove()
    for axes in grid[panels - columns : panels]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    return figure, grid[:panels]


def _width(styles: Looks) -> float:
    """Return about how many inches an entry of the legend takes."""
    return 0.65 + 0.06 * max(map(len, styles))


def _handles(styles: Looks) -> list[Line2D]:
    return [Line2D([], [], label=line, **style) for line, style in styles.items()]


def _with_bars(axes: Axes, line: pd.DataFrame, style: Look) -> None:
    axes.errorbar(line["x"], line["mean"], line["sd"], elinewidth=0.7, **style)
    if list(line["events"]) == [0]:
        axes.axhline(line["mean"].iloc[0], linewidth=0.7, color=style["color"], linestyle=style["linestyle"], zorder=1)


def _with_climbs(axes: Axes, line: pd.DataFrame, style: Look) -> None:
    # Late levels of an iterative run lie close together on this axis, so only their ends are joined; the rounds between are
    # faint.
    ends = line[_ends_level(line)]
    if len(ends) == 1:
        return _with_band(axes, line, style)
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
