"""The picture of taxonomy.py's facts: above, the axes with their options; below, a row per method with its answer on each axis.

Colours are families: an answer below has the colour of its option above. All lengths are pixels of a README's column.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from fedprune.analysis.figures import STYLE

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
QUESTION, METHOD = 195, 162  # widths: of the questions above, of the methods' names below
LINE, ROW, GAP = 21, 30, 4  # heights: of an option, of a method; and the gap between boxes
PARTS = ("papers it started from", "and further ones")
SIZE, SMALL = 7.6, 6.6  # points
GLYPH = 0.602 * SIZE * DPI / 72  # width of a character of the code font
GREY, RULE = "0.42", "0.85"

# Pale, so that black is legible on all; an axis begins where the one before ended, so that neighbours differ.
FILLS = ("#cfe3f5", "#fbd9b5", "#cdeccb", "#f6cfe0", "#e0d5f5", "#fdeea3", "#c3ebe9", "#eadbc8", "#dfe5ea")

Fills = dict[str, dict[str, str]]
"""Of each axis and option, its colour."""


def draw(facts: Mapping[str, Any]) -> Figure:
    """The figure of `taxonomy.facts()`."""
    fills = _fills(facts["axes"])
    parts = [[m for m in facts["methods"] if m["founding"]], [m for m in facts["methods"] if not m["founding"]]]
    parts = [part for part in parts if part]
    lines = {axis: _lines(axis, families) for axis, families in facts["axes"].items()}
    above = sum(len(of_axis) * LINE + 8 for of_axis in lines.values())
    height = above + 24 + ROW * sum(map(len, parts)) + 26 * len(parts)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        axes.set_axis_off()
        _draw_axes(axes, lines, fills, {axis: {m["answers"][axis] for m in facts["methods"]} for axis in fills})
        _draw_methods(axes, parts, fills, above + 14)
    return figure


def _fills(axes: Mapping[str, Mapping[str, list[str]]]) -> Fills:
    fills: Fills = {}
    first = 0
    for axis, families in axes.items():
        colours = {family: FILLS[(first + at) % len(FILLS)] for at, family in enumerate(families)}
        fills[axis] = {option: colours[family] for family, options in families.items() for option in options}
        first += len(families)
    return fills


def _lines(axis: str, families: Mapping[str, list[str]]) -> list[list[tuple[float, str, bool]]]:
    """(x, text, whether it is an option) of all that stands on each line of an axis: options, each family after its name."""
    named = any(len(options) > 1 for options in families.values())
    lines: list[list[tuple[float, str, bool]]] = [[]]
    x: float = QUESTION
    for family, options in families.items():
        words = [(family, False)] * named + [(option, True) for option in options]
        for at, (text, is_option) in enumerate(words):
            width = _width(text) if is_option else 0.75 * len(text) * GLYPH + 6  # in italics, which are narrower
            ahead = _width(words[1][0]) if at == 0 and named else 0  # a family's name stays with its first option
            if x + width + ahead > WIDTH - MARGIN:
                lines.append([])
                x = QUESTION
            lines[-1].append((x, text, is_option))
            x += width + GAP
        x += GAP * named
    return lines


def _draw_axes(axes: Axes, lines: Mapping[str, list], fills: Fills, used: Mapping[str, set[str]]) -> None:
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


def _draw_methods(axes: Axes, parts: list[list[dict[str, Any]]], fills: Fills, y: float) -> None:
    """A header, then the methods part by part; the columns are as wide as their longest answers."""
    methods = list(chain.from_iterable(parts))
    longest = {axis: max(map(len, [axis, *(m["answers"][axis] for m in methods)])) for axis in fills}
    spare = (WIDTH - MARGIN - METHOD - sum(longest.values()) * GLYPH) / len(longest)
    xs, x = {}, float(METHOD)
    for axis, glyphs in longest.items():
        xs[axis], x = x, x + glyphs * GLYPH + spare
    for axis, x in xs.items():
        axes.text(x + 4, y + 8, axis, va="center", fontsize=SIZE, family="DejaVu Sans Mono", weight="bold")
    for part in parts:
        heading = PARTS[0] if part[0]["founding"] else PARTS[1]
        y += 6 * (part is not parts[0])
        axes.text(MARGIN, y + 8, heading, va="center", fontsize=SMALL, color=GREY, style="italic")
        y += 20
        for method in part:
            _label(axes, method, y)
            for axis, x in xs.items():
                answer = method["answers"][axis]
                also = " + ".join(method["with"]) if axis == "when" else ""
                _chip(axes, x, y, longest[axis] * GLYPH + spare - GAP, answer, fills[axis][answer], True, ROW, also)
            y += ROW


def _label(axes: Axes, method: Mapping[str, Any], y: float) -> None:
    axes.text(MARGIN, y + ROW / 2 - 6, method["name"], va="center", fontsize=SIZE, family="DejaVu Sans Mono", weight="bold")
    axes.text(MARGIN, y + ROW / 2 + 7, method["paper"], va="center", fontsize=SMALL - 0.3, color=GREY)


def _chip(
    axes: Axes, x: float, y: float, width: float, text: str, fill: str, used: bool, height: int = LINE, also: str = ""
) -> None:
    """An option in its box, only outlined where no method is there; `also` on a second line."""
    face = fill if used else "white"
    style = "round,pad=2,rounding_size=3"
    corner, inside = (x + 2, y + 4), height - 7
    axes.add_patch(FancyBboxPatch(corner, width - 4, inside, style, facecolor=face, edgecolor=fill, linewidth=0.9))
    middle, colour = y + height / 2 + 0.5, "black" if used else "0.3"
    axes.text(x + 5, middle - 6 * bool(also), text, va="center", fontsize=SIZE, family="DejaVu Sans Mono", color=colour)
    axes.text(x + 5, middle + 6, also, va="center", fontsize=SMALL - 0.3, family="DejaVu Sans Mono", color="0.25")


def _width(text: str) -> float:
    return len(text) * GLYPH + 10
