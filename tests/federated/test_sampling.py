"""Cohorts: a function of (seed, round), without replacement, fair."""

import numpy as np
import pytest
import torch

from fedprune.federated.sampling import cohort


@pytest.mark.parametrize(("clients", "size"), [(1, 1), (10, 1), (10, 7), (10, 10), (500, 20)])
def test_a_cohort_is_different_clients_in_ascending_order(clients, size):
    for round in range(20):
        drawn = cohort(0, round, clients, size)
        assert len(drawn) == len(set(drawn)) == size
        assert list(drawn) == sorted(drawn)
        assert all(type(client) is int and 0 <= client < clients for client in drawn)


def test_a_cohort_is_a_function_of_seed_and_round_and_of_no_state():
    drawn = [cohort(3, round, 100, 10) for round in range(10)]
    np.random.seed(0)
    torch.manual_seed(0)
    assert [cohort(3, round, 100, 10) for round in reversed(range(10))] == drawn[::-1]


def test_cohorts_differ_over_rounds_and_seeds():
    assert len({cohort(seed, round, 100, 10) for seed in range(5) for round in range(20)}) == 100


def test_every_client_is_drawn_equally_often():
    # 2000 rounds of 3 of 10: 600 times each; the standard deviation is sqrt(2000 x 0.3 x 0.7) = 20.5.
    counts = np.bincount([client for round in range(2000) for client in cohort(0, round, 10, 3)], minlength=10)
    assert abs(counts - 600).max() < 5 * 20.5
