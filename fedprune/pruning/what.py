"""What is pruned: unit x scope x which tensors are prunable.

unit:  (scores of one tensor [O, ...]) -> one score per unit, shaped to broadcast back. Entries of a unit live or die together.
scope: (unit scores by name, density, shapes by name) -> which units to keep: the pool in which units compete. Names come in the
       order of the network's layers, so that "first" and "last" mean something; ties go by alphabetical name and flat index.
Higher score = keep, -inf = never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedprune.errors import ConfigError, Incompatible, RunError
from fedprune.types import Mask, Params, Scores

Unit = Callable[[Tensor], Tensor]
Shapes = Mapping[str, torch.Size]
Scope = Callable[[Scores, float, Shapes], Mask]

LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "linear": (nn.Linear,),
}

REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda rows: rows.sum(1),
    "mean": lambda rows: rows.mean(1),
    "l2": lambda rows: rows.square().sum(1).sqrt(),
}


# --- units -----------------------------------------------------------------------------------------------------------------


def weights(scores: Tensor) -> Tensor:
    """Every entry is a unit of its own."""
    return scores


def filters(scores: Tensor, reduce: str = "mean") -> Tensor:
    """A unit is all that produces one output channel: a row [o, :, ...] of [O, I, ...]. Returns [O, 1, ...].

    reduce: how entries' scores become the unit's: `mean` (layers of different fan-in stay comparable), `sum`, or `l2`.
    """
    if reduce not in REDUCE:
        raise ConfigError([f"what.unit.reduce={reduce}: choose one of {', '.join(REDUCE)}"])
    rows = scores.flatten(1)
    dead = (rows == -math.inf).any(1)  # l2 would turn -inf into +inf
    return REDUCE[reduce](rows).masked_fill(dead, -math.inf).view(-1, *[1] * (scores.dim() - 1))


# --- scopes ----------------------------------------------------------------------------------------------------------------


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


def globally(units: Scores, density: float, shapes: Shapes) -> Mask:
    """All units of all layers compete in one pool."""
    return keep_best(units, nearest(density * sum(score.numel() for score in units.values())))


def per_layer(
    units: Scores, density: float, shapes: Shapes, rates: Mapping[str, float] | None = None, step: float = 0.2
) -> Mask:
    """Units compete within their layer; every layer gets the same density, except where `rates` says otherwise.

    rates: by layer ("first", "last" or a name), the rate relative to the other layers. A layer at rate 0.5 loses half as many
    of its survivors in each step of the fraction `step`, as the output layer does in the lottery ticket papers: where the
    others are at (1 - step)^k, it is at (1 - 0.5 step)^k. Frankle & Carbin 2019, section 2 and appendix G (step = 0.2).
    """
    rate = dict.fromkeys(units, 1.0) | _by_name(rates or {}, tuple(units))
    if not 0 < step < 1 or not all(0 <= r * step < 1 for r in rate.values()):
        raise ConfigError(
            [
                f"what.scope.step={step} is a fraction between 0 and 1, "
                f"and what.scope.rates={dict(rates or {})} are at least 0 and below 1/step"
            ]
        )
    return _layerwise(units, {name: nearest(layer_density(density, rate[name], step) * units[name].numel()) for name in units})


def layer_density(density: float, rate: float, step: float) -> float:
    """(1 - rate step)^k with k such that (1 - step)^k = density."""
    return density ** (math.log(1 - rate * step) / math.log(1 - step)) if rate != 1.0 else density


def erk(units: Scores, density: float, shapes: Shapes) -> Mask:
    """Erdos-Renyi-Kernel densities: proportional to (in + out + kernel sizes) / (in * out * kernel area), and at most 1.

    Mocanu et al. 2018; Evci et al. 2020 (RigL), appendix C; there a factor is solved for, anew while layers exceed 1.
    Here the kept units are seats, apportioned by Sainte-Lague: layer n's k-th is worth w_n / (k - 1/2) with w_n its density's
    weight times its size, and the most valuable are filled. That is the same up to rounding, has exactly the number asked for,
    fills no layer twice, and never takes a unit back when the density rises, so that masks nest.
    """
    weight = {name: sum(shapes[name]) / shapes[name].numel() * score.numel() for name, score in units.items()}
    worth = {name: weight[name] / (torch.arange(score.numel(), dtype=torch.float64) + 0.5) for name, score in units.items()}
    seats = keep_best(worth, nearest(density * sum(score.numel() for score in units.values())))
    return _layerwise(units, {name: int(seat.sum()) for name, seat in seats.items()})


def _layerwise(units: Scores, counts: Mapping[str, int]) -> Mask:
    """Keep the best of each layer, that many, and all that score +inf (they are protected)."""
    counts = {name: max(counts[name], int((units[name] == math.inf).sum())) for name in units}
    return {name: keep_best({name: units[name]}, counts[name])[name] for name in units}


# --- the axis --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class What:
    """The axis. `names` are the prunable tensors, in the order of the network's layers, filled in by `bind`.

    layers: which kinds of layer are prunable. skip: layers that are not ("first", "last", or names). min_per_layer: this many
    units of every layer outlive any event, against layer collapse.
    """

    unit: Unit
    scope: Scope
    layers: Sequence[str] = ("conv", "linear")
    skip: Sequence[str] = ()
    min_per_layer: int = 0
    names: tuple[str, ...] = field(default=())

    def bind(self, net: nn.Module) -> What:
        """This axis for one network. Raises Incompatible if nothing in it is prunable, ConfigError on an unknown layer."""
        unknown = [kind for kind in self.layers if kind not in LAYERS]
        if unknown:
            raise ConfigError([f"what.layers={unknown}: the kinds of layer are {', '.join(LAYERS)}"])
        kinds = tuple(kind for name in self.layers for kind in LAYERS[name])
        names = tuple(f"{name}.weight" for name, module in net.named_modules() if isinstance(module, kinds))
        if not names:
            raise Incompatible(
                f"the network has no {' or '.join(self.layers)} layer to prune: choose another model, or what=weights_global"
            )
        skipped = _by_name(dict.fromkeys(self.skip, True), names)
        names = tuple(name for name in names if name not in skipped)
        if not names:
            raise Incompatible(f"what.skip={list(self.skip)} leaves nothing to prune")
        bound = replace(self, names=names)
        bound.select(net.state_dict(), 1.0)  # a rehearsal: what the scope does not like about its parameters is said now
        return bound

    def select(self, scores: Scores, density: float) -> Mask:
        """Entries of the units to keep; higher scores first. Raises RunError, naming the layer, if a score is NaN."""
        for name in self.names:
            if torch.isnan(scores[name]).any():
                raise RunError(f"the criterion gave NaN for layer {name}: the training has diverged; lower local.optimizer.lr")
        units = {name: self.unit(scores[name]) for name in self.names}
        if self.min_per_layer:
            units = {name: _protect(score, self.min_per_layer) for name, score in units.items()}
        kept = self.scope(units, density, {name: scores[name].shape for name in self.names})
        return {name: kept[name].expand(scores[name].shape) for name in self.names}

    def units(self, params: Params) -> dict[str, int]:
        """The number of units of each layer."""
        return {name: self.unit(params[name]).numel() for name in self.names}

    def alive_units(self, mask: Mask) -> tuple[int, int]:
        """(living units, all units). A unit is alive if its entries are."""
        alive = [self.unit(mask[name].float()) for name in self.names]
        return sum(int((unit > 0).sum()) for unit in alive), sum(unit.numel() for unit in alive)


def _protect(units: Tensor, number: int) -> Tensor:
    """The best `number` units of a layer raised to +inf, so that no pool drops them (a unit that is dead stays dead)."""
    best = keep_best({"layer": units}, number)["layer"]
    return units.masked_fill(best, math.inf)


def _by_name(values: Mapping[str, float | bool], names: tuple[str, ...]) -> dict[str, float | bool]:
    """ "first", "last" and layer names resolved to tensor names. Raises ConfigError on a name that is not there."""
    alias = {"first": names[0], "last": names[-1]} | {name: name for name in names}
    alias |= {name.removesuffix(".weight"): name for name in names}
    unknown = [key for key in values if key not in alias]
    if unknown:
        layers = ", ".join(name.removesuffix(".weight") for name in names)
        raise ConfigError([f"what: no layer {', '.join(map(repr, unknown))}; the layers are first, last, {layers}"])
    return {alias[key]: value for key, value in values.items()}
