"""Dropout that prepares for pruning: rates and targets by hand, moments of the noise, the divergence against an integral."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch import nn

from fedprune.errors import ConfigError
from fedprune.local.regularisers.base import add_companions, regularised
from fedprune.local.regularisers.dropout import adjusted, adjusted_rates, divergence, smallest, targeted, variational


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


class Conv(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="reflect"), nn.Flatten(), nn.Linear(12, 3))


def ones(net: nn.Module, names) -> dict[str, torch.Tensor]:
    return {name: torch.ones(net.get_parameter(name).shape, dtype=torch.bool) for name in names}


def under(net: nn.Module, mask, option, inputs: torch.Tensor) -> torch.Tensor:
    add_companions(net, tuple(mask), [option], torch.Generator())
    with torch.no_grad(), regularised(net, mask, [option], 10):
        return net(inputs)


# --- adjusted --------------------------------------------------------------------------------------------------------------


def test_adjusted_rates_by_hand():
    # 20 connections in layer 0, 5 of them alive: 0.4 sqrt(5 / 20) = 0.2 before layer 2; 30 in layer 2, all alive: 0.4 before
    # layer 4. Before layer 0 are the inputs, which are not dropped.
    net = mlp()
    mask = ones(net, ["0.weight", "2.weight", "4.weight"])
    mask["0.weight"].view(-1)[5:] = False
    assert adjusted_rates(net, mask, 0.4) == {"2": pytest.approx(0.2), "4": pytest.approx(0.4)}


def test_a_layer_that_may_not_be_pruned_counts_as_dense():
    net = mlp()
    assert adjusted_rates(net, ones(net, ["2.weight"]), 0.5) == {"2": 0.5, "4": 0.5}


def test_a_convolution_drops_nothing_but_what_it_gives_to_a_linear_layer_is_dropped():
    net = Conv()
    assert adjusted_rates(net, ones(net, ["0.weight", "2.weight"]), 0.5) == {"2": 0.5}


def test_a_linear_layer_sees_its_inputs_dropped_at_the_rate_and_scaled_up():
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1000, 1, bias=False))
    net[1].weight.data.fill_(1.0)
    layer, inputs = net[1], torch.ones(200, 1000)
    with torch.no_grad(), regularised(net, ones(net, ["0.weight", "1.weight"]), [adjusted(0.25)], 10):
        outputs = layer(inputs) / 1000
    # The mean of 1000 inputs, each 4/3 with probability 3/4: 1, with standard deviation sqrt(1/3 / 1000) = 0.018.
    assert float(outputs.mean()) == pytest.approx(1, abs=0.01)
    assert float(outputs.std()) == pytest.approx(math.sqrt(1 / 3000), rel=0.2)


# --- targeted --------------------------------------------------------------------------------------------------------------


def test_the_smallest_of_each_row_by_hand():
    weight = torch.tensor([[1.0, -4.0, 2.0, 3.0], [0.0, 9.0, 0.0, -8.0]])
    assert smallest(weight, 0.5).tolist() == [[True, False, True, False], [True, False, True, False]]
    assert smallest(weight, 0.25)[0].tolist() == [True, False, False, False]
    assert not smallest(weight, 0.0).any() and smallest(weight, 1.0).all()


def test_a_row_is_all_that_makes_one_output():
    torch.manual_seed(0)
    weight = torch.randn(4, 2, 3, 3)
    found = smallest(weight, 1 / 3)
    assert found.flatten(1).sum(1).tolist() == [6] * 4
    for row, chosen in zip(weight.flatten(1).abs(), found.flatten(1), strict=True):
        assert row[chosen].max() < row[~chosen].min()


@pytest.mark.parametrize("make_net", [mlp, Conv])
def test_dropped_for_certain_is_the_network_without_them(make_net):
    net = make_net()
    mask = ones(net, [name for name, p in net.named_parameters() if p.dim() > 1])
    inputs = torch.randn(5, 2, 4, 4) if make_net is Conv else torch.randn(5, 4)
    found = under(net, mask, targeted(0.5, 1.0), inputs)
    with torch.no_grad():
        for name in mask:
            net.get_parameter(name)[smallest(net.get_parameter(name), 0.5)] = 0
    torch.testing.assert_close(found, net(inputs).detach())


def test_a_targeted_weight_is_dropped_at_its_probability_and_not_scaled():
    net = nn.Sequential(nn.Linear(10_000, 1, bias=False))
    net[0].weight.data.fill_(1.0)
    kept = float(under(net, ones(net, ["0.weight"]), targeted(0.5, 0.3), torch.ones(1, 10_000)))
    assert kept == pytest.approx(5000 + 5000 * 0.7, abs=150)  # 3 standard deviations are 137


def test_where_enough_is_dead_nothing_more_is_dropped():
    net = mlp()
    mask = ones(net, ["0.weight"])
    mask["0.weight"][:, :2] = False
    net[0].weight.data.mul_(mask["0.weight"])
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(under(net, mask, targeted(0.5, 1.0), inputs), net(inputs).detach())


def test_a_dropped_weight_has_no_gradient():
    net = nn.Sequential(nn.Linear(4, 1, bias=False))
    net[0].weight.data.copy_(torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    with regularised(net, ones(net, ["0.weight"]), [targeted(0.5, 1.0)], 10):
        net(torch.ones(1, 4)).sum().backward()
    assert net[0].weight.grad.tolist() == [[0, 1, 0, 1]]


# --- variational -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_net", [mlp, Conv])
def test_a_layers_noise_has_the_moments_of_noise_on_its_weights(make_net):
    net, option = make_net(), variational(1.0, -2.0)
    weight = net[0].weight
    mask = {"0.weight": torch.rand(weight.shape) < 0.6}
    with torch.no_grad():
        weight.mul_(mask["0.weight"])
    one = torch.randn(1, 2, 4, 4) if make_net is Conv else torch.randn(1, 4)
    add_companions(net, ("0.weight",), [option], torch.Generator())
    with torch.no_grad():
        net[0].weight_log_sigma2.uniform_(-3, 0)
        mean = net[0](one)
        with regularised(net, mask, [option], 10):
            layers = net[0](one.expand(20_000, *one.shape[1:]))
        sigma = (net[0].weight_log_sigma2 / 2).exp() * mask["0.weight"]
        kept = weight.detach().clone()
        draws = []
        for _ in range(4000):  # a draw of all weights for each
            weight.copy_(kept + sigma * torch.randn_like(sigma))
            draws.append(net[0](one))
        weight.copy_(kept)
    torch.testing.assert_close(layers.mean(0, keepdim=True), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(layers.std(0), torch.cat(draws).std(0), atol=0.03, rtol=0.06)


def test_where_all_is_dead_there_is_no_noise_to_speak_of():
    net, option = mlp(), variational(1.0, 3.0)
    mask = {"0.weight": torch.zeros(5, 4, dtype=torch.bool)}
    net[0].weight.data.zero_()
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(under(net, mask, option, inputs), net(inputs).detach(), atol=2e-3, rtol=0)


def test_the_divergence_by_hand():
    # alpha = 1: log alpha = 0, KL = K1 - K1 sigmoid(K2) + log(2) / 2; sigmoid(1.87320) = 0.866834, so
    # 0.63576 (1 - 0.866834) + 0.346574 = 0.431236. Two of them, of which one is dead, over 4 examples.
    weights, variances = {"a": torch.tensor([2.0, 2.0])}, {"a": torch.tensor([4.0, 4.0]).log()}
    found = divergence(weights, variances, {"a": torch.tensor([1.0, 0.0])}, 4)
    assert float(found) == pytest.approx(0.431236 / 4, abs=1e-6)


def test_the_divergence_is_that_from_the_log_uniform_prior_up_to_a_constant():
    # -KL = log(alpha) / 2 - E log |1 + sqrt(alpha) e| + const, e standard normal: by the trapezoidal rule, away from the pole.
    e = np.linspace(-9, 9, 2_000_001) + 1e-7
    density = np.exp(-(e**2) / 2) / np.sqrt(2 * np.pi)

    def exact(log_alpha: float) -> float:
        return float(trapezoid(density * np.log(np.abs(1 + np.exp(log_alpha / 2) * e)), e)) - log_alpha / 2

    def approximate(log_alpha: float) -> float:
        w = {"a": torch.ones(1, dtype=torch.float64)}
        return float(divergence(w, {"a": torch.tensor([log_alpha])}, {"a": torch.ones(1)}, 1))

    reference = exact(8.0) - approximate(8.0)
    for log_alpha in (-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 5.0):
        assert approximate(log_alpha) == pytest.approx(exact(log_alpha) - reference, abs=0.02)


def test_gradients_of_the_divergence_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    w, s = (torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    alive = {"a": torch.ones(3, 4)}
    assert torch.autograd.gradcheck(lambda w, s: divergence({"a": w}, {"a": s}, alive, 7), (w, s))


def test_a_weight_of_zero_has_a_finite_gradient():
    w, s = torch.zeros(1, requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    divergence({"a": w}, {"a": s}, {"a": torch.ones(1)}, 1).backward()
    assert bool(w.grad.isfinite().all()) and bool(s.grad.isfinite().all())


# --- what is refused, and what is left behind ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(adjusted, 1.0), "local.dropout.rate=1.0"),
        (partial(adjusted, -0.1), "local.dropout.rate=-0.1"),
        (partial(targeted, 1.5, 0.5), "local.dropout.gamma=1.5"),
        (partial(targeted, 0.5, -0.5), "local.dropout.alpha=-0.5"),
        (partial(variational, -1.0, -5.0), "local.dropout.strength=-1.0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("option", [adjusted(0.5), targeted(0.5, 0.5), variational(1.0, 0.0)])
def test_afterwards_the_network_runs_as_before_even_if_training_fails(option):
    net = mlp()
    mask = ones(net, ["0.weight", "2.weight", "4.weight"])
    add_companions(net, tuple(mask), [option], torch.Generator())
    inputs = torch.randn(5, 4)
    before = net(inputs)
    with pytest.raises(RuntimeError, match="shapes"), regularised(net, mask, [option], 10):
        net(torch.randn(5, 3))
    assert torch.equal(net(inputs), before)
    with regularised(net, mask, [option], 10):
        assert not torch.equal(net(inputs), before)
    assert torch.equal(net(inputs), before)
