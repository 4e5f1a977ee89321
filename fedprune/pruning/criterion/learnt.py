"""Criteria that read companions of weights, which training has learnt (evidence/gates.py). Rules as in pruning/criterion."""

from __future__ import annotations

import torch

from fedprune.types import Params, Scores


def hard_concrete(log_alpha: Params) -> Scores:
    """log_alpha of the weight's gate: weights whose gates are most surely closed go. Louizos, Welling & Kingma 2018 (L0).

    The paper removes the weights whose gate without noise is 0, however many there are; this is the same order, cut off at the
    schedule's density.
    """
    return dict(log_alpha)


def signal_to_noise(params: Params, log_sigma2: Params) -> Scores:
    """log w^2 - log sigma^2 = -log alpha of variational dropout: weights that are mostly noise go. Molchanov et al. 2017.

    The paper removes the weights with log alpha > 3, however many there are; this is the same order, cut off at the schedule's
    density. A weight of 0 counts as the smallest number there is, not as minus infinity, which would mean that it is dead.
    """
    return {name: w.square().clamp_min(torch.finfo(w.dtype).tiny).log() - log_sigma2[name] for name, w in params.items()}
