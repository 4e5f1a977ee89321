"""Operations counted by hand; networks are timed in turn, on one thread."""

from __future__ import annotations

import torch
from torch import nn

from fedprune.ticket.measure import forward_flops, latencies, parameters, table

NET = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)).eval()
SMALL = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5)).eval()
EXAMPLE = torch.zeros(1, 1, 4, 4)


def test_sizes_are_those_worked_out_by_hand():
    """A 4x4 image gives 2x2 places. Convolution: 2 filters x 4 places x 9 products = 72 multiply-adds; linear: 8 x 5 = 40.
    Together 112, and 224 operations. Parameters: 2 x 9 + 2 + 8 x 5 + 5 = 65."""
    assert forward_flops(NET, EXAMPLE) == 224 and parameters(NET) == 65
    assert forward_flops(SMALL, EXAMPLE) == 112 and parameters(SMALL) == 1 * 9 + 1 + 4 * 5 + 5


def test_networks_take_turns_on_one_thread():
    threads, order = torch.get_num_threads(), []

    def noted(name):
        def note(module, inputs, outputs):
            order.append((name, len(inputs[0]), torch.get_num_threads()))

        return note

    nets = [nn.Identity(), nn.Identity()]
    for name, net in zip("ab", nets, strict=True):
        net.register_forward_hook(noted(name))
    first, second = latencies(nets, EXAMPLE, 64)
    assert 0 < first.low <= first.median <= first.high and second.median > 0 and torch.get_num_threads() == threads
    assert order[:4] == [("a", 64, 1), ("b", 64, 1), ("a", 64, 1), ("b", 64, 1)] and order[-1][0] == "b"


def test_the_table_has_a_ratio_for_two():
    lines = table([NET, SMALL], EXAMPLE).splitlines()
    assert lines[0].split() == ["dense", "small", "small", "/", "dense"]
    assert lines[1].split() == ["parameters", "65", "35", "0.54"] and lines[2].split()[-1] == "0.50"
    assert lines[3].startswith("batch of 1 ") and lines[4].startswith("batch of 64")
    assert " ms (" in lines[4] and lines[5].startswith("times: the median")
    assert len(table([NET], EXAMPLE).splitlines()) == 5
