"""The hard concrete gate: numbers by hand, and what sampling says of the closed forms."""

import math

import pytest
import torch

from fedprune.pruning.evidence.hard_concrete import BETA, expected, log_alpha_of, open_probability, sampled


def uniform(number: int) -> torch.Tensor:
    """Evenly spaced draws: a sample without chance."""
    return (torch.arange(number, dtype=torch.float64) + 0.5) / number


def test_a_sample_by_hand():
    # u = 1/2: log u - log(1 - u) = 0. log_alpha = 0: s = sigmoid(0) = 0.5, stretched 0.5 * 1.2 - 0.1 = 0.5.
    # log_alpha = BETA log 3: s = sigmoid(log 3) = 0.75, stretched 0.8. log_alpha = -BETA log 19: s = 0.05, -0.04 -> 0.
    # log_alpha = BETA log 19: s = 0.95, 1.04 -> 1. And u = 3/4 adds log 3: with BETA log 3 - log 3, it is 0.8 again.
    leaning = torch.tensor([0.0, BETA * math.log(3), -BETA * math.log(19), BETA * math.log(19), (BETA - 1) * math.log(3)])
    draws = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.75])
    torch.testing.assert_close(sampled(leaning, draws), torch.tensor([0.5, 0.8, 0.0, 1.0, 0.8]))


def test_without_noise_by_hand():
    # log_alpha = log 3: sigmoid = 0.75, 0.75 * 1.2 - 0.1 = 0.8. log 19: 0.95 -> 1.04 -> 1. -log 19: 0.05 -> -0.04 -> 0.
    leaning = torch.tensor([0.0, math.log(3), math.log(19), -math.log(19)])
    torch.testing.assert_close(expected(leaning), torch.tensor([0.5, 0.8, 1.0, 0.0]))


@pytest.mark.parametrize("leaning", [-4.0, -1.0, 0.0, 0.7, 3.0])
def test_the_probability_to_be_open_is_the_share_of_samples_that_are_not_zero(leaning):
    at = torch.tensor(leaning, dtype=torch.float64)
    share = (sampled(at, uniform(100_000)) > 0).double().mean()
    assert float(share) == pytest.approx(float(open_probability(at)), abs=2e-5)


def test_extreme_draws_give_numbers():
    gates = sampled(torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert gates.tolist() == [0, 1]


@pytest.mark.parametrize("drop_rate", [0.1, 0.5, 0.8])
def test_the_start_leans_to_zero_at_the_odds_of_the_drop_rate(drop_rate):
    assert torch.sigmoid(torch.tensor(log_alpha_of(drop_rate))).item() == pytest.approx(1 - drop_rate)


def test_gradients_are_those_of_finite_differences():
    leaning = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: sampled(a, uniform(9)), leaning)
    assert torch.autograd.gradcheck(expected, leaning)
    assert torch.autograd.gradcheck(open_probability, leaning)
