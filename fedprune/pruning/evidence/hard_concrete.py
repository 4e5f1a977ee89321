"""The hard concrete gate: a factor in [0, 1] that can be exactly 0 and exactly 1, and has a gradient. Louizos et al. 2018.

It is a sigmoid of noise, stretched from (0, 1) to (GAMMA, ZETA) and cut off at 0 and 1. The higher log_alpha, the more open the
gate. All functions are entrywise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and stretch, as in the paper's experiments."""


def sampled(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Return a gate's value for a draw u of the uniform distribution: min(1, max(0, s (ZETA - GAMMA) + GAMMA)).

    s = sigmoid((log u - log(1 - u) + log_alpha) / BETA): equations 10 and 11.
    """
    return _stretched(torch.sigmoid((torch.logit(uniform, eps=1e-6) + log_alpha) / BETA))


def expected(log_alpha: Tensor) -> Tensor:
    """Return the gate's value without noise: min(1, max(0, sigmoid(log_alpha) (ZETA - GAMMA) + GAMMA)), equation 13."""
    return _stretched(torch.sigmoid(log_alpha))


def open_probability(log_alpha: Tensor) -> Tensor:
    """Return the probability that a sampled gate is not 0: sigmoid(log_alpha - BETA log(-GAMMA / ZETA)), equation 12."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def log_alpha_of(drop_rate: float) -> float:
    """Return the log_alpha from which training starts: sigmoid(log_alpha) = 1 - drop_rate."""
    return math.log(1 - drop_rate) - math.log(drop_rate)


def _stretched(s: Tensor) -> Tensor:
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
