"""Criteria whose scores are comparable between layers, for a global scope in which layers lose and gain.

Every formula is (evidence, by the names of its arguments) -> Scores, as in pruning/criterion: higher = keep, -inf = never.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedprune.types import Mask, Params, Scores

LEAST = torch.finfo(torch.float64).tiny


def magnitude_rank(params: Params, mask: Mask) -> Scores:
    """The fraction of the layer's living weights that are no larger than a weight.

    With a global scope every layer loses the same fraction of its living, the smallest |w|, to the nearest. The dead score 0;
    of equal weights the first counts as the largest.
    """
    return {name: _rank(w.abs(), mask[name]) for name, w in params.items()}


def _rank(size: Tensor, alive: Tensor) -> Tensor:
    living = size.flatten().double()[alive.flatten()]
    ranks = torch.empty_like(living)
    ranks[living.sort(descending=True, stable=True).indices] = torch.arange(len(living), 0, -1, dtype=torch.float64)
    return torch.zeros(size.shape, dtype=torch.float64).masked_scatter(alive, ranks / max(len(living), 1))


def random_by_layer_magnitude(params: Params, mask: Mask, generator: Callable[[str], torch.Generator]) -> Scores:
    """log(u) / p, u uniform, p = mean |w| of the layer's living / the number of its dead: a draw without replacement.

    Grown units are distributed over layers in proportion to the mean |w| of their living, and at random within a layer:
    Babakniya et al. 2023 (FLASH), who draw each entry by itself and hit the density on average only. The draw without
    replacement: Efraimidis & Spirakis 2006.
    """
    return {name: _draw(w, mask[name], generator(name)) for name, w in params.items()}


def _draw(w: Tensor, alive: Tensor, generator: torch.Generator) -> Tensor:
    living, dead = w[alive].double().abs(), int((~alive).sum())
    chance = living.sum() / max(len(living), 1) / max(dead, 1)
    drawn = torch.rand(w.shape, generator=generator, dtype=torch.float64)
    return drawn.clamp_min(LEAST).log() / chance.clamp_min(LEAST**0.5)  # -inf would be a veto
