"""The number of units that a selection keeps: searched for by a share of operations, weights or parameters, or rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from fedprune.errors import ConfigError
from fedprune.pruning.what.top_k import how_many, keep_best
from fedprune.types import Mask, Scores


class Cost(Protocol):
    """(mask of the prunable tensors) -> the share of the dense network that is left; see fedprune.pruning.cost.

    of: what is counted, a word of density_of.
    """

    @property
    def of(self) -> str: ...

    def __call__(self, mask: Mask, /) -> float: ...


def reached(select: Callable[[float], Mask], share: float, cost: Cost, units: int, least: int = 0) -> Mask:
    """Return the mask of a selection whose cost is nearest to `share`; halfway, the larger one.

    select: (fraction of all units) -> mask; of a larger fraction a superset, so that the cost never falls and bisection finds
    the place. units: the number of all units. least: so many are kept at any rate.
    """
    low, high = least, units  # the smallest number whose cost is at least `share` lies in [low, high], or there is none
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(select(middle / units)) >= share - 1e-12 else (middle + 1, high)
    above = select(low / units)
    if low == least:
        return above
    below = select((low - 1) / units)
    return above if cost(above) - share <= share - cost(below) + 1e-12 else below


def check_round_to(to: int, whole_lines: bool) -> None:
    """Raise ConfigError if counts of units cannot be rounded to it. whole_lines: see UnitKind."""
    if to < 1 or (to > 1 and not whole_lines):
        lines = f"what.round_to={to} is a number of whole outputs or inputs of a layer"
        others = "choose an option of filters, neurons or channels, such as what=filters_per_layer"
        raise ConfigError([f"{lines}: type what.round_to=1, or {others}"])


def rounded(units: Scores, survivors: Mask, to: int) -> Mask:
    """Return the survivors, in each layer that loses some the best of them, a multiple of `to`.

    Fang et al. 2023 (Torch-Pruning, round_to): the number that is left is rounded down. Where this would leave none,
    Torch-Pruning does not prune the layer at all; here `to` units are left, or all of a layer that has no more.
    """
    return {name: _rounded(name, score, survivors[name], to) for name, score in units.items()}


def _rounded(name: str, score: Tensor, alive: Tensor, to: int) -> Tensor:
    living, kept = how_many(score > -math.inf), how_many(alive)
    if kept == living or kept % to == 0:
        return alive
    best: Mapping[str, Tensor] = keep_best({name: score}, min(max(kept - kept % to, to), living))
    return best[name]
