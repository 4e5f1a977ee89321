"""The legend below the panels of a figure, in as many columns as there is room for."""

from __future__ import annotations

import textwrap
from math import ceil

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from fedprune.analysis.figures.style import STYLE

POINTS = 72
"""Points in an inch."""

LINE, HANDLE, LETTER = 0.155, 0.48, 0.06
"""Inches: the height of a line of the legend; the width of an entry beside its text; the mean width of a letter."""


def beneath(figure: Figure, entries: list[Line2D], left_out: int = 0) -> None:
    """Write a legend below the panels, and make the figure higher by as much; nothing where there are no entries.

    Labels that are wider than the figure are broken into lines. left_out: how many lines are not drawn, which a title says.
    """
    if not entries:
        return
    width = figure.get_figwidth()
    for entry in entries:
        entry.set_label(textwrap.fill(str(entry.get_label()), int((width - HANDLE) / LETTER), break_long_words=True))
    texts = [str(entry.get_label()) for entry in entries]
    columns = max(1, min(len(entries), int(width / max(HANDLE + _width(text) for text in texts))))
    lines = ceil(len(entries) / columns) * max(text.count("\n") + 1 for text in texts) + bool(left_out)
    figure.set_figheight(figure.get_figheight() + LINE * lines)
    title = f"the best lines; {left_out} more are in the table" if left_out else None
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, title=title, columnspacing=1)


def _width(text: str) -> float:
    """Return the width of a text in a legend, in inches."""
    font = FontProperties(size=STYLE["legend.fontsize"])
    return max(float(TextPath((0, 0), line, prop=font).get_extents().width) for line in text.splitlines()) / POINTS
