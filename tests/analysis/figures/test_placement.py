"""Labels find a free place, the nearest."""

from __future__ import annotations

import pytest

from fedprune.analysis.figures.placement import GAPS, Box, gap_between, nearest, place

PANEL = Box(50, 50, 50, 50)


def test_a_gap_is_between_edges():
    # Half widths 2 and 1, 6 apart in x: 3 between; in y 4 apart with half heights 1 and 1: 2 between; sqrt(9 + 4).
    assert gap_between(Box(0, 0, 2, 1), Box(6, 4, 1, 1)) == pytest.approx(13**0.5)
    assert gap_between(Box(0, 0, 2, 1), Box(6, 0, 1, 1)) == 3
    assert gap_between(Box(0, 0, 2, 1), Box(2, 1, 1, 1)) == 0


def test_a_lone_label_is_beside_its_point():
    point = Box(50, 50, 2, 2)
    (label,) = place([point], [], [(5, 3)], PANEL)
    assert not label.overlaps(point)
    assert gap_between(label, point) <= GAPS[0]


def test_a_label_stays_in_the_panel_and_off_other_points_and_labels():
    points = [Box(97, 97, 2, 2), Box(92, 97, 2, 2), Box(97, 92, 2, 2)]
    labels = place(points, [], [(5, 3)] * 3, PANEL)
    for number, label in enumerate(labels):
        assert label.inside(PANEL)
        assert not any(label.overlaps(other) for other in (*points, *labels[:number]))


def test_a_label_on_a_bar_gives_way_if_that_is_near():
    point, bar = Box(50, 50, 2, 2), Box(50, 50, 0.5, 40)
    (label,) = place([point], [bar], [(5, 3)], PANEL)
    assert not label.overlaps(bar)


def test_the_line_to_a_point_begins_at_the_nearest_place_of_the_label_and_crosses_no_other_label():
    assert nearest(Box(10, 10, 5, 3), Box(7, 0, 1, 1)) == (7, 7)
    assert nearest(Box(10, 10, 5, 3), Box(20, 10, 1, 1)) == (15, 10)
    # Two points over each other at the right edge: the long label of the lower one may not hang over the upper one's line.
    points = [Box(50, 50, 2, 2), Box(50, 45, 2, 2)]
    first, second = place(points, [], [(20, 3), (20, 3)], PANEL)
    x, y = nearest(second, points[1])
    steps = [Box(x + (50 - x) * step / 9, y + (45 - y) * step / 9, 0, 0) for step in range(10)]
    assert not any(first.overlaps(step) for step in steps)
