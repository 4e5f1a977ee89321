"""Candidate masks of one density, of which an event takes the one of the lowest loss. Huang et al. 2023 (FedTiny).

Candidate 0 is the mask that the criterion and the scope come to. Each other one multiplies the number of units of every layer
by a factor drawn uniformly from [1 - noise, 1 + noise], is brought back to the same number of units in all, and keeps the best
of each layer. So candidates differ in the densities of their layers, and never in the order within a layer.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch

from fedprune.pruning.criterion import Criterion
from fedprune.pruning.mask import shrink
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import Shapes, layerwise
from fedprune.pruning.what.top_k import how_many, keep_best, nearest
from fedprune.types import Mask, Params, Scores, Subnet

log = logging.getLogger(__name__)


class Compared(NamedTuple):
    """A candidate on data: its loss, and its parameters, with the statistics of BatchNorm under which the loss was measured."""

    loss: float
    params: Params


class Compare(Protocol):
    """(candidates, adapt) -> what each comes to on data, in their order. adapt: whether BatchNorm's statistics are measured
    anew under each of them."""

    def __call__(self, candidates: Sequence[Subnet], adapt: bool, /) -> list[Compared]: ...


def candidate_masks(
    mask: Mask, scores: Scores, density: float, what: What, criterion: Criterion, stream: Callable[[str], torch.Generator]
) -> list[Mask]:
    """Return as many subsets of `mask` as the criterion has candidates, with equally many units alive in each.

    stream: a seeded generator by name; each layer of each candidate has one of its own.
    """
    plain = shrink(mask, scores, density, what)
    counts, most = what.alive_by_layer(plain), what.alive_by_layer(mask)
    masks = [plain]
    for number in range(1, criterion.candidates):
        factors = {name: _factor(stream(f"candidate {number} {name}"), criterion.noise) for name in counts}
        scope = functools.partial(_of_counts, counts=apportioned(counts, most, factors))
        masks.append(shrink(mask, scores, density, replace(what, scope=scope)))
    return masks


def _factor(generator: torch.Generator, noise: float) -> float:
    """Return a number drawn uniformly from [1 - noise, 1 + noise]."""
    return 1 + noise * (2 * float(torch.rand((), generator=generator, dtype=torch.float64)) - 1)


def _of_counts(units: Scores, density: float, shapes: Shapes, counts: Mapping[str, int]) -> Mask:
    """Keep so many units of each layer: a scope."""
    return layerwise(units, counts)


def keeping_counts(what: What, mask: Mask, density: float) -> What:
    """Return the axis under which an exchange at this density leaves each layer with as many units as it has in `mask`.

    Without it the scope would bring the densities of a selected mask's layers back to its own.
    """
    return replace(what, scope=functools.partial(_in_proportion, counts=what.alive_by_layer(mask), whole=density))


def _in_proportion(units: Scores, density: float, shapes: Shapes, counts: Mapping[str, int], whole: float) -> Mask:
    """Keep of each layer its count, times density / whole, to the nearest: a scope."""
    return layerwise(units, {name: nearest(number * density / whole) for name, number in counts.items()})


def apportioned(counts: Mapping[str, int], most: Mapping[str, int], factors: Mapping[str, float]) -> dict[str, int]:
    """Return whole numbers in the proportions of count x factor, none above `most`, with the sum of the counts.

    Units are seats, apportioned by Sainte-Lague as in scope.erk: the k-th of layer n is worth count_n factor_n / (k - 1/2).
    """
    worth = {name: counts[name] * factors[name] / torch.arange(most[name], dtype=torch.float64).add_(0.5) for name in counts}
    return {name: how_many(seats) for name, seats in keep_best(worth, sum(counts.values())).items()}


def lowest_loss(candidates: Sequence[Subnet], compare: Compare, adapt: bool) -> Subnet:
    """Return the candidate of the lowest loss (of equals the first), with the parameters that the loss was measured at."""
    compared = compare(candidates, adapt)
    best = min(range(len(candidates)), key=lambda number: compared[number].loss)
    text = "of %d candidate masks, number %d has the lowest loss: %.4f; the one without noise has %.4f"
    log.info(text, len(candidates), best, compared[best].loss, compared[0].loss)
    return Subnet(compared[best].params, candidates[best].mask)
