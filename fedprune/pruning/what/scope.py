"""Scopes: the pool in which units compete.

scope: (unit scores by name, density, shapes of the tensors by name) -> which units to keep. Ties go by alphabetical name and
       flat index. A scope that names layers has an argument `ends`, which says which are first and last.
Higher = keep, -inf = dead and never kept, +inf = protected and kept. Scopes that bring densities of their own are in
fixed_density.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch

from fedprune.capabilities import declares
from fedprune.errors import ConfigError
from fedprune.pruning.what.top_k import how_many, keep_best, nearest
from fedprune.tensors import unlike
from fedprune.types import Mask, Plan, Scores

Shapes = Mapping[str, torch.Size]
Scope = Callable[..., Mask]


class Pool:
    """The attributes that a scope may declare.

    layerwise: units compete within their layer, at densities that the event's alone decides. own_density: the scope brings a
    density of its own. by_formula: a formula gives each layer its density. emerges: what the plan says in the place of a
    density that only the event itself will show; "" if it is the event's.
    """

    layerwise: bool = False
    own_density: bool = False
    by_formula: bool = False
    emerges: str = ""

    def problems(self, plan: Plan, units: Mapping[str, int]) -> list[str]:
        """Return what the scope cannot keep of a plan, with what to choose instead. units: the number of units of each
        layer."""
        return []


Ends = Mapping[str, tuple[str, ...]]
"""Tensors by the words `first` and `last`. first: those of the layers that the input reaches before any other prunable layer.
last: those of the layers behind which no other prunable layer stands on the way to an output. The order is that of the forward
pass, see layer_order.py. Where layers are side by side, such as two heads, both are in it."""
T = TypeVar("T")


def check_kept(kept: object, units: Scores) -> None:
    """Raise ValueError if what a scope, which may be anybody's, keeps is not a boolean for each unit."""
    wrong = unlike(kept, units)
    if wrong is not None or any(value.dtype != torch.bool for value in cast(Mask, kept).values()):
        raise ValueError(f"it {wrong or 'gives numbers'}: return true for each unit to keep, by layer")


def globally(units: Scores, density: float, shapes: Shapes) -> Mask:
    """Let all units of all layers compete in one pool."""
    return keep_best(units, nearest(density * sum(score.numel() for score in units.values())))


@declares(layerwise=True)
def per_layer(
    units: Scores,
    density: float,
    shapes: Shapes,
    rates: Mapping[str, float] | None = None,
    step: float = 0.2,
    ends: Ends | None = None,
) -> Mask:
    """Let units compete within their layer; every layer gets the same density, except where `rates` says otherwise.

    rates: by layer ("first", "last" or a name), the rate relative to the other layers. A layer at rate 0.5 loses half as many
    of its survivors in each step of the fraction `step`, as the output layer does in the lottery ticket papers: where the
    others are at (1 - step)^k, it is at (1 - 0.5 step)^k. Frankle & Carbin 2019, section 2 and appendix G (step = 0.2).
    """
    rate = dict.fromkeys(units, 1.0) | by_layer(rates or {}, tuple(units), ends)
    if not 0 < step < 1 or not all(0 <= r * step < 1 for r in rate.values()):
        raise ConfigError(
            [
                f"what.scope.step={step} is a fraction between 0 and 1, "
                f"and what.scope.rates={dict(rates or {})} are at least 0 and below 1/step"
            ]
        )
    return layerwise(units, {name: nearest(layer_density(density, rate[name], step) * units[name].numel()) for name in units})


def layer_density(density: float, rate: float, step: float) -> float:
    """Return (1 - rate step)^k with k such that (1 - step)^k = density."""
    return density ** (math.log(1 - rate * step) / math.log(1 - step)) if rate != 1.0 else density


@declares(layerwise=True, by_formula=True)
def erk(units: Scores, density: float, shapes: Shapes) -> Mask:
    """Keep Erdos-Renyi-Kernel densities: proportional to (in + out + kernel sizes) / (in * out * kernel area), and at most 1.

    Mocanu et al. 2018; Evci et al. 2020 (RigL), appendix C; there a factor is solved for, anew while layers exceed 1.
    Here the kept units are seats, apportioned by Sainte-Lague: layer n's k-th is worth w_n / (k - 1/2) with w_n its density's
    weight times its size, and the most valuable are filled. That is the same up to rounding, has exactly the number asked for,
    fills no layer twice, and never takes a unit back when the density rises, so that masks nest.
    """
    weight = {name: sum(shapes[name]) / shapes[name].numel() * score.numel() for name, score in units.items()}
    places = {name: torch.arange(score.numel(), dtype=torch.float64).add_(0.5) for name, score in units.items()}
    worth = {name: place.reciprocal_().mul_(weight[name]) for name, place in places.items()}
    seats = keep_best(worth, nearest(density * sum(score.numel() for score in units.values())))
    return layerwise(units, {name: how_many(seat) for name, seat in seats.items()})


def layerwise(units: Scores, counts: Mapping[str, int]) -> Mask:
    """Keep the best `counts` units of each layer, and all that score +inf (they are protected)."""
    counts = {name: max(counts[name], how_many(units[name] == math.inf)) for name in units}
    return {name: keep_best({name: units[name]}, counts[name])[name] for name in units}


def by_layer(values: Mapping[str, T], names: tuple[str, ...], ends: Ends | None = None) -> dict[str, T]:
    """Return the values by tensor name. Raises ConfigError on a name that is not there.

    values: by layer, or by a word of `ends`. A layer of several weights, or of layers, stands for all of them. ends: None means
    the first and the last of `names`.
    """
    values = {as_text(key, names): value for key, value in values.items()}
    ends = {"first": names[:1], "last": names[-1:]} if ends is None else ends
    tensors_by_key = {key: ends[key] if key in ends else _of_layer(key, names) for key in values}
    unknown = [key for key, tensors in tensors_by_key.items() if not tensors]
    if unknown:
        layers = ", ".join(name.removesuffix(".weight") for name in names)
        raise ConfigError([f"what: no layer {', '.join(map(repr, unknown))}; the layers are {', '.join(ends)}, {layers}"])
    return {name: values[key] for key, tensors in tensors_by_key.items() for name in tensors}


def _of_layer(layer: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if f"{name}.".startswith(f"{layer}."))


def as_text(key: object, names: Sequence[str], option: str = "what") -> str:
    """Return the layer's name that was typed, also where YAML read it as a number: of `0.10` it keeps 0.1.

    names: of tensors. Raises ConfigError if several layers fit the number.
    """
    if not isinstance(key, float):
        return str(key)
    parts = [name.split(".") for name in names]
    layers = dict.fromkeys(".".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1))
    alike = [layer for layer in layers if layer.replace(".", "", 1).isdecimal() and float(layer) == key and "." in layer]
    if len(alike) > 1:
        raise ConfigError([f"{option}: {key} is {' or '.join(alike)}: type it in quotes, as '{alike[-1]}' inside of \"...\""])
    return alike[0] if alike else str(key)
