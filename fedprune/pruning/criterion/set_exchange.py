"""An exchange of entries after which every layer has as many as before: Mocanu et al. 2018 (SET), Dai et al. 2022 (DisPFL).

Each layer keeps its own count and gives up the same fraction. `shrink` and `regrow` with scope erk would bring every layer to
its ERK density instead. Higher scores = keep.
"""

from __future__ import annotations

import math

import torch

from fedprune.pruning.what.scope import layerwise
from fedprune.pruning.what.top_k import how_many
from fedprune.types import Mask, Scores


def drop_within(mask: Mask, scores: Scores, swap: float) -> Mask:
    """Return each layer's n living entries but for the worst ceil(swap n)."""
    living = {name: torch.where(alive, scores[name], -math.inf) for name, alive in mask.items()}
    numbers = {name: how_many(alive) for name, alive in mask.items()}
    # A product that is whole up to rounding is that whole number: 0.3 x 10 is three entries and not four.
    survivors = layerwise(living, {name: number - math.ceil(swap * number - 1e-9) for name, number in numbers.items()})
    return {name: survivors[name] & alive for name, alive in mask.items()}


def grow_within(mask: Mask, scores: Scores, like: Mask) -> Mask:
    """Return `mask` filled up with the best of the dead, until each layer has as many living entries as in `like`."""
    everyone = {name: scores[name].masked_fill(alive, math.inf) for name, alive in mask.items()}
    survivors = layerwise(everyone, {name: how_many(alive) for name, alive in like.items()})
    return {name: survivors[name] | alive for name, alive in mask.items()}
