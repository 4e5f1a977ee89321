"""Means of networks whose masks differ: by hand, and against numpy."""

import math
import weakref

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.federated.server.accumulator import check, merged
from fedprune.federated.server.aggregate import OverlapMean, intersection, mean_with_zeros
from fedprune.pruning.mask import apply
from fedprune.types import Subnet

MEANS = [OverlapMean(), OverlapMean("zero"), mean_with_zeros, intersection]

SERVER = {"w": torch.tensor([10.0, 20.0, 30.0, 40.0]), "b": torch.tensor([1.0])}


def client(w: list[float], alive: list[int], b: float = 0.0) -> Subnet:
    params = {"w": torch.tensor(w, dtype=torch.float32), "b": torch.tensor([b], dtype=torch.float32)}
    return Subnet(params, {"w": torch.tensor(alive, dtype=torch.bool)})


def three() -> list[tuple[Subnet, float]]:
    """Clients of 1, 3 and 4 examples."""
    return [
        (client([1, 5, 0, 0], [1, 1, 0, 0], b=8), 1.0),
        (client([2, 0, -6, 0], [1, 0, 1, 0], b=0), 3.0),
        (client([4, 10, 0, 0], [1, 1, 0, 0], b=2), 4.0),
    ]


def test_each_entry_is_the_weighted_mean_over_the_clients_that_hold_it():
    # Entry by entry, of the three clients:
    #   had by all:           (1 x 1 + 3 x 2 + 4 x 4) / 8 = 23 / 8
    #   had by 1 and 3:       (1 x 5 + 4 x 10) / 5 = 9
    #   had by 2 alone:       -6
    #   had by nobody:        the server's 40
    # and b, which no mask covers: (1 x 8 + 3 x 0 + 4 x 2) / 8 = 2
    mean = merged(OverlapMean(), SERVER, three())
    assert mean["w"].tolist() == [23 / 8, 9.0, -6.0, 40.0]
    assert mean["b"].tolist() == [2.0]


def test_what_nobody_has_is_the_servers_or_zero():
    # As above, but for the last entry, which is 0 instead of the server's 40.
    assert merged(OverlapMean("keep"), SERVER, three())["w"].tolist() == [23 / 8, 9.0, -6.0, 40.0]
    zero = merged(OverlapMean("zero"), SERVER, three())
    assert zero["w"].tolist() == [23 / 8, 9.0, -6.0, 0.0]
    assert zero["b"].tolist() == [2.0]


def test_the_mean_with_zeros_divides_by_everybody():
    # The same sums as above, all divided by 1 + 3 + 4 = 8, whoever has the entry:
    #   (1 x 1 + 3 x 2 + 4 x 4) / 8 = 23 / 8;  (1 x 5 + 4 x 10) / 8 = 45 / 8;  3 x -6 / 8 = -18 / 8;  0
    mean = merged(mean_with_zeros, SERVER, three())
    assert mean["w"].tolist() == [23 / 8, 45 / 8, -18 / 8, 0.0]
    assert mean["b"].tolist() == [2.0]


def test_the_intersection_is_averaged_and_the_rest_stays_with_the_server():
    # Only the first entry is had by all three: 23 / 8. The others are the server's 20, 30 and 40, also the one of two holders.
    mean = merged(intersection, SERVER, three())
    assert mean["w"].tolist() == [23 / 8, 20.0, 30.0, 40.0]
    assert mean["b"].tolist() == [2.0]


