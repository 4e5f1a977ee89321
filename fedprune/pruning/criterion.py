"""By which criterion: one formula per function.

Every formula is pure: (evidence, by the names of its arguments) -> Scores; **higher = keep, -inf = never**. The argument names
are the dependency list (see evidence.py): `params` are the prunable tensors of the masked network, `grads` the gradient of the
mean loss at them, `generator` a seeded torch generator by layer name. Scores of dead entries do not matter when dropping,
scores of living ones do not matter when growing. Further parameters have defaults and are set in the yaml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedprune.types import Params, Scores

Formula = Callable[..., Scores]


@dataclass(frozen=True)
class Criterion:
    """The axis: by which formula living units are dropped and, for methods that exchange units, dead ones grown."""

    drop: Formula
    grow: Formula | None = None


def magnitude(params: Params) -> Scores:
    """|w|. Han et al. 2015; Frankle & Carbin 2019. Layers are not rescaled, so a global scope compares raw magnitudes."""
    return {name: w.abs() for name, w in params.items()}


def random(params: Params, generator: Callable[[str], torch.Generator]) -> Scores:
    """Uniform on [0, 1): the control. Each layer has a stream of its own, so the order of the layers does not matter."""
    return {name: torch.rand(w.shape, generator=generator(name)) for name, w in params.items()}


def gradient(grads: Params) -> Scores:
    """|g|, g the gradient of the mean loss: absolute value after averaging. What RigL grows by (Evci et al. 2020)."""
    return {name: g.abs() for name, g in grads.items()}


def snip(params: Params, grads: Params) -> Scores:
    """|w g| / sum |w g|: the connection sensitivity. Lee, Ajanthan & Torr 2019, equation 5 and algorithm 1.

    g is the gradient of the mean loss at the very weights that will be trained. The sum runs over all prunable layers, so it
    does not change the order; it makes scores comparable between clients and rounds.
    """
    return _normalised({name: (w * grads[name]).abs() for name, w in params.items()})


def magnitude_gradient(params: Params, grads: Params, alpha: float = 1.0, beta: float = 1.0) -> Scores:
    """|w|^alpha |g|^beta: magnitude times gradient sensitivity; (1, 0) is magnitude, (0, 1) gradient, (1, 1) the order of SNIP.

    A reconstruction of Levai & Zombori 2020 from its abstract; meant for use inside a train-score-prune-rewind loop.
    """
    return {name: w.abs().pow(alpha) * grads[name].abs().pow(beta) for name, w in params.items()}


def lamp(params: Params) -> Scores:
    """w_u^2 / sum of w_v^2 over the v of the same layer with w_v^2 >= w_u^2. Lee et al. 2021 (LAMP).

    Equal magnitudes are ordered by flat index, the lower counting as the larger, so that scores within a layer are a strict
    order. The largest of each layer scores 1: a global scope never empties a layer before all others are down to one.
    """
    return {name: _lamp(w) for name, w in params.items()}


def _lamp(w: torch.Tensor) -> torch.Tensor:
    squared, order = w.flatten().double().square().sort(descending=True, stable=True)
    scores = torch.zeros_like(squared)
    scores[order] = squared / squared.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return scores.view(w.shape)


def _normalised(scores: Scores) -> Scores:
    total = sum(float(score.double().sum()) for score in scores.values())
    return {name: score.double() / total for name, score in scores.items()} if total > 0 else scores
