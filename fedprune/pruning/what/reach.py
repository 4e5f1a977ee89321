"""The number of units that a selection keeps: searched for by a share of operations, weights or parameters, or rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from torch import Tensor, nn

from fedprune.capabilities import declared
from fedprune.errors import ConfigError
from fedprune.pruning.what.layer_order import LayerOrder
from fedprune.pruning.what.layers import LAYERS
from fedprune.pruning.what.top_k import how_many, keep_best
from fedprune.types import Mask, Scores

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
"""Layers that shift what they normalise, dead filters too."""


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
    if not isinstance(to, int) or to < 1:
        raise ConfigError([f"what.round_to={to}: type a whole number from 1, such as what.round_to=8"])
    if to > 1 and not whole_lines:
        lines = f"what.round_to={to} is a number of whole outputs or inputs of a layer"
        others = "choose an option of filters, neurons or channels, such as what=filters_per_layer"
        raise ConfigError([f"{lines}: type what.round_to=1, or {others}"])


def carriers(net: nn.Module, order: LayerOrder) -> frozenset[str]:
    """Return the weights of the layers of which one dead filter stays in an exported network, if any dies.

    Dead filters emit constants, from their bias or a norm's shift. Where a convolution reads them under zero padding no bias
    can replace them, and one dead filter carries the constants of all (compaction/export.py).
    """
    shifts = any(isinstance(module, NORMS) for module in net.modules())
    layers = {*order.calls}
    read = {before for name in layers if _pads_with_zeros(net.get_submodule(name)) for before in order.before(name, layers)}
    return frozenset(
        weight
        for layer, weights in order.weights
        if layer in read and (shifts or declared(net.get_submodule(layer), "bias", None) is not None)
        for weight in weights
    )


def _pads_with_zeros(layer: nn.Module) -> bool:
    if not isinstance(layer, LAYERS["conv"]) or layer.padding_mode != "zeros":
        return False
    return any(side > 0 for side in layer.padding) if isinstance(layer.padding, tuple) else layer.padding != "valid"


def rounded(units: Scores, survivors: Mask, to: int, carry: Collection[str] = ()) -> Mask:
    """Return the survivors, in each layer that loses some the best of them, a multiple of `to`.

    Fang et al. 2023 (Torch-Pruning, round_to): the number that is left is rounded down. Where this would leave none,
    Torch-Pruning does not prune the layer at all; here `to` units are left, or all of a layer that has no more. carry: layers
    of which the multiple counts a dead unit, too (`carriers`): 23 live and one is dead where `to` is 8.
    """
    return {name: _rounded(name, score, survivors[name], to, int(name in carry)) for name, score in units.items()}


def _rounded(name: str, score: Tensor, alive: Tensor, to: int, dead: int) -> Tensor:
    living, kept = how_many(score > -math.inf), how_many(alive)
    if kept == living or (kept + dead) % to == 0:
        return alive
    multiple = max(kept + dead - (kept + dead) % to, to)
    best: Mapping[str, Tensor] = keep_best({name: score}, min(multiple - dead, living))
    return best[name]
