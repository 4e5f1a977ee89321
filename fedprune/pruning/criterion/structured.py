"""Criteria that score whole output units (rows of a tensor [O, ...]). Rules as in pruning/criterion.

The score of a unit stands at each of its entries, so that what=filters_* with reduce=mean has that number. With single weights
as units, rows die in the order of their scores, entries of a row by flat index.
"""

from __future__ import annotations

import torch

from fedprune.pruning.what.unit import per_row
from fedprune.types import Mask, Params, Scores


def filter_norm(params: Params, p: float = 1.0) -> Scores:
    """(sum of |w|^p over a filter)^(1/p): its L1 norm (Li et al. 2017), or with p = 2 its L2 norm (He et al. 2018)."""
    return {name: per_row(torch.linalg.vector_norm(_rows(w), p, 1), w) for name, w in params.items()}


def fpgm(params: Params, mask: Mask) -> Scores:
    """The sum of Euclidean distances to the other living filters of the layer. He et al. 2019 (FPGM, by geometric median).

    The most replaceable filter is nearest to all others. Sums grow with the number of filters: meant for
    what=filters_per_layer.
    """
    return {name: per_row(_distances(_rows(w), _rows(mask[name]).any(1)), w) for name, w in params.items()}


def bn_scale(scales: Params) -> Scores:
    """|gamma| of the normalisation that follows a filter. Liu et al. 2017 (network slimming).

    They train gamma with an L1 penalty, without which it says little. The normalisation itself stays: a dead filter still
    passes on its shift.
    """
    return dict(scales)


def bn_scale_or_magnitude(params: Params, filter_scales: Params) -> Scores:
    """|gamma| of the normalisation that follows a convolution's filter, |w| of a linear layer's weight.

    Vahidian et al. 2021 (Sub-FedAvg, hybrid). Meant for a scope in which layers do not compete with each other.
    """
    return {name: filter_scales[name] if w.dim() > 2 else w.abs() for name, w in params.items()}


def activation(activations: Params) -> Scores:
    """The mean output of a unit after ReLU: quiet units go. Molchanov et al. 2017 (their "mean activation")."""
    return dict(activations)


def apoz(activity: Params) -> Scores:
    """The fraction of a unit's outputs that is not zero after ReLU: 1 - APoZ. Hu et al. 2016 (network trimming)."""
    return dict(activity)


def _distances(rows: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") @ alive.to(rows)


def _rows(entries: torch.Tensor) -> torch.Tensor:
    return entries.reshape(len(entries), -1)
