"""Sparse training: what is kept by hand, the three passes against slow loops, what moves, and which network is in use."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from fedprune.errors import ConfigError
from fedprune.local.module import LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import in_use, none, regularised
from fedprune.local.regularisers.swat import swat, top, used
from fedprune.local.train import fit
from fedprune.types import Subnet


def greatest(values: np.ndarray, density: float) -> np.ndarray:
    """The entries of greatest magnitude, by sorting all of them."""
    keep = int(np.floor(density * values.size + 0.5))
    order = sorted(range(values.size), key=lambda place: -abs(values.flat[place]))
    kept = np.zeros_like(values)
    for place in order[:keep]:
        kept.flat[place] = values.flat[place]
    return kept


def test_the_greatest_by_hand():
    values = torch.tensor([[1.0, -4.0, 2.0], [0.5, 3.0, -0.1]])
    assert top(values, 0.5).tolist() == [[0, -4, 2], [0, 3, 0]]
    assert top(values, 0.25).tolist() == [[0, -4, 0], [0, 3, 0]]  # 1.5 entries: 2
    assert top(values, 0.05).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert top(values, 1.0).tolist() == values.tolist()
    assert top(torch.tensor([1.0, -2.0, 2.0, 0.0, 2.0]), 0.4).tolist() == [0, -2, 2, 0, 0]  # of ties the first
    np.testing.assert_array_equal(top(values, 0.7).numpy(), greatest(values.numpy(), 0.7))


# --- against slow loops ----------------------------------------------------------------------------------------------------


def under(net: nn.Sequential, density: float, inputs: torch.Tensor, upstream: torch.Tensor):
    """(outputs, gradients by inputs and parameters) of a training step of a one-layer network, given those by its outputs."""
    inputs = inputs.clone().requires_grad_()
    with regularised(net, {"0.weight": torch.ones_like(net[0].weight, dtype=torch.bool)}, [swat(density)], 1):
        outputs = net(inputs)
    outputs.backward(upstream)
    return outputs.detach().numpy(), inputs.grad.numpy(), {n: p.grad.numpy() for n, p in net.named_parameters()}


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_against_a_slow_loop(density, bias):
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 3, bias=bias))
    x, g = torch.randn(4, 5, generator=generator), torch.randn(4, 3, generator=generator)
    out, by_x, by = under(net, density, x, g)
    w, b = net[0].weight.detach().numpy(), net[0].bias.detach().numpy() if bias else np.zeros(3)
    x, g = x.numpy(), g.numpy()
    ws, xs = greatest(w, density), greatest(x, density)
    expected, dx, dw = np.zeros((4, 3)) + b, np.zeros((4, 5)), np.zeros((3, 5))
    for n, o, i in itertools.product(range(4), range(3), range(5)):
        expected[n, o] += ws[o, i] * x[n, i]  # all inputs
        dx[n, i] += ws[o, i] * g[n, o]  # sparse weights
        dw[o, i] += g[n, o] * xs[n, i]  # sparse inputs
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(by_x, dx, atol=1e-5)
    np.testing.assert_allclose(by["0.weight"], dw, atol=1e-5)
    assert not bias or np.allclose(by["0.bias"], g.sum(0), atol=1e-5)


@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 1, 1), (1, 2, 2)])
def test_a_convolution_against_a_slow_loop(density, stride, padding, groups):
    generator = torch.Generator().manual_seed(4)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, stride=stride, padding=padding, groups=groups))
    x = torch.randn(2, 2, 5, 5, generator=generator)
    g = torch.randn(net(x).shape, generator=generator)
    out, by_x, by = under(net, density, x, g)
    w, b, x, g = net[0].weight.detach().numpy(), net[0].bias.detach().numpy(), x.numpy(), g.numpy()
    ws, xs = greatest(w, density), greatest(x, density)
    pad = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    x, xs = np.pad(x, pad), np.pad(xs, pad)
    expected, dx, dw = np.zeros(g.shape) + b[:, None, None], np.zeros(x.shape), np.zeros(w.shape)
    outputs, ins = (range(size) for size in (4, 2 // groups))
    for n, o, r, c in np.ndindex(g.shape):
        for i, kr, kc in itertools.product(ins, range(3), range(3)):
            channel = i + (o // (len(outputs) // groups)) * len(ins)
            place = (n, channel, r * stride + kr, c * stride + kc)
            expected[n, o, r, c] += ws[o, i, kr, kc] * x[place]
            dx[place] += ws[o, i, kr, kc] * g[n, o, r, c]
            dw[o, i, kr, kc] += xs[place] * g[n, o, r, c]
    inner = slice(padding, -padding or None)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(by_x, dx[:, :, inner, inner], atol=1e-5)
    np.testing.assert_allclose(by["0.weight"], dw, atol=1e-5)
    np.testing.assert_allclose(by["0.bias"], g.sum((0, 2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    "net", [nn.Linear(6, 4), nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")], ids=["linear", "conv"]
)
def test_at_density_1_it_is_the_layer_as_it_is(net):
    torch.manual_seed(0)
    inputs = torch.randn(3, 6) if isinstance(net, nn.Linear) else torch.randn(3, 2, 5, 5)
    plain = inputs.clone().requires_grad_()
    net(plain).square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.zero_grad()
    outputs, by_x, by = under(nn.Sequential(net), 1.0, inputs, 2 * net(inputs).detach())
    np.testing.assert_allclose(outputs, net(inputs).detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(by_x, plain.grad.numpy(), atol=1e-5)
    assert all(np.allclose(by[f"0.{name}"], gradient.numpy(), atol=1e-5) for name, gradient in gradients.items())


# --- in training -----------------------------------------------------------------------------------------------------------


def mlp() -> LocalModule:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return LocalModule(net, lambda parameters: torch.optim.SGD(parameters, lr=0.1))


def trained(density: float, alive: dict[str, torch.Tensor]) -> tuple[Subnet, dict[str, torch.Tensor]]:
    module, option = mlp(), swat(density)
    params = {name: tensor.clone() for name, tensor in module.net.state_dict().items()}
    sent = Subnet({n: t * alive[n] if n in alive else t for n, t in params.items()}, alive)
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(4)]
    with regularised(module.net, alive, [option], 1) as term:
        return sent, fit(module, sent, batches, Recipe(), penalty=term).params


def test_weights_without_a_say_move_too_and_the_dead_stay_dead():
    whole = {"0.weight": torch.ones(8, 6, dtype=torch.bool), "2.weight": torch.ones(3, 8, dtype=torch.bool)}
    sent, after = trained(0.3, whole)
    for name, params in sent.params.items():
        outside = top(params, 0.3) == 0  # those without a say in the outputs move as well, where anything reaches them
        moved = after[name] != params
        assert float(moved[outside].float().mean()) > 0.4
    holes = {"0.weight": torch.rand(8, 6) < 0.5, "2.weight": whole["2.weight"]}
    _, after = trained(0.3, holes)
    assert not after["0.weight"][~holes["0.weight"]].any()


def test_a_layer_that_is_not_prunable_runs_as_always():
    module = mlp()
    only = {"2.weight": torch.ones(3, 8, dtype=torch.bool)}
    with regularised(module.net, only, [swat(0.5)], 1):
        assert "forward" not in module.net[0].__dict__ and "forward" in module.net[2].__dict__
    assert "forward" not in module.net[2].__dict__


def test_the_network_in_use_is_the_one_of_the_forward_pass():
    module, option, inputs = mlp(), swat(0.4), torch.randn(5, 6)
    alive = {name: torch.ones_like(t, dtype=torch.bool) for name, t in module.net.state_dict().items() if "weight" in name}
    params = dict(module.net.state_dict())
    with torch.no_grad(), regularised(module.net, alive, [option], 1):
        seen = module.net(inputs)
    net = mlp().net
    net.load_state_dict(in_use(params, tuple(alive), [none(), option]))
    torch.testing.assert_close(net(inputs).detach(), seen)
    assert not torch.allclose(module.net(inputs), seen)
    assert in_use(params, tuple(alive), [none()]) is params
    assert torch.equal(used(params, ["0.weight"], 0.4)["2.weight"], params["2.weight"])


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1])
def test_a_density_out_of_range_is_refused(density):
    with pytest.raises(ConfigError, match=r"local\.dropout\.density=.* is the fraction kept"):
        swat(density)
