"""The figure over methods: the front has names, the others the numbers of a key, and no label covers another."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text

from fedprune.analysis.by_method import DENSE, FIXED, KIND, PERSONAL
from fedprune.analysis.figures.pareto import LOOKS, accuracy_bytes_methods
from fedprune.analysis.read import METHOD
from fedprune.errors import FedpruneError

# method: (kind, accuracy, MB up, MB down)
METHODS = {
    "fedavg": (DENSE, 85.0, 40.0, 40.0),
    "snip": (FIXED, 80.0, 4.0, 6.0),
    "slow": (FIXED, 70.0, 8.0, 8.0),
    "alone": (PERSONAL, 60.0, 0.0, 0.0),
}


def table(**methods: tuple[str, float, float, float]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {"density": density, METHOD: name, KIND: kind, "client accuracy (%)": accuracy, "client accuracy (%) sd": 1.0}
        | {"up (MB)": up, "down (MB)": down}
        for density in (0.1, 0.05)
        for name, (kind, accuracy, up, down) in (methods or METHODS).items()
    ]
    return pd.DataFrame(rows)


def texts(axes: Axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


def test_there_is_a_panel_per_density_and_a_key_with_a_column_per_kind():
    *panels, key = accuracy_bytes_methods(table()).axes
    assert [axes.get_title() for axes in panels] == ["density 0.1", "density 0.05"]
    for axes in panels:
        # `slow` is third of the key: fedavg is 1, snip 2, alone 4. What sends nothing has a line and no point.
        assert texts(axes) == {"fedavg", "snip", "3", "alone: sends nothing"}
        assert axes.get_xscale() == "log"
        assert [f"{x:g}" for x in axes.get_xlim()] != ["0", "1"]
    assert texts(key) == {DENSE, FIXED, PERSONAL, *METHODS, "1", "2", "3", "4"}


def test_kinds_are_told_apart_by_colour_and_by_marker():
    colours, markers = zip(*LOOKS.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(LOOKS)


def test_labels_of_a_crowd_do_not_cover_each_other():
    crowd = {f"m{number}": (FIXED, 80.0 + number % 3 / 5, 5.0 + number / 10, 5.0) for number in range(9)}
    figure = accuracy_bytes_methods(table(fedavg=(DENSE, 90.0, 40.0, 40.0), **crowd))
    figure.draw_without_rendering()  # which moves annotations to their places
    for axes in figure.axes[:2]:
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert len(boxes) == 10
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_nothing_to_draw_is_said():
    with pytest.raises(FedpruneError, match="nothing to draw"):
        accuracy_bytes_methods(table()[:0])
