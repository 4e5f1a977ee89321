"""The picture of the taxonomy: above, the axes with their options; below, a row per method with its option on each axis.

Colours are families: an option has the same colour below and above. Other settings of a method stand below its options in
small. A method that never prunes has only the options that mean something without pruning. All lengths are pixels of a README's
column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from fedprune.analysis.figures.style import STYLE

QUESTIONS = {
    "what": "is pruned",
    "criterion": "by which it is chosen",
    "when": "in the course of training",
    "how_often": "to come to the density",
    "where": "the evidence is measured",
    "whose": "the mask is",
    "rewind": "the survivors to",
}

WIDTH, MARGIN, DPI = 900, 10, 100
QUESTION = 195  # width of the questions above
LINE, GAP = 21, 4  # height of an option; gap between boxes
ROW, HEADER = 33, 32  # heights: of a method, of its part's heading
SIZE, SMALL = 7.3, 6.4  # points
GLYPH = 0.602 * SIZE * DPI / 72  # width of a character of the code font
GREY, RULE = "0.42", "0.85"

UNASKED = ("what", "criterion", "when", "where", "rewind")
"""The axes that mean nothing for a method that never prunes."""

# Pale, so that black is legible. An axis begins with the colour after the last one of the axis before, so neighbours differ.
FILLS = ("#cfe3f5", "#fbd9b5", "#cdeccb", "#f6cfe0", "#e0d5f5", "#fdeea3", "#c3ebe9", "#eadbc8", "#dfe5ea")

Line = list[tuple[float, str, bool]]
"""[(x, text, whether it is an option)]."""

Fills = dict[str, dict[str, str]]
"""{axis: {option: colour}}."""


def draw(facts: Mapping[str, Any]) -> Figure:
    """Draw the figure of `taxonomy_facts.facts()`."""
    fills = _fills(facts["axes"])
    parts = {part: list(methods) for part, methods in groupby(facts["methods"], key=itemgetter("part"))}
    lines = {axis: _lines(families) for axis, families in facts["axes"].items()}
    above = sum(len(of_axis) * LINE + 8 for of_axis in lines.values()) + 4
    height = above + sum(HEADER + ROW * len(methods) for methods in parts.values()) + 2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        axes.set_axis_off()
        _draw_axes(axes, lines, fills, {axis: _used(facts["methods"], axis) for axis in fills})
        _draw_methods(axes, parts, fills, above)
    return figure


def _used(methods: Iterable[Mapping[str, Any]], axis: str) -> set[str]:
    """Return the options of an axis that methods have."""
    return {method["answers"][axis] for method in methods if _asked(method, axis)}


def _asked(method: Mapping[str, Any], axis: str) -> bool:
    return axis not in UNASKED or method["answers"]["how_often"] != "never"


def _fills(axes: Mapping[str, Mapping[str, list[str]]]) -> Fills:
    fills: Fills = {}
    first = 0
    for axis, families in axes.items():
        colours = {family: FILLS[(first + at) % len(FILLS)] for at, family in enumerate(families)}
        fills[axis] = {option: colours[family] for family, options in families.items() for option in options}
        first += len(families)
    return fills


def _lines(families: Mapping[str, list[str]]) -> list[Line]:
    """Return the lines of an axis: (x, text, whether it is an option) of each text. A family comes after its name, if it has
    one."""
    lines: list[Line] = [[]]
    x: float = QUESTION
    for family, options in families.items():
        named = options != [family]
        words = [(family, False)] * named + [(option, True) for option in options]
        for at, (text, is_option) in enumerate(words):
            width = _width(text) if is_option else 0.75 * len(text) * GLYPH + 8  # in italics, which are narrower
            ahead = _width(words[1][0]) if at == 0 and named else 0  # a family's name stays with its first option
            if x + width + ahead > WIDTH - MARGIN:
                lines.append([])
                x = QUESTION
            lines[-1].append((x, text, is_option))
            x += width + GAP
        x += 2 * GAP
    return lines


def _draw_axes(axes: Axes, lines: Mapping[str, list[Line]], fills: Fills, used: Mapping[str, set[str]]) -> None:
    y = 4.0
    for axis, of_axis in lines.items():
        _question(axes, axis, y + LINE / 2)
        for line in of_axis:
            for x, text, is_option in line:
                if is_option:
                    _chip(axes, x, y, _width(text), text, fills[axis][text], text in used[axis])
                else:
                    axes.text(x, y + LINE / 2, text, va="center", fontsize=SMALL, style="italic", color=GREY)
            y += LINE
        y += 4
        axes.axhline(y, MARGIN / WIDTH, 1 - MARGIN / WIDTH, color=RULE, linewidth=0.6)
        y += 4


def _question(axes: Axes, axis: str, y: float) -> None:
    axes.text(MARGIN, y, axis, va="center", fontsize=SIZE + 1, family="DejaVu Sans Mono", weight="bold")
    x = MARGIN + (len(axis) + 1) * GLYPH * (SIZE + 1) / SIZE
    axes.text(x, y, QUESTIONS.get(axis, ""), va="center", fontsize=SMALL, color=GREY)


def _draw_methods(axes: Axes, parts: Mapping[str, list[dict[str, Any]]], fills: Fills, y: float) -> None:
    """Draw the methods under their headings and the axes' names; the columns are as wide as their longest options."""
    columns = _columns(list(chain.from_iterable(parts.values())), list(fills))
    for part, methods in parts.items():
        axes.text(MARGIN, y + 19, part, va="center", fontsize=SIZE, weight="bold", color=GREY)
        for axis, (x, _) in columns.items():
            axes.text(x + 5, y + 19, axis, va="center", fontsize=SIZE, family="DejaVu Sans Mono", weight="bold", color=GREY)
        y += HEADER
        for method in methods:
            _row(axes, method, columns, fills, y)
            y += ROW


