"""Capacity: a function of the seed and the client, in its shares; and what it decides for clients with masks of their own."""

from collections import Counter

import numpy as np
import pytest

from fedprune.errors import ConfigError, Incompatible
from fedprune.federated.masks.capacity import Tiers, Uniform, equal, of_all
from fedprune.run_id import folder_hash


def test_everybody_is_equal_unless_told_otherwise():
    assert of_all(equal, 3, 7) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("capacity", [Tiers([1.0, 0.5, 0.25]), Uniform(0.2, 0.9)])
def test_a_capacity_is_a_function_of_the_seed_and_the_client(capacity):
    drawn = of_all(capacity, 50, 0)
    assert drawn == tuple(capacity(client, 0) for client in range(50))
    assert [capacity(client, 0) for client in reversed(range(50))] == list(reversed(drawn))
    assert of_all(capacity, 100, 0)[:50] == drawn  # whoever else there is
    assert of_all(capacity, 50, 1) != drawn


def test_tiers_come_in_their_shares():
    """10,000 clients, shares 1 : 2 : 5: expected 1250, 2500, 6250; a standard deviation is at most sqrt(10000 / 4) = 50."""
    drawn = Counter(of_all(Tiers([0.2, 1.0, 0.5], [1, 2, 5]), 10_000, 0))
    assert set(drawn) == {0.2, 1.0, 0.5}
    for level, expected in {0.2: 1250, 1.0: 2500, 0.5: 6250}.items():
        assert abs(drawn[level] - expected) < 250


def test_tiers_without_shares_are_equally_likely_and_one_without_a_share_never_comes():
    drawn = Counter(of_all(Tiers([1.0, 0.5]), 10_000, 0))
    assert abs(drawn[1.0] - 5000) < 250
    assert set(of_all(Tiers([1.0, 0.5, 0.25], [1, 0, 1]), 1000, 0)) == {1.0, 0.25}


def test_uniform_capacities_fill_their_interval_evenly():
    """Of 10,000 draws from [0.2, 0.6]: mean 0.4, standard deviation 0.4 / sqrt(12) = 0.1155, so that of the mean is 0.0012."""
    drawn = np.array(of_all(Uniform(0.2, 0.6), 10_000, 0))
    assert 0.2 <= drawn.min() < 0.21 and 0.59 < drawn.max() <= 0.6
    assert abs(drawn.mean() - 0.4) < 0.006
    assert set(of_all(Uniform(0.3, 0.3), 5, 0)) == {0.3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tiers([]), "federated.capacity.levels=[]"),
        (lambda: Tiers([1.0, 0.0]), "federated.capacity.levels=[1.0, 0.0]: give fractions above 0, at most 1"),
        (lambda: Tiers([1.5]), "federated.capacity.levels=[1.5]"),
        (lambda: Tiers([1.0, 0.5], [1.0]), "give one for each of the 2 levels"),
        (lambda: Tiers([1.0, 0.5], [1.0, -1.0]), "none may be negative"),
        (lambda: Tiers([1.0, 0.5], [0.0, 0.0]), "not all of them 0"),
        (lambda: Uniform(0.0, 1.0), "low=0.0 and high=1.0"),
        (lambda: Uniform(0.5, 0.4), "0 < low <= high <= 1"),
        (lambda: Uniform(0.5, 1.1), "0 < low <= high <= 1"),
    ],
)
def test_what_is_no_capacity_is_refused(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)


PERSONAL = (
    *("whose=personal", "how_often=one_shot", "federated/capacity=tiers", "federated.capacity.levels=[1.0,0.5]"),
    *("what=weights_global", "density=0.4", "rounds=4", "when.start=0.25", "when.stop=0.5", "federated.cohort=4"),
)


def test_personal_masks_end_at_density_times_capacity(tiny, play):
    experiment = tiny(*PERSONAL)
    capacities = of_all(Tiers([1.0, 0.5]), 4, 0)
    assert set(capacities) == {1.0, 0.5}
    state = play(experiment)[-1][0]
    size = sum(alive.numel() for alive in state.server.mask.values())
    for client, capacity in enumerate(capacities):
        bits = np.unpackbits(np.frombuffer(state.personal[client].mask, np.uint8))
        kept = int(0.4 * capacity * size + 0.5)
        assert bits.sum() == kept, client
    assert [event.density for event in experiment.plan.events] == [0.4]  # the run's own


def test_with_equal_capacities_personal_plans_are_the_runs(tiny, play, differences):
    one, other = (play(tiny(*PERSONAL, f"federated.capacity.levels={levels}"))[-1][0] for levels in ("[1.0]", "[1.0,1.0]"))
    plain = play(tiny(*PERSONAL[:2], *PERSONAL[4:]))[-1][0]
    assert differences(one, other) == differences(one, plain) == []
    assert one.personal == plain.personal


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("whose=shared",), "whose=shared gives everybody the same network, and federated.capacity says otherwise: choose"),
        (("whose=voted",), "whose=voted gives everybody the same network"),
        (("whose=personal", "how_often=never"), "how_often has no event: choose how_often=one_shot"),
    ],
)
def test_a_capacity_that_would_do_nothing_is_refused(overrides, message, tiny):
    with pytest.raises(Incompatible) as error:
        tiny("federated/capacity=tiers", "how_often=one_shot", *overrides)
    assert message in str(error.value)


def test_the_least_density_of_all_clients_is_checked(tiny):
    with pytest.raises(Incompatible, match="what.min_per_layer=40 keeps"):
        tiny(*PERSONAL, "density=0.02", "federated.capacity.levels=[1.0,0.001]", "what.min_per_layer=40")


def test_a_capacity_distinguishes_a_run(compose):
    assert folder_hash(compose("federated/capacity=tiers")[0]) != folder_hash(compose()[0])
