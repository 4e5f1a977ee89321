"""Server optimizers against straight-line numpy, and what becomes of momentum under a mask."""

import math

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.federated.server.optimizer import Average, FedAdam, FedAvgM, masked
from fedprune.pruning.mask import apply
from fedprune.types import Params

NAMES = ("w", "b")


def means(server: Params, rounds: int, seed: int = 0) -> list[Params]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: {n: torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in server.items()}  # noqa: E731
    return [draw() | {"bn.running_mean": torch.tensor([float(r)])} for r in range(rounds)]


def start() -> Params:
    return {"w": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), "b": torch.tensor([3.0], dtype=torch.float64)}


def run(step, rounds: int = 3) -> list[Params]:
    server, momentum, history = start() | {"bn.running_mean": torch.tensor([-1.0])}, {}, []
    for mean in means(start(), rounds):
        server, momentum = step(server, mean, momentum, NAMES)
        history.append(server)
    return history


def test_average_takes_the_mean_as_it_is():
    mean = means(start(), 1)[0]
    assert Average()(start(), mean, {}, NAMES) == (mean, {})


def test_fedavgm_is_hsus_over_three_rounds():
    for name in NAMES:
        w, v = start()[name].numpy(), 0.0
        for mean, after in zip(means(start(), 3), run(FedAvgM(lr=0.7, beta=0.9)), strict=True):
            v = 0.9 * v + (w - mean[name].numpy())
            w = w - 0.7 * v
            np.testing.assert_allclose(after[name].numpy(), w, rtol=1e-12)


def test_fedavgm_without_momentum_at_rate_1_is_the_mean():
    mean = means(start(), 1)[0]
    after, _ = FedAvgM(lr=1.0, beta=0.0)(start(), mean, {}, NAMES)
    torch.testing.assert_close({n: after[n] for n in NAMES}, {n: mean[n] for n in NAMES})


def test_fedadam_is_reddis_algorithm_2_over_three_rounds():
    for name in NAMES:
        w, m, v = start()[name].numpy(), 0.0, 0.01**2  # v starts from tau^2
        for mean, after in zip(means(start(), 3), run(FedAdam(lr=0.1, beta1=0.9, beta2=0.8, tau=0.01)), strict=True):
            delta = mean[name].numpy() - w
            m = 0.9 * m + (1 - 0.9) * delta
            v = 0.8 * v + (1 - 0.8) * delta**2
            w = w + 0.1 * m / (np.sqrt(v) + 0.01)
            np.testing.assert_allclose(after[name].numpy(), w, rtol=1e-12)


@pytest.mark.parametrize("step", [Average(), FedAvgM(), FedAdam()])
def test_buffers_take_the_mean_and_nothing_is_written_to(step):
    server, mean = start() | {"bn.running_mean": torch.tensor([-1.0])}, means(start(), 1)[0]
    before = {n: t.clone() for n, t in (server | {f"mean {n}": t for n, t in mean.items()}).items()}
    after, momentum = step(server, mean, {}, NAMES)
    assert after["bn.running_mean"].tolist() == [0.0]
    assert bool(momentum) is not isinstance(step, Average)
    assert all("bn.running_mean" not in part for part in momentum.values())
    again, _ = step(after, mean, momentum, NAMES)
    assert again.keys() == server.keys()
    assert all(torch.equal(t, before[n]) for n, t in (server | {f"mean {n}": t for n, t in mean.items()}).items())


@pytest.mark.parametrize("step", [FedAvgM(), FedAdam()])
def test_dead_entries_stay_zero_under_server_momentum(step):
    mask = {"w": torch.tensor([True, False, True])}
    server, momentum = {"w": torch.tensor([1.0, 0.0, 2.0])}, {}
    for value in (3.0, -1.0, 0.5):
        server, momentum = step(server, apply({"w": torch.full((3,), value)}, mask), momentum, ("w",))
        momentum = masked(momentum, mask, step.fresh)
        assert server["w"][1] == 0.0
        assert server["w"][0] != 0.0


def test_masked_forgets_the_dead_and_keeps_the_rest():
    momentum = {"m": {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}, "v": {"w": torch.tensor([4.0, 5.0])}}
    after = masked(momentum, {"w": torch.tensor([True, False])})
    assert after["m"]["w"].tolist() == [1.0, 0.0]
    assert after["m"]["b"].tolist() == [3.0]
    assert after["v"]["w"].tolist() == [4.0, 0.0]
    assert momentum["m"]["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("step", [FedAvgM(), FedAdam()])
def test_a_weight_that_is_grown_again_starts_afresh(step):
    # Two weights with the same start and the same mean. One has lived and died before, the other never trained.
    dead = {"w": torch.tensor([True, False])}
    server, momentum = {"w": torch.tensor([1.0, 1.0])}, {}
    server, momentum = step(server, {"w": torch.tensor([4.0, -2.0])}, momentum, ("w",))
    server, momentum = apply(server, dead), masked(momentum, dead, step.fresh)
    grown, _ = step(server, {"w": torch.tensor([4.0, 0.003])}, momentum, ("w",))
    fresh, _ = step({"w": torch.zeros(2)}, {"w": torch.full((2,), 0.003)}, {}, ("w",))
    assert float(grown["w"][1]) == pytest.approx(float(fresh["w"][1]))


def test_a_second_moment_of_zero_may_be_alive():
    # beta2 = .5, tau = .5, beta1 = 0. v of the living entry is 0 (what rounding makes of it in the end), the mean is 1:
    # v = .5 0 + .5 1 = .5 and the step 1 / (sqrt .5 + .5). The entry that was dead starts from v = tau^2 = .25: v = .625.
    step = FedAdam(lr=1.0, beta1=0.0, beta2=0.5, tau=0.5)
    momentum = {"m": {"w": torch.zeros(2)}, "v": {"w": torch.zeros(2)}}
    momentum = masked(momentum, {"w": torch.tensor([True, False])}, step.fresh)
    after, _ = step({"w": torch.zeros(2)}, {"w": torch.ones(2)}, momentum, ("w",))
    assert after["w"].tolist() == pytest.approx([1 / (math.sqrt(0.5) + 0.5), 1 / (math.sqrt(0.625) + 0.5)])


@pytest.mark.parametrize("step", [FedAvgM, FedAdam])
@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan])
def test_a_server_learning_rate_must_be_positive(step, lr):
    with pytest.raises(ConfigError, match=r"federated\.server\.lr=.* must be positive"):
        step(lr=lr)
