"""Places for the labels of points, so that no label covers a point or another label. All lengths are in one unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GAPS = (0.5, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0, 36.0)
"""Distances between the edges of a label and of its point that are tried."""

DIRECTIONS = 24
"""Directions that are tried at each distance."""

OUTSIDE, ON_POINT, ON_LABEL, ON_BAR, CROSSED, NEAR = 1e4, 2e3, 2e3, 20.0, 60.0, 15.0
"""The price of a label beyond the panel, on a point, on another label, on the bar of a point; of each point or label that the
line to its own point crosses; and of each other point from which it is less than CLEAR away. The gap costs its length."""

CLEAR = 2.5

STEPS = 12
"""The number of places at which it is seen what a line crosses."""


@dataclass(frozen=True)
class Box:
    """A rectangle by its centre and its half width and half height."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Box) -> bool:
        """Return whether two rectangles have an area in common."""
        apart_x, apart_y = abs(self.x - other.x), abs(self.y - other.y)
        return apart_x < self.width + other.width and apart_y < self.height + other.height

    def inside(self, other: Box) -> bool:
        """Return whether this rectangle lies within the other."""
        fits_x = abs(self.x - other.x) + self.width <= other.width
        return fits_x and abs(self.y - other.y) + self.height <= other.height


def place(points: Sequence[Box], bars: Sequence[Box], labels: Sequence[tuple[float, float]], panel: Box) -> list[Box]:
    """Return a rectangle for the label of each point, cheapest first come: earlier labels are placed before later ones.

    points, bars: the rectangles of markers and of their bars. labels: half width and half height of each label.
    """
    placed: list[Box] = []
    for point, half in zip(points, labels, strict=True):
        placed.append(min(_candidates(point, *half), key=lambda label: _price(label, point, points, bars, placed, panel)))
    return placed


def nearest(label: Box, point: Box) -> tuple[float, float]:
    """Return the place of a label that is nearest to the middle of its point: where the line to it begins."""
    x = min(max(point.x, label.x - label.width), label.x + label.width)
    return x, min(max(point.y, label.y - label.height), label.y + label.height)


def gap_between(label: Box, point: Box) -> float:
    """Return the distance between the edges of two rectangles; 0 if they overlap."""
    apart_x = abs(label.x - point.x) - label.width - point.width
    apart_y = abs(label.y - point.y) - label.height - point.height
    return math.hypot(max(apart_x, 0), max(apart_y, 0))


def _candidates(point: Box, width: float, height: float) -> list[Box]:
    found = []
    for gap in GAPS:
        for step in range(DIRECTIONS):
            angle = math.pi / 4 + 2 * math.pi * step / DIRECTIONS  # of equals the first is taken: to the upper right
            x = point.x + math.cos(angle) * (point.width + width + gap)
            found.append(Box(x, point.y + math.sin(angle) * (point.height + height + gap), width, height))
    return found


def _price(label: Box, point: Box, points: Sequence[Box], bars: Sequence[Box], placed: Sequence[Box], panel: Box) -> float:
    price = gap_between(label, point)
    price += OUTSIDE * (not label.inside(panel))
    price += ON_POINT * sum(map(label.overlaps, points)) + ON_LABEL * sum(map(label.overlaps, placed))
    price += ON_BAR * sum(map(label.overlaps, bars))
    others = [other for other in points if other is not point]
    price += NEAR * sum(gap_between(label, other) < CLEAR for other in others)
    return price + CROSSED * _crossed(nearest(label, point), (point.x, point.y), [*others, *placed])


def _crossed(begin: tuple[float, float], end: tuple[float, float], boxes: Sequence[Box]) -> int:
    """Return how many of the rectangles a line crosses."""
    shares = [step / STEPS for step in range(STEPS + 1)]
    dots = [Box(begin[0] + (end[0] - begin[0]) * share, begin[1] + (end[1] - begin[1]) * share, 0, 0) for share in shares]
    return sum(any(map(box.overlaps, dots)) for box in boxes)
