"""Who hears from whom: by hand, and what every topology has to keep to."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

from fedprune.errors import ConfigError
from fedprune.federated.topology import full, random, ring

ACTIVE = (1, 4, 5, 8, 9)


def test_a_ring_is_a_circle_of_those_who_take_part():
    assert [ring(client, ACTIVE, 0, 0) for client in ACTIVE] == [(4, 9), (1, 5), (4, 8), (5, 9), (1, 8)]
    assert [ring(client, (3, 7), 0, 0) for client in (3, 7)] == [(7,), (3,)]
    assert ring(3, (3,), 0, 0) == ()


def test_full_is_everybody_else():
    assert full(5, ACTIVE, 0, 0) == (1, 4, 8, 9)


@pytest.mark.parametrize("topology", [random, partial(random, number=2), ring, full])
def test_neighbours_take_part_and_are_others_in_order_and_once(topology):
    for clock in range(20):
        for client in ACTIVE:
            heard = topology(client, ACTIVE, 3, clock)
            assert client not in heard
            assert set(heard) <= set(ACTIVE)
            assert list(heard) == sorted(set(heard))


def test_random_neighbours_are_as_many_as_asked_for_and_all_equally_likely():
    drawn = Counter(other for clock in range(2000) for other in random(5, ACTIVE, 0, clock, number=2))
    # 2000 draws of 2 of 4: each is there in half of them, 1000, with a deviation of sqrt(2000 / 4) = 22.
    assert set(drawn) == {1, 4, 8, 9}
    assert all(abs(times - 1000) < 5 * 22 for times in drawn.values())
    assert random(5, ACTIVE, 0, 0, number=10) == (1, 4, 8, 9)


def test_random_neighbours_are_a_function_of_seed_clock_and_client():
    others = tuple(range(40))
    assert random(3, others, 0, 7) == random(3, others, 0, 7)
    assert len({random(3, others, seed, clock) for seed in (0, 1) for clock in (0, 1)}) == 4
    assert random(3, others, 0, 0) != random(4, others, 0, 0)


def test_a_number_below_one_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        random(0, ACTIVE, 0, 0, number=0)
