"""The Pareto front of methods: accuracy against bytes sent, a point per method."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedprune.analysis.by_method import pareto_front
from fedprune.analysis.figures.style import STYLE, plain_ticks
from fedprune.analysis.metric import ACCURACY, Metric
from fedprune.errors import FedpruneError
from fedprune.run_id import METHOD

COLORS = {True: "C0", False: "0.45"}  # on the front, and not
NAME_HEIGHT = 0.036  # as a fraction of the panel's height

LEAD = {"arrowstyle": "-", "linewidth": 0.4, "alpha": 0.6, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 2}
"""The line from a name to its point."""


def accuracy_bytes_methods(table: pd.DataFrame, metric: Metric = ACCURACY) -> Figure:
    """Draw client accuracy (%), or the task's other metric, against megabytes sent in the whole run (log): a panel per density,
    the Pareto front as a line.

    `table` is what `by_method` returns; bars are sample standard deviations over seeds. Raises FedpruneError if it is empty.
    """
    judged = metric.head("client")
    if table.empty or table[judged].isna().all():
        raise FedpruneError(f"nothing to draw: none of these runs has finished with a value of {metric.column('client')}")
    panels = [(density, _points(methods, metric)) for density, methods in table.groupby("density", sort=False)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (density, points) in zip(row, panels, strict=True):
            axes.set_title(f"density {density:.10g}")
            _draw_points(axes, points, judged)
        for axes, (_, points) in zip(row, panels, strict=True):  # once all panels have made the limits that they share
            _write_names(axes, points, judged)
        figure.supxlabel("sent up and down in the whole run (MB, less is better)")
        row[0].set_ylabel(f"{metric.words} of the mean client ({metric.axis_unit})")
    return figure


def _points(methods: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return the methods in the order of their metric, with the megabytes sent, and whether they are on the Pareto front."""
    sent = methods["up (MB)"] + methods["down (MB)"]
    return methods.assign(sent=sent, unbeaten=pareto_front(methods, metric)).sort_values(metric.head("client"))


def _draw_points(axes: Axes, points: pd.DataFrame, judged: str) -> None:
    for unbeaten, alike in points.groupby("unbeaten"):
        color = COLORS[bool(unbeaten)]
        axes.errorbar(alike["sent"], alike[judged], alike[f"{judged} sd"], fmt="o", color=color, elinewidth=0.7)
    front = points[points["unbeaten"]].sort_values("sent")
    axes.plot(front["sent"], front[judged], color=COLORS[True], linewidth=0.8, drawstyle="steps-post", zorder=0)
    axes.set_xscale("log")
    plain_ticks(axes, (1, 2, 5))
    axes.margins(x=0.05)


def _write_names(axes: Axes, points: pd.DataFrame, judged: str) -> None:
    """Write the methods' names beside the panel, in the order of their metric, each with a line to its point."""
    heights = apart(axes.transLimits.transform([(1.0, y) for y in points[judged]])[:, 1].tolist(), NAME_HEIGHT)
    for row, height in zip(points.to_dict("records"), heights, strict=True):
        color, point = COLORS[bool(row["unbeaten"])], (row["sent"], row[judged])
        lead = LEAD | {"color": color}
        text = axes.annotate(row[METHOD], point, (1.04, height), textcoords="axes fraction", arrowprops=lead)
        text.set(va="center", fontsize=6.5, color=color, annotation_clip=False)


def apart(heights: list[float], least: float) -> list[float]:
    """Return ascending heights from 0 to 1, each moved up as little as necessary to be `least` above the one before."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + least if moved else 0.0))
    return [min(height, 1 - least * (len(moved) - 1 - rank)) for rank, height in enumerate(moved)]
