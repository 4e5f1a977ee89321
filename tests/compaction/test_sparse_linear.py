"""The sparse layer against a dense one under its mask: what it puts out, and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedprune.compaction.sparse_linear import DENSEST, LEAST, SparseLinear, pays, remaining


def both(outputs: int, inputs: int, density: float, seed: int = 0, bias: bool = True, dtype=torch.float64):
    """(a dense layer under a mask, the mask, the sparse layer with the same weights)."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias).to(dtype)
    alive = torch.rand(outputs, inputs, generator=generator) < density
    sparse = SparseLinear(layer, alive)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator) * alive)
        sparse.values.copy_(layer.weight[alive])
    return layer, alive, sparse


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("outputs", "inputs", "batch"), [(5, 7, 3), (1, 40, 1), (30, 20, 33), (4, 4, 128)])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_it_is_the_dense_layer_under_its_mask(density, outputs, inputs, batch, bias):
    layer, alive, sparse = both(outputs, inputs, density, batch, bias)
    x = torch.randn(batch, inputs, dtype=torch.float64)
    more, slopes = torch.randn(outputs, dtype=torch.float64), torch.randn(batch, outputs, dtype=torch.float64)
    mine, its, added, more = (
        x.clone().requires_grad_(),
        x.requires_grad_(),
        more.clone().requires_grad_(),
        more.requires_grad_(),
    )
    expected = layer(its) + more
    found = sparse(mine, added)
    torch.testing.assert_close(found, expected)
    expected.backward(slopes)
    found.backward(slopes)
    torch.testing.assert_close(mine.grad, its.grad)
    torch.testing.assert_close(added.grad, more.grad)
    torch.testing.assert_close(sparse.values.grad, layer.weight.grad[alive])
    if bias:
        assert sparse.bias is layer.bias  # whose gradient is now the sum of two equal ones
        torch.testing.assert_close(sparse.bias.grad, 2 * slopes.sum(0))


def test_derivatives_by_differences():
    _, _, sparse = both(4, 6, 0.4, 1)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, values: sparse.forward(x), (x, sparse.values))


def test_gradients_that_nobody_asks_for_are_not_worked_out():
    _, _, sparse = both(4, 6, 0.4, 2)
    sparse(torch.randn(3, 6, dtype=torch.float64)).sum().backward()
    assert "transposed" not in sparse.structure.__dict__
    assert sparse.values.grad is not None
    sparse.values.requires_grad_(False).grad = None
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    sparse(x).sum().backward()
    assert sparse.values.grad is None
    torch.testing.assert_close(x.grad[0], x.grad[1])


def test_one_after_the_other_with_what_stands_between_and_in_place():
    """Outputs are laid out as columns, and written to."""
    (one, _, first), (two, _, second) = both(6, 5, 0.5, 3), both(3, 6, 0.5, 4)
    x = torch.randn(4, 5, dtype=torch.float64)
    found = second(F.relu(first(x), inplace=True))
    torch.testing.assert_close(found, two(F.relu(one(x))))
    found.sum().backward()


def test_by_hand():
    """[[2, 0], [0, 0], [3, 4]] (1, 10) = (2, 0, 43), plus the biases."""
    layer = nn.Linear(2, 3)
    sparse = SparseLinear(layer, torch.tensor([[1, 0], [0, 0], [1, 1]], dtype=torch.bool))
    assert sparse.structure.columns.tolist() == [0, 0, 1]
    assert sparse.structure.begins.tolist() == [0, 1, 1, 3]
    assert [part.tolist() for part in sparse.structure.transposed] == [[0, 2, 2], [0, 2, 3], [0, 1, 2]]
    with torch.no_grad():
        sparse.values.copy_(torch.tensor([2.0, 3.0, 4.0]))
        layer.bias.copy_(torch.tensor([0.5, 1.0, 0.0]))
    assert sparse(torch.tensor([[1.0, 10.0]])).tolist() == [[2.5, 1.0, 43.0]]


def test_whether_it_pays():
    assert pays(DENSEST, int(LEAST), 1)
    assert not pays(DENSEST + 0.01, int(LEAST), 1)
    assert pays(0.05, 784 * 300, 32)
    assert not pays(0.05, 300 * 100, 32)
    assert 0 < remaining(0.0) < remaining(DENSEST) < 1
