"""Accuracy against bytes, a point per method: what one pays for what, and who is not beaten."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fedprune.analysis.by_method import front
from fedprune.analysis.figures import STYLE
from fedprune.errors import FedpruneError
from fedprune.folders import METHOD

ACCURACY = "client accuracy (%)"


def accuracy_bytes_methods(table: pd.DataFrame) -> Figure:
    """Client accuracy (%) against megabytes sent in the whole run (log), a panel per density, the front as a line.

    `table` is what `by_method` returns; bars are sample standard deviations over seeds. Raises FedpruneError if it is empty.
    """
    if table.empty or table[ACCURACY].isna().all():
        raise FedpruneError("nothing to draw: none of these runs has finished with an accuracy of clients")
    panels = list(table.groupby("density", sort=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(panels), 4.4), layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (density, part) in zip(row, panels, strict=True):
            axes.set_title(f"density {density:.10g}")
            _panel(axes, part.assign(sent=part["up (MB)"] + part["down (MB)"]))
        figure.supxlabel("sent up and down in the whole run (MB)")
        row[0].set_ylabel("accuracy of the mean client (%)")
    return figure


def _panel(axes: Axes, part: pd.DataFrame) -> None:
    best = front(part)
    for unbeaten, points in part.groupby(best):
        color = "C0" if unbeaten else "0.55"
        axes.errorbar(points["sent"], points[ACCURACY], points[f"{ACCURACY} sd"], fmt="o", color=color, elinewidth=0.7)
        for name, sent, accuracy in zip(points[METHOD], points["sent"], points[ACCURACY], strict=True):
            axes.annotate(name, (sent, accuracy), xytext=(4, 3), textcoords="offset points", fontsize=6.5, color=color)
    line = part[best].sort_values("sent")
    axes.plot(line["sent"], line[ACCURACY], color="C0", linewidth=0.8, drawstyle="steps-post", zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.10g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.15)
