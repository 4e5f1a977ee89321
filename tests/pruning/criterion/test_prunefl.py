"""PruneFL's adjustment, by hand, against a straight line with a loop, and where it has nothing to go by."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.pruning.criterion import Adjusted, magnitude, squared_gradient
from fedprune.pruning.criterion.prunefl import adjusted, dense_time, layer_times, unquestioned
from fedprune.pruning.event import Axes, prune
from fedprune.pruning.mask import apply
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.types import PruneEvent, Subnet

T, F = True, False


def test_the_smallest_of_each_layers_living_are_in_question():
    """Half of 4 and half of 3, 1.5 and so 2: the dead are no part of it."""
    mask = {"a": torch.tensor([T, T, T, T, F]), "b": torch.tensor([T, T, T])}
    scores = {"a": torch.tensor([3.0, 1.0, 2.0, 4.0, 9.0]), "b": torch.tensor([0.2, 0.3, 0.1])}
    stays = unquestioned(mask, scores, 0.5)
    assert stays["a"].tolist() == [T, F, F, T, F]
    assert stays["b"].tolist() == [F, T, F]


def test_entries_come_in_by_gain_per_time_until_that_no_longer_pays():
    """What stays brings 4 + 2 in a time of 1 + 2 + base 1: Gamma = 6/4 = 1.5. Of the others, in the order of gain / time, 3/1
    in layer a comes (9/5 = 1.8), then 5/2 = 2.5 in b (14/7 = 2), then 2/1 in a, which is not more than 2: nor is 1/1."""
    stays = {"a": torch.tensor([T, F, F, F]), "b": torch.tensor([T, F])}
    gains = {"a": torch.tensor([4.0, 2.0, 3.0, 1.0]), "b": torch.tensor([2.0, 5.0])}
    mask = adjusted(stays, gains, {"a": 1.0, "b": 2.0}, base=1.0, most=6)
    assert mask["a"].tolist() == [T, F, T, F]
    assert mask["b"].tolist() == [T, T]
    capped = adjusted(stays, gains, {"a": 1.0, "b": 2.0}, base=1.0, most=3)
    assert (capped["a"].tolist(), capped["b"].tolist()) == ([T, F, T, F], [T, F])
    full = adjusted(stays, gains, {"a": 1.0, "b": 2.0}, base=1.0, most=1)
    assert (full["a"].tolist(), full["b"].tolist()) == ([T, F, F, F], [T, F])


def test_where_times_differ_the_gain_alone_does_not_decide():
    """6 in a time of 10 is 0.6, and 1 in a time of 1 is more: Gamma of what stays is 0.5 / 1."""
    stays = {"a": torch.tensor([T, F]), "b": torch.tensor([F])}
    mask = adjusted(stays, {"a": torch.tensor([0.5, 1.0]), "b": torch.tensor([6.0])}, {"a": 1.0, "b": 10.0}, 0.0, most=3)
    assert mask["a"].tolist() == [T, T] and mask["b"].tolist() == [F]


def test_without_gains_nothing_comes_and_where_nothing_lives_the_best_do():
    stays = {"a": torch.tensor([T, F, F])}
    assert adjusted(stays, {"a": torch.zeros(3)}, {"a": 1.0}, 0.0, 3)["a"].tolist() == [T, F, F]
    dead = {"a": torch.tensor([F, F, F])}
    assert adjusted(dead, {"a": torch.tensor([1.0, 3.0, 2.0])}, {"a": 1.0}, 0.0, 3)["a"].tolist() == [F, T, F]


def at_base(base: float) -> list[float]:
    """The gains that live after an exchange that questions none of the two living, out of six weights of time 1."""
    gains = torch.tensor([4.0, 4.0, 1.0, 3.0, 0.5, 2.0])
    axes = Axes(What(weights, globally, names=("a",)), Adjusted(magnitude, squared_gradient, base=base))
    mask = {"a": torch.tensor([T, T, F, F, F, F])}

    def measure(names, subnet, about, surviving=None):
        return {"params": subnet.params} if names == ("params",) else {"sq_grads_accumulated": {"a": gains}}

    left = prune(Subnet(apply({"a": torch.ones(6)}, mask), mask), PruneEvent(5, 1.0, swap=0.01), axes, measure)
    return gains[left.mask["a"]].tolist()


def test_the_constant_time_is_a_fraction_of_the_dense_networks_own():
    """What stays brings 8 in a time of 2, and the dense network's time is 6.

    base 0: Gamma = 8/2 = 4, and 3 is less. base 0.5, C0 = 3: 8/5 = 1.6; 3 comes, 11/6 = 1.83; 2 comes, 13/7 = 1.86; 1 is less.
    base 2, C0 = 12: 8/14 = 0.57; with 3 11/15 = 0.73, with 2 13/16 = 0.81, with 1 14/17 = 0.82; 0.5 is less.
    """
    assert at_base(0.0) == [4.0, 4.0]
    assert at_base(0.5) == [4.0, 4.0, 3.0, 2.0]
    assert at_base(2.0) == [4.0, 4.0, 1.0, 3.0, 2.0]


def test_the_dense_networks_time_is_by_layer():
    """Four weights of time 1 and two of time 2.5."""
    mask = {"a": torch.tensor([[T, F], [F, F]]), "b": torch.tensor([T, F])}
    assert dense_time({"a": 1.0, "b": 2.5}, mask) == 9.0


@pytest.mark.parametrize("base", [0.0, 0.14, 0.71, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_subset_gains_more_per_time(seed, base):
    """All 2^7 ways to add some of seven entries to two that stay, one after the other."""
    rng = np.random.default_rng(seed)
    times = {"a": 1.0, "b": float(rng.uniform(0.3, 3))}
    gains = {"a": rng.exponential(size=5) ** 2, "b": rng.exponential(size=4)}
    stays = {"a": torch.tensor([T, F, F, F, F]), "b": torch.tensor([F, F, F, T])}
    constant = base * (5 * times["a"] + 4 * times["b"])
    gain, time = np.concatenate([gains["a"], gains["b"]]), np.repeat([times["a"], times["b"]], [5, 4])
    chosen = [(T, *some[:4], *some[4:], T) for some in itertools.product((F, T), repeat=7)]
    worth = [gain[np.array(some)].sum() / (constant + time[np.array(some)].sum()) for some in chosen]
    found = adjusted(stays, {name: torch.from_numpy(each) for name, each in gains.items()}, times, constant, most=9)
    assert [*found["a"].tolist(), *found["b"].tolist()] == list(chosen[int(np.argmax(worth))])


def one_by_one(stays, gains, times, base, most):
    """As the paper tells it: the best of all that are left, if it raises Gamma."""
    mask = {name: alive.copy() for name, alive in stays.items()}
    while sum(alive.sum() for alive in mask.values()) < most:
        brought = sum(gains[name][alive].sum() for name, alive in mask.items())
        spent = base + sum(times[name] * alive.sum() for name, alive in mask.items())
        rest = [(gains[name][i] / times[name], name, i) for name, alive in mask.items() for i in np.flatnonzero(~alive)]
        if not rest:
            break
        ratio, name, i = max(rest)
        if ratio <= brought / spent:
            break
        mask[name][i] = True
    return mask


@pytest.mark.parametrize("seed", range(20))
def test_at_once_is_the_same_as_one_by_one(seed):
    rng = np.random.default_rng(seed)
    stays = {"a": rng.random(30) < 0.2, "b": rng.random(12) < 0.3}
    gains = {name: rng.exponential(size=len(alive)) ** 2 for name, alive in stays.items()}
    times, base, most = {"a": 1.0, "b": float(rng.uniform(0.3, 3))}, float(rng.uniform(0, 5)), int(rng.integers(8, 43))
    stays["a"][0] = True
    tensors = {n: torch.from_numpy(m) for n, m in stays.items()}, {n: torch.from_numpy(g) for n, g in gains.items()}
    found, expected = adjusted(*tensors, times, base, most), one_by_one(stays, gains, times, base, most)
    assert all((found[name].numpy() == alive).all() for name, alive in expected.items())


def test_times_are_one_but_for_the_layers_that_are_named():
    names = ("conv.weight", "fc.weight")
    assert layer_times({"last": 2.5}, names) == {"conv.weight": 1.0, "fc.weight": 2.5}
    with pytest.raises(ConfigError, match="no layer 'fc9'"):
        layer_times({"fc9": 1.0}, names)
    with pytest.raises(ConfigError, match="criterion.times"):
        layer_times({"fc": 0.0}, names)
