"""A prune event of whole units says which layers have lost some, and warns of bottlenecks."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import filters, weights
from fedprune.running.widths import tell_widths


def axis(unit=filters):
    net = nn.Sequential(nn.Conv2d(1, 40, 3), nn.Conv2d(40, 40, 3), nn.Conv2d(40, 20, 3), nn.Conv2d(20, 9, 3))
    what = What(unit, globally, layers=("conv",)).bind(net)
    ones = {name: torch.ones_like(net.get_parameter(name), dtype=torch.bool) for name in what.names}
    return what, ones, what.units({name: net.get_parameter(name) for name in what.names})


@pytest.mark.parametrize(("left", "warned"), [(2, True), (4, False)])
def test_a_bottleneck_is_warned_of(left, warned, caplog):
    """30 + 2 + 20 of 100 filters are left, 52 %. 2 of 40 are less than a tenth, and less than half of that; 4 are a tenth."""
    what, before, whole = axis()
    after = {name: alive.clone() for name, alive in before.items()}
    after["0.weight"][30:], after["1.weight"][left:] = False, False
    with caplog.at_level(logging.WARNING):
        assert tell_widths(what, before, after, whole) == f"pruned: 0 40 -> 30, 1 40 -> {left}"
    assert ("few units are left of 1 (2 of 40), while 52 % of all are" in caplog.text) is warned


def test_without_an_event_or_with_single_weights_nothing_is_said():
    what, before, whole = axis()
    assert tell_widths(what, before, before, whole) is None
    assert tell_widths(what, before, {name: alive.clone() for name, alive in before.items()}, whole) is None
    what, before, whole = axis(weights)
    assert tell_widths(what, before, {name: torch.zeros_like(alive) for name, alive in before.items()}, whole) is None
