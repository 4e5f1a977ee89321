"""Companions: what stands beside a weight, what is made of it, and the criteria that read it."""

import math

import pytest
import torch
from torch import nn

from fedprune.pruning.criterion.learnt import hard_concrete, signal_to_noise
from fedprune.pruning.evidence.gates import (
    Companion,
    add,
    fold,
    is_companion,
    log_alpha,
    log_sigma2,
    no_gates,
    no_variance,
    plain,
)
from fedprune.pruning.evidence.network import Network

NAMES = ("0.weight", "2.weight")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


def gated(value: float = 0.5) -> nn.Sequential:
    made = net()
    add(made, NAMES, Companion("log_alpha", value), torch.Generator())
    return made


def test_a_companion_stands_beside_its_weight_in_its_shape_and_all_names_are_as_they_were():
    made = gated()
    assert set(made.state_dict()) - set(net().state_dict()) == {"0.weight_log_alpha", "2.weight_log_alpha"}
    assert made[0].weight_log_alpha.shape == made[0].weight.shape
    assert bool((made[0].weight_log_alpha == 0.5).all())
    assert [name for name, _ in made.named_parameters() if is_companion(name)] == ["0.weight_log_alpha", "2.weight_log_alpha"]
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in net().state_dict().items())


def test_values_are_drawn_around_the_mean_and_follow_the_generator():
    wide = [nn.Sequential(nn.Linear(100, 100)) for _ in range(3)]
    for made, seed in zip(wide, (0, 0, 1), strict=True):
        add(made, ("0.weight",), Companion("log_alpha", 2.0, 0.5), torch.Generator().manual_seed(seed))
    one, again, other = (made[0].weight_log_alpha.detach() for made in wide)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert float(one.mean()) == pytest.approx(2, abs=0.02) and float(one.std()) == pytest.approx(0.5, abs=0.02)


def test_a_forward_pass_does_not_look_at_it():
    x = torch.randn(4, 2)
    assert torch.equal(gated(-9.0)(x), net()(x))


def test_folding_by_hand():
    # Gates without noise: log_alpha = log 3 is 0.8, 0 is 0.5, log 19 is 1, -log 19 is 0 (see test_hard_concrete.py).
    params = {
        "fc.weight": torch.tensor([[10.0, 10.0], [10.0, -10.0]]),
        "fc.weight_log_alpha": torch.tensor([[math.log(3), 0.0], [math.log(19), -math.log(19)]]),
        "fc.bias": torch.tensor([1.0, 2.0]),
    }
    before = {name: tensor.clone() for name, tensor in params.items()}
    folded = fold(params)
    torch.testing.assert_close(folded["fc.weight"], torch.tensor([[8.0, 5.0], [10.0, 0.0]]))
    assert list(folded) == list(params) and all(torch.equal(params[name], tensor) for name, tensor in before.items())
    assert list(plain(params)) == ["fc.weight", "fc.bias"]
    assert torch.equal(plain(params)["fc.weight"], folded["fc.weight"])


def test_a_network_without_gates_is_in_use_as_it_is():
    params = dict(net().state_dict())
    assert fold(params) is params
    add(made := net(), NAMES, Companion("log_sigma2", -5.0), torch.Generator())
    folded = fold(dict(made.state_dict()))
    assert all(torch.equal(folded[name], tensor) for name, tensor in made.state_dict().items())
    assert list(plain(folded)) == list(net().state_dict())


@pytest.mark.parametrize(("evidence", "obstacle"), [(log_alpha, no_gates), (log_sigma2, no_variance)])
def test_evidence_is_what_stands_there_or_is_refused_with_the_option_that_makes_it(evidence, obstacle):
    made, kind = net(), evidence.__name__
    assert "choose local/" in obstacle(Network(made, (2,)), NAMES)
    add(made, NAMES[:1], Companion(kind, 0.0), torch.Generator())
    assert obstacle(Network(made, (2,)), NAMES) is not None  # one of two is not enough
    add(made, NAMES, Companion(kind, 2.0), torch.Generator())
    assert obstacle(Network(made, (2,)), NAMES) is None
    found = evidence(Network(made, (2,)), dict(made.state_dict()), NAMES)
    assert list(found) == list(NAMES)
    assert bool((found["2.weight"] == 2).all()) and found["2.weight"].shape == (2, 3)


def test_hard_concrete_keeps_by_the_gate():
    gates = {"a": torch.tensor([-3.0, 2.0])}
    assert torch.equal(hard_concrete(gates)["a"], gates["a"])


def test_signal_to_noise_by_hand():
    # w^2 / sigma^2: 4 / 1, 1 / 4, 9 / 9. Logarithms: log 4, -log 4, 0. A weight of 0 scores lowest, but is not dead.
    weights = {"a": torch.tensor([2.0, -1.0, 3.0, 0.0])}
    scores = signal_to_noise(weights, {"a": torch.tensor([1.0, 4.0, 9.0, 1.0]).log()})["a"]
    torch.testing.assert_close(scores[:3], torch.tensor([math.log(4), -math.log(4), 0.0]), atol=1e-6, rtol=0)
    assert -math.inf < float(scores[3]) < -80
