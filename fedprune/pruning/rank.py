"""Ranking: how many is a density, and which are the best. Counts are exact and ties are settled the same way every time."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fedprune.types import Mask, Scores


def nearest(x: float) -> int:
    """The nearest integer, halves up, unharmed by the float error of products such as 0.29 * 100 or 0.35 * 10."""
    return math.floor(x + 0.5 + 1e-9)


def keep_best(scores: Scores, number: int) -> Mask:
    """Exactly the `number` highest of all these scores (fewer only where the rest is -inf).

    Ties go to the lower flat index of the alphabetically first name. A partial sort: O(n), with one copy of the scores.
    """
    names = sorted(scores)
    flat = torch.cat([scores[name].reshape(-1) for name in names])
    cut = _highest(flat, number)
    kept = flat > cut
    ties = torch.nonzero(flat == cut).squeeze(1)
    kept[ties[: number - int(kept.sum())]] = True
    kept &= flat > -math.inf
    parts = kept.split([scores[name].numel() for name in names])
    return {name: part.view(scores[name].shape) for name, part in zip(names, parts, strict=True)}


def _highest(flat: Tensor, number: int) -> float:
    """The `number`-th highest value of `flat`."""
    place = min(max(flat.numel() - number, 0), flat.numel() - 1)
    return float(np.partition(flat.numpy(), place)[place])


def keep_best_of_each(scores: Tensor, number: int, group: int) -> Tensor:
    """The `number` highest of every `group` consecutive scores of the last dimension, which it divides; ties as above."""
    groups = scores.reshape(-1, group)
    best = groups.sort(dim=1, descending=True, stable=True).indices[:, :number]
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True)
    return (kept & (groups > -math.inf)).view(scores.shape)