def test_a_zero_that_lives_counts_and_a_zero_that_is_dead_does_not():
    updates = [(client([4, 4, 0, 0], [1, 1, 0, 0]), 1.0), (client([0, 0, 0, 0], [1, 0, 0, 0]), 1.0)]
    assert merged(OverlapMean(), SERVER, updates)["w"].tolist() == [2.0, 4.0, 30.0, 40.0]


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
    mean = merged(OverlapMean(), {"w": torch.zeros(5, 7)}, updates)["w"]
    np.testing.assert_allclose(mean.numpy(), np.average(weights * alive, axis=0, weights=shares), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_with_different_masks_it_is_a_masked_average_whatever_the_order(seed):
    random = np.random.default_rng(seed)
    alive = random.random((6, 40)) < 0.3
    weights, shares = random.normal(size=(6, 40)).astype(np.float32) * alive, random.integers(1, 50, 6)
    server = random.normal(size=40).astype(np.float32)
    # Two clients have the very same mask, and do not come one after the other.
    masks = [{"w": torch.from_numpy(row)} for row in alive]
    masks[4], weights[4] = masks[1], weights[4] * alive[1]
    alive[4] = alive[1]
    expected = np.where(
        alive.any(0), np.ma.average(np.ma.array(weights, mask=~alive), axis=0, weights=shares).filled(0), server
    )
    for order in (range(6), reversed(range(6)), random.permutation(6)):
        updates = ((Subnet({"w": torch.from_numpy(weights[i])}, masks[i]), float(shares[i])) for i in order)
        mean = merged(OverlapMean(), {"w": torch.from_numpy(server)}, updates)
        np.testing.assert_allclose(mean["w"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_what_nobody_has_keeps_the_servers_value_to_the_bit():
    server = {"w": torch.tensor([0.1, -0.0, math.pi]), "untouched": torch.tensor([0.3])}
    update = Subnet({"w": torch.zeros(3)}, {"w": torch.zeros(3, dtype=torch.bool)})
    mean = merged(OverlapMean(), server, [(update, 2.0)])
    assert mean["w"].view(torch.int32).tolist() == server["w"].view(torch.int32).tolist()
    assert mean["untouched"] is server["untouched"]


@pytest.mark.parametrize("mean", MEANS)
def test_without_updates_the_server_stays(mean):
    assert merged(mean, SERVER, []) == SERVER


@pytest.mark.parametrize("seed", range(20))
def test_every_mean_is_its_formula_in_numpy_over_random_masks(seed):
    random = np.random.default_rng(seed)
    k, shares = 1 + seed % 5, random.integers(1, 50, 5)[: 1 + seed % 5]
    alive = random.random((k, 3, 8)) < random.uniform(0.2, 1.0)
    w = random.normal(size=(k, 3, 8)).astype(np.float32) * alive
    server = random.normal(size=(3, 8)).astype(np.float32)
    updates = [(Subnet({"w": torch.from_numpy(w[i])}, {"w": torch.from_numpy(alive[i])}), float(shares[i])) for i in range(k)]
    a = shares[:, None, None].astype(np.float64)
    weighted, held = (a * alive * w).sum(0), (a * alive).sum(0)
    over_holders = weighted / np.maximum(held, 1)
    expected = {
        OverlapMean("keep"): np.where(held > 0, over_holders, server),
        OverlapMean("zero"): np.where(held > 0, over_holders, 0),
        mean_with_zeros: weighted / a.sum(),
        intersection: np.where(alive.all(0), over_holders, server),
    }
    for mean, by_hand in expected.items():
        found = merged(mean, {"w": torch.from_numpy(server)}, iter(updates))["w"].numpy()
        np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mean", MEANS)
def test_where_all_hold_all_every_mean_is_that_of_fedavg_bit_for_bit(mean, equal):
    generator = torch.Generator().manual_seed(0)
    full = {"w": torch.ones(50, dtype=torch.bool)}
    server = {"w": torch.zeros(50), "n": torch.tensor(0)}
    updates = [(Subnet({"w": torch.randn(50, generator=generator), "n": torch.tensor(n)}, full), n + 1.0) for n in range(4)]
    assert equal(merged(mean, server, updates), merged(OverlapMean(), server, updates))


@pytest.mark.parametrize("mean", MEANS)
def test_networks_that_are_equal_average_to_themselves_bit_for_bit(mean, equal):
    update = Subnet({"w": torch.tensor([0.1, math.pi, 1e-42, 0.0])}, {"w": torch.tensor([True, True, True, True])})
    assert equal(merged(mean, {"w": torch.ones(4)}, [(update, share) for share in (3.0, 7.0, 0.1)]), update.params)


def test_a_rule_for_what_nobody_has_is_keep_or_zero():
    with pytest.raises(ConfigError, match=r"federated\.aggregate\.uncovered=drop: choose one of keep, zero"):
        OverlapMean("drop")


@pytest.mark.parametrize("merge", MEANS)
def test_counters_are_rounded_to_the_nearest_whole_number_of_their_own_type(merge):
    server = {"n": torch.tensor(0), "small": torch.tensor([0], dtype=torch.int32)}
    # (1 x 10 + 2 x 12) / 3 = 11.33; (1 x 1 + 2 x 2) / 3 = 1.67. The large number is beyond what float32 counts one by one.
    for base in (0, 2**30):
        updates = [
            (Subnet({"n": torch.tensor(base + n), "small": torch.tensor([s], dtype=torch.int32)}, {}), share)
            for n, s, share in ((10, 1, 1.0), (12, 2, 2.0))
        ]
        mean = merged(merge, server, updates)
        assert (int(mean["n"]), mean["small"].tolist()) == (base + 11, [2])
        assert (mean["n"].dtype, mean["small"].dtype) == (torch.int64, torch.int32)


@pytest.mark.parametrize("mean", MEANS)
def test_updates_and_server_are_left_as_they_were(mean):
    update = client([1, 2, 3, 4], [1, 1, 1, 1], b=5)
    merged(mean, SERVER, iter([(update, 2.0), (client([0, 0, 0, 0], [0, 0, 0, 0]), 1.0)]))
    assert update.params["w"].tolist() == [1, 2, 3, 4]
    assert SERVER["w"].tolist() == [10, 20, 30, 40]


def test_the_mean_of_a_single_update_is_not_the_update_itself():
    update = client([1, 2, 3, 4], [1, 1, 1, 1], b=5)
    for tensor in merged(OverlapMean(), SERVER, iter([(update, 2.0)])).values():
        tensor.fill_(99)
    assert update.params["w"].tolist() == [1, 2, 3, 4]
    assert SERVER["w"].tolist() == [10, 20, 30, 40]


def test_a_mean_holds_no_update_but_the_one_that_it_is_given():
    accumulator, watched = OverlapMean()(SERVER), []
    for value in range(4):
        update = client([value] * 4, [1, 1, value % 2, 0])
        watched.append(weakref.ref(update.params["w"]))
        accumulator.add(update, 1.0)
        del update
        assert [reference() for reference in watched] == [None] * len(watched)
    assert accumulator.result()["w"].tolist() == [1.5, 1.5, 2.0, 40.0]


@pytest.mark.parametrize("aggregate", [lambda server, updates: server, lambda server: server, None])
def test_what_is_no_aggregate_is_refused_with_a_reason(aggregate):
    with pytest.raises(ConfigError, match=r"federated\.aggregate.*: an aggregate is \(server\) -> an object with add"):
        check(aggregate)
    for option in MEANS:
        check(option)
