"""The Pareto front of methods: accuracy against bytes sent, a point per method, with a numbered key below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedprune.analysis.by_method import KIND, KINDS, pareto_front
from fedprune.analysis.figures.placement import Box, gap_between, nearest, place
from fedprune.analysis.figures.style import PAGE, STYLE, plain_ticks
from fedprune.analysis.metric import ACCURACY, Metric
from fedprune.analysis.read import METHOD
from fedprune.errors import FedpruneError

# The colours of Okabe and Ito, which colour-blind readers can tell apart; in grey the markers do.
LOOKS = dict(
    zip(KINDS, [("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "^"), ("#009E73", "D"), ("#CC79A7", "v")], strict=True)
)

PANEL, KEY_LINE = 3.8, 0.145
"""Inches: the height of a panel, and of a line of the key."""

SIZE, LETTER, MARKER, BESIDE = 7.0, 4.3, 4.0, 3.5
"""Points: the size of letters, the width of one, the size of markers, and the gap from which on a line leads to the point."""

POINTS = 72  # in an inch

KEY_LETTERS = 112
"""Letters of the key's size that stand side by side on the page's width."""

LEAD = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.5", "shrinkA": 0, "shrinkB": 2}
"""The line from a label that is not beside its point."""


def accuracy_bytes_methods(table: pd.DataFrame, metric: Metric = ACCURACY) -> Figure:
    """Draw client accuracy (%), or the task's other metric, against megabytes sent in the whole run (log), a panel per density.

    Methods on the Pareto front, a line, have their names, the others the numbers of a key below the panels, which groups them
    by kind. Bars are sample standard deviations over seeds. A method that sends nothing is a horizontal line. `table` is what
    `by_method` returns. Raises FedpruneError if it is empty.
    """
    judged = metric.head("client")
    if table.empty or table[judged].isna().all():
        raise FedpruneError(f"nothing to draw: none of these runs has finished with a value of {metric.column('client')}")
    panels = [(density, _points(methods, metric)) for density, methods in table.groupby("density", sort=False)]
    numbers, lines = _numbers(table), int(table.groupby(KIND)[METHOD].nunique().max()) + 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, PANEL + 0.35 + KEY_LINE * lines), layout="constrained")
        grid = figure.add_gridspec(2, len(panels), height_ratios=[PANEL, KEY_LINE * lines])
        row = [figure.add_subplot(grid[0, 0])]
        row += [figure.add_subplot(grid[0, at], sharey=row[0]) for at in range(1, len(panels))]
        for axes, (density, points) in zip(row, panels, strict=True):
            axes.set_title(f"density {density:.10g}")
            _draw_points(axes, points, judged)
        row[0].set_ylabel(f"{metric.words} of the mean client ({metric.axis_unit})")
        row[0].set_xlabel(
            "sent up and down in the whole run (MB, less is better); bars: standard deviation over seeds", loc="left"
        )
        _write_key(figure.add_subplot(grid[1, :]), table, numbers, lines)
        figure.draw_without_rendering()  # labels are placed in the final panels
        figure.set_layout_engine("none")
        for axes, (_, points) in zip(row, panels, strict=True):
            _write_labels(axes, points[points["sent"] > 0], judged, numbers)
    return figure


def _points(methods: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return the methods in the order of their metric, with the megabytes sent, and whether they are on the Pareto front."""
    sent = methods["up (MB)"] + methods["down (MB)"]
    return methods.assign(sent=sent, unbeaten=pareto_front(methods, metric)).sort_values(metric.head("client"))


def _numbers(table: pd.DataFrame) -> dict[str, int]:
    """Return the number of each method in the key: by kind, then in the table's order."""
    of_kinds = [name for kind in KINDS for name in dict.fromkeys(table.loc[table[KIND] == kind, METHOD])]
    return {name: number for number, name in enumerate(of_kinds, start=1)}


