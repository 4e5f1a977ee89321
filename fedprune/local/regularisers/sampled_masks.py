"""Layers whose every weight is there with a learnt probability, sampled anew for each batch: how scores of masks are trained.

A weight's score s is the log odds that it is there: theta = sigmoid(s). The forward pass takes m ~ Bernoulli(theta); since a
sample has no derivative, a rule says what stands for dm / dtheta. A rule is (theta, uniform draws) -> m, 0 or 1, with that
derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedprune.local.regularisers.base import Forward, Regulariser, run
from fedprune.pruning.evidence.gates import Companion, companion
from fedprune.types import Mask

Rule = Callable[[Tensor, Tensor], Tensor]


def straight_through(theta: Tensor, uniform: Tensor) -> Tensor:
    """dm / dtheta = 1. Bengio, Leonard & Courville 2013; Isik et al. 2023, section 3."""
    return _with_derivative(theta, uniform, theta)


def times_probability(theta: Tensor, uniform: Tensor) -> Tensor:
    """dm / dtheta = theta, as in the code of Isik et al. 2023: what is hardly ever there hardly learns."""
    return _with_derivative(theta, uniform, theta.square() / 2)


def _with_derivative(theta: Tensor, uniform: Tensor, primitive: Tensor) -> Tensor:
    return (uniform < theta).to(theta) + (primitive - primitive.detach())


GRADIENTS: dict[str, Rule] = {function.__name__: function for function in (straight_through, times_probability)}


def sampled(rule: Rule) -> Regulariser:
    """Scores beside all prunable weights, at first s ~ N(0, 1), and layers that sample by them in training."""
    return Regulariser(layers=functools.partial(_layers, rule=rule), companion=Companion("score", 0.0, 1.0))


def _layers(net: nn.Module, mask: Mask, rule: Rule) -> dict[str, Forward]:
    scores = {name: net.get_parameter(companion(name, "score")) for name in mask}
    return {name.rpartition(".")[0]: functools.partial(_run, score=score, rule=rule) for name, score in scores.items()}


def _run(layer: nn.Module, inputs: Tensor, score: Tensor, rule: Rule) -> Tensor:
    mask = rule(score.sigmoid(), torch.rand_like(score))
    return run(layer, inputs, layer.weight * mask, layer.bias)  # type: ignore[arg-type, operator]
