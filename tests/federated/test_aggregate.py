"""The mean over those who hold an entry, by hand; server optimizers against straight-line numpy."""

import math

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.federated.aggregate import Average, FedAdam, FedAvgM, masked, overlap_mean
from fedprune.pruning.mask import apply
from fedprune.types import Params, Subnet

SERVER = {"w": torch.tensor([10.0, 20.0, 30.0, 40.0]), "b": torch.tensor([1.0])}


def client(w: list[float], alive: list[int], b: float = 0.0) -> Subnet:
    return Subnet({"w": torch.tensor(w), "b": torch.tensor([b])}, {"w": torch.tensor(alive, dtype=torch.bool)})


def test_each_entry_is_the_weighted_mean_over_the_clients_that_hold_it():
    # Three clients of 1, 3 and 4 examples. Entry by entry:
    #   held by all:           (1 x 1 + 3 x 2 + 4 x 4) / 8 = 23 / 8
    #   held by 1 and 3:       (1 x 5 + 4 x 10) / 5 = 9
    #   held by 2 alone:       -6
    #   held by nobody:        the server's 40
    # and b, which no mask covers: (1 x 8 + 3 x 0 + 4 x 2) / 8 = 2
    updates = [
        (client([1, 5, 0, 0], [1, 1, 0, 0], b=8), 1.0),
        (client([2, 0, -6, 0], [1, 0, 1, 0], b=0), 3.0),
        (client([4, 10, 0, 0], [1, 1, 0, 0], b=2), 4.0),
    ]
    mean = overlap_mean(SERVER, updates)
    assert mean["w"].tolist() == [23 / 8, 9.0, -6.0, 40.0]
    assert mean["b"].tolist() == [2.0]


def test_a_zero_that_lives_counts_and_a_zero_that_is_dead_does_not():
    updates = [(client([4, 4, 0, 0], [1, 1, 0, 0]), 1.0), (client([0, 0, 0, 0], [1, 0, 0, 0]), 1.0)]
    assert overlap_mean(SERVER, updates)["w"].tolist() == [2.0, 4.0, 30.0, 40.0]


@pytest.mark.parametrize("same_object", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_with_equal_masks_it_is_the_weighted_mean_of_fedavg(seed, same_object):
    random = np.random.default_rng(seed)
    alive = random.random((5, 7)) < 0.6
    weights, shares = random.normal(size=(4, 5, 7)).astype(np.float32), random.integers(1, 50, 4)
    mask = {"w": torch.from_numpy(alive)}
    updates = [
        (Subnet(apply({"w": torch.from_numpy(w)}, mask), mask if same_object else {"w": mask["w"].clone()}), float(n))
        for w, n in zip(weights, shares, strict=True)
    ]
    mean = overlap_mean({"w": torch.zeros(5, 7)}, updates)["w"]
    np.testing.assert_allclose(mean.numpy(), np.average(weights * alive, axis=0, weights=shares), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_with_different_masks_it_is_a_masked_average_whatever_the_order(seed):
    random = np.random.default_rng(seed)
    alive = random.random((6, 40)) < 0.3
    weights, shares = random.normal(size=(6, 40)).astype(np.float32) * alive, random.integers(1, 50, 6)
    server = random.normal(size=40).astype(np.float32)
    # Two clients hold the very same mask, and do not come one after the other.
    masks = [{"w": torch.from_numpy(row)} for row in alive]
    masks[4], weights[4] = masks[1], weights[4] * alive[1]
    alive[4] = alive[1]
    expected = np.where(
        alive.any(0), np.ma.average(np.ma.array(weights, mask=~alive), axis=0, weights=shares).filled(0), server
    )
    for order in (range(6), reversed(range(6)), random.permutation(6)):
        updates = ((Subnet({"w": torch.from_numpy(weights[i])}, masks[i]), float(shares[i])) for i in order)
        mean = overlap_mean({"w": torch.from_numpy(server)}, updates)
        np.testing.assert_allclose(mean["w"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_what_nobody_holds_keeps_the_servers_value_to_the_bit():
    server = {"w": torch.tensor([0.1, -0.0, math.pi]), "untouched": torch.tensor([0.3])}
    update = Subnet({"w": torch.zeros(3)}, {"w": torch.zeros(3, dtype=torch.bool)})
    mean = overlap_mean(server, [(update, 2.0)])
    assert mean["w"].view(torch.int32).tolist() == server["w"].view(torch.int32).tolist()
    assert mean["untouched"] is server["untouched"]


def test_without_updates_the_server_stays():
    assert overlap_mean(SERVER, []) == SERVER


def test_counters_are_rounded_to_the_nearest_whole_number_of_their_own_type():
    server = {"n": torch.tensor(0), "small": torch.tensor([0], dtype=torch.int32)}
    # (1 x 10 + 2 x 12) / 3 = 11.33; (1 x 1 + 2 x 2) / 3 = 1.67. The large number is beyond what float32 counts one by one.
    for base in (0, 2**30):
        updates = [
            (Subnet({"n": torch.tensor(base + n), "small": torch.tensor([s], dtype=torch.int32)}, {}), share)
            for n, s, share in ((10, 1, 1.0), (12, 2, 2.0))
        ]
        mean = overlap_mean(server, updates)
        assert (int(mean["n"]), mean["small"].tolist()) == (base + 11, [2])
        assert (mean["n"].dtype, mean["small"].dtype) == (torch.int64, torch.int32)


def test_updates_and_server_are_left_as_they_were_also_a_single_one():
    update = client([1, 2, 3, 4], [1, 1, 1, 1], b=5)
    mean = overlap_mean(SERVER, iter([(update, 2.0)]))
    for tensor in mean.values():
        tensor.fill_(99)
    assert update.params["w"].tolist() == [1, 2, 3, 4]
    assert SERVER["w"].tolist() == [10, 20, 30, 40]


# --- server optimizers -----------------------------------------------------------------------------------------------------

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
        momentum = masked(momentum, mask)
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
    server, momentum = apply(server, dead), masked(momentum, dead)
    grown, _ = step(server, {"w": torch.tensor([4.0, 0.003])}, momentum, ("w",))
    fresh, _ = step({"w": torch.zeros(2)}, {"w": torch.full((2,), 0.003)}, {}, ("w",))
    assert float(grown["w"][1]) == pytest.approx(float(fresh["w"][1]))


@pytest.mark.parametrize("step", [FedAvgM, FedAdam])
@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan])
def test_a_server_learning_rate_must_be_positive(step, lr):
    with pytest.raises(ConfigError, match=r"federated\.server\.lr=.* must be positive"):
        step(lr=lr)
