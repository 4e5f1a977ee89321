"""Accuracy against bytes, a point per method: what one pays for what, and who is not beaten."""

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

COLORS = {True: "C0", False: "0.45"}  # of those who are not beaten, and of the others
LINE = 0.036  # the height of a name, of a panel's


def accuracy_bytes_methods(table: pd.DataFrame, metric: Metric = ACCURACY) -> Figure:
    """Client accuracy (%), or what else the task is judged by, against megabytes sent in the whole run (log), a panel per
    density, the front as a line.

    `table` is what `by_method` returns; bars are sample standard deviations over seeds. Raises FedpruneError if it is empty.
    """
    if table.empty or table[metric.head("client")].isna().all():
        raise FedpruneError(f"nothing to draw: none of these runs has finished with a value of {metric.column('client')}")
    panels = list(table.groupby("density", sort=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (density, part) in zip(row, panels, strict=True):
            axes.set_title(f"density {density:.10g}")
            _panel(axes, part.assign(sent=part["up (MB)"] + part["down (MB)"]), metric)
        figure.supxlabel("sent up and down in the whole run (MB)")
        row[0].set_ylabel(f"{metric.words} of the mean client{' (%)' * metric.percent}")
    return figure


def _panel(axes: Axes, part: pd.DataFrame, metric: Metric) -> None:
    best, judged = pareto_front(part, metric), metric.head("client")
    for unbeaten, points in part.groupby(best):
        color = COLORS[bool(unbeaten)]
        axes.errorbar(points["sent"], points[judged], points[f"{judged} sd"], fmt="o", color=color, elinewidth=0.7)
    line = part[best].sort_values("sent")
    axes.plot(line["sent"], line[judged], color=COLORS[True], linewidth=0.8, drawstyle="steps-post", zorder=0)
    axes.set_xscale("log")
    plain_ticks(axes, (1, 2, 5))
    axes.margins(x=0.05)
    _name(axes, part.assign(unbeaten=best).sort_values(judged), judged)


def _name(axes: Axes, points: pd.DataFrame, judged: str) -> None:
    """The methods' names beside the panel, in the order of what they come to, each with a line to its point."""
    heights = apart(axes.transLimits.transform([(1.0, y) for y in points[judged]])[:, 1].tolist(), LINE)
    for row, height in zip(points.to_dict("records"), heights, strict=True):
        color = COLORS[bool(row["unbeaten"])]
        lead = {
            "arrowstyle": "-",
            "color": color,
            "linewidth": 0.4,
            "alpha": 0.6,
            "relpos": (0, 0.5),
            "shrinkA": 0,
            "shrinkB": 2,
        }
        point = row["sent"], row[judged]
        text = axes.annotate(row[METHOD], point, (1.04, height), textcoords="axes fraction", arrowprops=lead)
        text.set(va="center", fontsize=6.5, color=color, annotation_clip=False)


def apart(heights: list[float], least: float) -> list[float]:
    """Ascending heights from 0 to 1, moved as little as need be from below, so that each is `least` above the one before."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + least if found else 0.0))
    return [min(height, 1 - least * (len(found) - 1 - place)) for place, height in enumerate(found)]