def _columns(methods: list[dict[str, Any]], names: list[str]) -> dict[str, tuple[float, float]]:
    """Return (x, width) of the column of each axis."""
    longest = {axis: max(map(len, [axis, *(m["answers"][axis] for m in methods if _asked(m, axis))])) for axis in names}
    x = MARGIN + max(len(method["name"]) for method in methods) * GLYPH + 8
    spare = (WIDTH - MARGIN - x - sum(longest.values()) * GLYPH) / len(longest)
    columns = {}
    for axis, glyphs in longest.items():
        columns[axis] = (x, glyphs * GLYPH + spare - GAP)
        x += glyphs * GLYPH + spare
    return columns


def _row(axes: Axes, method: Mapping[str, Any], columns: Mapping[str, tuple[float, float]], fills: Fills, y: float) -> None:
    """Draw a method's name and paper, its options, and its other settings in small: in place of options, if it never prunes."""
    axes.text(MARGIN, y + LINE / 2, method["name"], va="center", fontsize=SIZE, family="DejaVu Sans Mono", weight="bold")
    axes.text(MARGIN, y + 24, method["paper"], va="center", fontsize=SMALL, color=GREY)
    for axis, (x, width) in columns.items():
        if _asked(method, axis):
            _chip(axes, x, y, width, method["answers"][axis], fills[axis][method["answers"][axis]], True)
    asked = _asked(method, "what")
    besides = ", ".join(method["with"]) or ("" if asked else "a dense network")
    x, below = columns["what"][0], y + 26 if asked else y + LINE / 2
    axes.text(x + 5, below, besides, va="center", fontsize=SMALL, family="DejaVu Sans Mono", color=GREY)


def _chip(axes: Axes, x: float, y: float, width: float, text: str, fill: str, used: bool) -> None:
    """Draw an option in its box, which is only outlined if no method has it."""
    face, colour = (fill, "black") if used else ("white", "0.3")
    style = "round,pad=2,rounding_size=3"
    corner, inside = (x + 2, y + 4), LINE - 7
    axes.add_patch(FancyBboxPatch(corner, width - 4, inside, style, facecolor=face, edgecolor=fill, linewidth=0.9))
    axes.text(x + 5, y + LINE / 2 + 0.5, text, va="center", fontsize=SIZE, family="DejaVu Sans Mono", color=colour)


def _width(text: str) -> float:
    return len(text) * GLYPH + 10
