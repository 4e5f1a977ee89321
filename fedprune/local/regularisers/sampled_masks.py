"""Layers that drop each weight with a learnt probability, sampled anew for each batch. So the scores of masks are trained.

A weight's score s is the log odds that the weight is there: theta = sigmoid(s). The forward pass takes m ~ Bernoulli(theta). A
sample has no derivative, so a rule puts something in the place of dm / dtheta. A rule is (theta, uniform draws) -> m,
which is 0 or 1 and has that derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedprune.local.regularisers.base import Forwards, Regulariser, run, weight_and_bias
from fedprune.pruning.evidence.gates import Companion, companion
from fedprune.types import Mask

Rule = Callable[[Tensor, Tensor], Tensor]


def straight_through(theta: Tensor, uniform: Tensor) -> Tensor:
    """Return m with dm / dtheta = 1. Bengio, Leonard & Courville 2013; Isik et al. 2023, section 3."""
    return _with_derivative(theta, uniform, theta)


def times_probability(theta: Tensor, uniform: Tensor) -> Tensor:
    """Return m with dm / dtheta = theta, as in the code of Isik et al. 2023: unlikely weights hardly learn."""
    return _with_derivative(theta, uniform, theta.square() / 2)


def _with_derivative(theta: Tensor, uniform: Tensor, primitive: Tensor) -> Tensor:
    return (uniform < theta).to(theta) + (primitive - primitive.detach())


GRADIENTS: dict[str, Rule] = {function.__name__: function for function in (straight_through, times_probability)}


def sampled(rule: Rule) -> Regulariser:
    """Give all prunable weights scores, at first s ~ N(0, 1), and sample their layers by them in training."""
    return Regulariser(layers=functools.partial(_layers, rule=rule), companion=Companion("score", 0.0, 1.0))


def _layers(net: nn.Module, mask: Mask, rule: Rule) -> Forwards:
    scores = {name: net.get_parameter(companion(name, "score")) for name in mask}
    return {name.rpartition(".")[0]: functools.partial(_run, score=score, rule=rule) for name, score in scores.items()}


def _run(layer: nn.Module, inputs: Tensor, score: Tensor, rule: Rule) -> Tensor:
    mask = rule(score.sigmoid(), torch.rand_like(score))
    weight, bias = weight_and_bias(layer)
    return run(layer, inputs, weight * mask, bias)
