"""The style and axes that all figures share, and `save`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

SUFFIXES = (".png", ".svg")

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.93",
    "grid.linewidth": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.6,
    "savefig.dpi": 200,
    "svg.hashsalt": "fedprune",  # the same figure is the same file, byte for byte
}


def save(figure: Figure, path: Path | str) -> list[Path]:
    """Write the figure to `path` with .png and with .svg; return both. The same figure gives the same bytes."""
    path = Path(path)
    name = path.stem if path.suffix in SUFFIXES else path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(name + suffix) for suffix in SUFFIXES]
    with matplotlib.rc_context(STYLE):
        for file in files:
            figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else {})
    return files


def logarithmic(axes: Axes, left: float, right: float) -> None:
    """Make the x axis logarithmic from `left` to `right`, with its ticks written as plain numbers."""
    ticks = (1, 2, 5) if max(left, right) > 20 * min(left, right) else (1, 1.5, 2, 3, 5, 7)
    axes.set(xscale="log", xlim=(left, right))
    plain_ticks(axes, ticks)


def plain_ticks(axes: Axes, ticks: tuple[float, ...]) -> None:
    """Mark these multiples of each power of ten on a logarithmic x axis, written as plain numbers."""
    axes.xaxis.set_major_locator(LogLocator(subs=ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.10g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def whole_numbers(axis: Axis) -> None:
    """Mark an axis at whole numbers only."""
    axis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
