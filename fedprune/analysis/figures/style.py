"""The style and axes that all figures share, and `save`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

SUFFIXES = (".png", ".svg", ".pdf")

COLUMN, PAGE = 3.3, 7.0
"""Inches: the widths of a column and of a page of a paper in two columns. Figures are drawn in the size in which they are
printed, so that their letters stay as large as they are here."""

STYLE: dict[Any, Any] = {
    "font.size": 7,  # the least that a journal takes
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "figure.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.93",
    "grid.linewidth": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.6,
    "savefig.dpi": 300,
    "svg.fonttype": "none",  # text that can be searched and edited
    "pdf.fonttype": 42,  # TrueType, which journals ask for, and not matplotlib's Type 3
    "svg.hashsalt": "fedprune",  # the same figure is the same file, byte for byte
}


UNDATED: dict[str, dict[str, str | None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""What keeps the time of writing out of a file."""


def save(figure: Figure, path: Path | str) -> list[Path]:
    """Write the figure to `path` with .png, .svg and .pdf; return all three. The same figure gives the same bytes."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # else it tells of each table of a font that a PDF leaves out
    path = Path(path)
    name = path.stem if path.suffix in SUFFIXES else path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(name + suffix) for suffix in SUFFIXES]
    with matplotlib.rc_context(STYLE):
        for file in files:
            figure.savefig(file, metadata=UNDATED.get(file.suffix, {}))
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
