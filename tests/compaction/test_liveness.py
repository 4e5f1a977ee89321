"""Parts: by hand on a chain, and on random masks against derivatives of a network in which nothing can cancel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedprune.compaction.fx_graph import channel_graph
from fedprune.compaction.liveness import Parts, divide, matrices, saved
from fedprune.models.cnn import cnn_small


def chain(norm: bool = False) -> nn.Sequential:
    """2 -> 4 units -> 3 units -> 2."""
    norms = [nn.BatchNorm1d(4)] if norm else []
    return nn.Sequential(nn.Linear(2, 4), *norms, nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def parts(net: nn.Module, shape: tuple[int, ...], mask: dict, tracked: bool = True) -> Parts:
    wired = channel_graph(net, shape)
    return divide(wired, matrices(wired, mask), tracked)


def numbers(part: torch.Tensor) -> list[int]:
    return part.nonzero().flatten().tolist()


FIRST = [[1, 0], [0, 0], [1, 1], [0, 0]]  # rows 1 and 3 are dead
SECOND = [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]  # nobody reads unit 2; row 1 reads a constant alone; so does row 2
LAST = [[1, 1, 0], [1, 0, 0]]  # nobody reads row 2 of SECOND


def masks(second: str) -> dict:
    rows = {"0.weight": FIRST, second: SECOND, f"{int(second[0]) + 2}.weight": LAST}
    return {name: torch.tensor(row, dtype=torch.bool) for name, row in rows.items()}


def test_parts_by_hand():
    """Units 0-3 of the first layer, 4-6 of the second, 7-8 put out, 9 for what is none."""
    live, constant, idle = map(numbers, parts(chain(), (2,), masks("2.weight")))
    assert live == [0, 4, 7, 8, 9]
    assert constant == [1, 5]  # 1: a dead row, which rows 0 and 1 read; 5: reads only that
    assert idle == [2, 3, 6]  # 2: nobody reads it; 3: only 6 does, and nobody reads 6


def test_batchnorm_in_training_learns_of_what_nobody_reads():
    live, constant, idle = map(numbers, parts(chain(norm=True), (2,), masks("3.weight")))
    assert (live, constant, idle) == ([0, 2, 4, 7, 8, 9], [1, 3, 5], [6])
    frozen = parts(chain(norm=True), (2,), masks("3.weight"), tracked=False)
    assert list(map(numbers, frozen)) == [[0, 4, 7, 8, 9], [1, 5], [2, 3, 6]]


def test_before_batchnorm_what_reads_constants_alone_counts_as_reached():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    mask = {"0.weight": torch.tensor([[1, 1], [0, 0]]).bool(), "2.weight": torch.tensor([[1, 0], [0, 1]]).bool()}
    live, constant, _ = map(numbers, parts(net, (2,), mask))
    assert (live, constant) == ([0, 2, 3, 4, 5], [1])
    assert numbers(parts(net, (2,), mask, tracked=False).constant) == [1, 3]


@pytest.mark.parametrize("seed", range(20))
def test_on_random_masks_parts_are_what_derivatives_say(seed):
    """With positive weights, inputs and gradients nothing cancels: a unit is reached if its value depends on the inputs, and
    read if the outputs depend on it."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2))
    mask = {f"{n}.weight": torch.rand(net[n].weight.shape, generator=generator) < 0.3 for n in range(4)}
    x, read = torch.ones(1, 3), []
    for n in range(4):
        unit = upto(mask, x, n).requires_grad_()
        read += torch.autograd.grad(upto(mask, unit, 3, first=n + 1).sum(), unit)[0][0] > 0
    read = torch.stack(read)
    moved = [upto(mask, x + 1, n) - upto(mask, x, n) for n in range(4)]
    reached = torch.cat([change[0] > 0 for change in moved])
    live, constant, idle = parts(net, (3,), mask)
    ends = torch.tensor([False] * 15 + [True] * 2)  # what is put out is there, reached or not
    assert torch.equal(live[:-1], reached & read | ends)
    assert torch.equal(constant[:-1], ~reached & read & ~ends)
    assert torch.equal(idle[:-1], ~read)


def upto(mask: dict, x: torch.Tensor, last: int, first: int = 0) -> torch.Tensor:
    """What layers make of x, their weights and biases 1 where they live."""
    for n in range(first, last + 1):
        x = x @ mask[f"{n}.weight"].float().T + 1.0
    return x


def test_products_that_are_saved_are_counted_by_eights():
    """cnn_small on 16 x 16: 10 and 20 channels count as 16 and 24, 50 units as 56."""
    wired = channel_graph(net := cnn_small((1, 16, 16), 10), (1, 16, 16))
    mask = {f"{name}.weight": torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in net.named_children()}
    mask["conv1.weight"][:3] = False  # 7 are left, which count as 8: half
    mask["fc1.weight"][:10] = False  # 40 of 56
    conv1, conv2 = 10 * 25 * 144, 10 * 20 * 25 * 4
    fc1, fc2 = 20 * 50, 50 * 10
    expected = (conv1 + conv2) / 2 + (fc1 + fc2) * 16 / 56
    assert saved(wired, divide(wired, matrices(wired, mask), True), {"fc1": 0.5}) == pytest.approx(expected + 20 * 50 * 20 / 56)
    assert saved(wired, divide(wired, matrices(wired, mask), True), {}) == pytest.approx(expected)