def _draw_points(axes: Axes, points: pd.DataFrame, judged: str) -> None:
    sending = points[points["sent"] > 0]
    for kind, alike in sending.groupby(KIND):
        color, marker = LOOKS[str(kind)]
        bars = axes.errorbar(alike["sent"], alike[judged], alike[f"{judged} sd"], fmt=marker, color=color, elinewidth=0.8)
        bars.lines[0].set_markersize(MARKER)
        for line in bars.lines[2]:
            line.set_alpha(0.45)
    front = sending[sending["unbeaten"]].sort_values("sent")
    axes.plot(front["sent"], front[judged], color="0.6", linewidth=0.8, drawstyle="steps-post", zorder=0)
    axes.set_xscale("log")
    plain_ticks(axes, (1, 2, 5))
    axes.margins(x=0.07, y=0.09)
    for row in points[points["sent"] == 0].to_dict("records"):
        axes.axhline(row[judged], color=LOOKS[row[KIND]][0], linewidth=0.8, linestyle=":", zorder=0)
        axes.annotate(f"{row[METHOD]}: sends nothing", (0.01, row[judged]), xycoords=("axes fraction", "data"), fontsize=SIZE)


def _write_labels(axes: Axes, points: pd.DataFrame, judged: str, numbers: Mapping[str, int]) -> None:
    """Write the names of the methods on the front, and then the numbers of the others, beside their points."""
    ordered = points.sort_values(["unbeaten", judged], ascending=False, kind="stable").to_dict("records")
    if not ordered:
        return
    texts = [row[METHOD] if row["unbeaten"] else str(numbers[row[METHOD]]) for row in ordered]
    middles = _in_points(axes, [(row["sent"], row[judged]) for row in ordered])
    tops = _in_points(axes, [(row["sent"], row[judged] + np.nan_to_num(row[f"{judged} sd"])) for row in ordered])
    markers = [Box(x, y, MARKER / 2, MARKER / 2) for x, y in middles]
    bars = [Box(x, y, 0.5, top - y) for (x, y), (_, top) in zip(middles, tops, strict=True)]
    halves = [(LETTER * len(text) / 2 + 0.5, 0.6 * SIZE) for text in texts]
    (left, low), (right, high) = axes.bbox.get_points() * POINTS / axes.figure.dpi
    panel = Box((left + right) / 2, (low + high) / 2, (right - left) / 2, (high - low) / 2)
    for row, text, marker, label in zip(ordered, texts, markers, place(markers, bars, halves, panel), strict=True):
        _write(axes, row, text, judged, marker, label)


def _in_points(axes: Axes, data: list[tuple[float, float]]) -> list[tuple[float, float]]:
    scaled = axes.transData.transform(data) * POINTS / axes.figure.dpi
    return [(float(x), float(y)) for x, y in scaled]


def _write(axes: Axes, row: Mapping[str, Any], text: str, judged: str, marker: Box, label: Box) -> None:
    x, y = nearest(label, marker)
    relpos = (x - label.x + label.width) / (2 * label.width), (y - label.y + label.height) / (2 * label.height)
    lead = LEAD | {"relpos": relpos} if gap_between(label, marker) > BESIDE else None
    offset = (label.x - marker.x, label.y - marker.y)
    written = axes.annotate(text, (row["sent"], row[judged]), offset, textcoords="offset points", arrowprops=lead)
    color, weight = LOOKS[row[KIND]][0], "bold" if row["unbeaten"] else "normal"
    written.set(ha="center", va="center", fontsize=SIZE, color=color, weight=weight)


def _write_key(axes: Axes, table: pd.DataFrame, numbers: Mapping[str, int], lines: int) -> None:
    """Write a column per kind, as wide as its names: its marker and name, and below it the numbers and names of its methods."""
    names = {kind: list(dict.fromkeys(table.loc[table[KIND] == kind, METHOD])) for kind in KINDS}
    widths = {kind: max(map(len, [f"{kind}  ", *of_kind])) + 5 for kind, of_kind in names.items() if of_kind}
    axes.set_axis_off()
    axes.set(xlim=(0, max(KEY_LETTERS, sum(widths.values()))), ylim=(lines - 0.5, -0.5))
    left = 0
    for kind, width in widths.items():
        color, marker = LOOKS[kind]
        axes.plot([left + 1], [0], marker=marker, color=color, markersize=MARKER + 1, clip_on=False)
        axes.text(left + 2.4, 0, kind, va="center", weight="bold", color=color)
        for line, name in enumerate(names[kind], start=1):
            axes.text(left + 3, line, f"{numbers[name]}", va="center", ha="right", fontsize=SIZE, color=color)
            axes.text(left + 3.6, line, name, va="center", fontsize=SIZE)
        left += width
