"""What is pruned: unit x scope x which tensors are prunable.

unit (unit.py):   how the entries of a tensor fall into groups that live or die together.
scope (scope.py): the pool in which units compete; own_density.py: scopes that know their densities better than the schedule.
Scores come by name, shaped as the tensors: higher = keep, -inf = never, +inf = always.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from fedprune.errors import ConfigError, Incompatible, RunError
from fedprune.pruning.own_density import OwnDensity
from fedprune.pruning.rank import keep_best
from fedprune.pruning.scope import Scope, Shapes, by_layer
from fedprune.pruning.unit import Unit, spread
from fedprune.types import Mask, Params, Scores

LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "linear": (nn.Linear,),
}


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
        """This axis for one network. Raises Incompatible if nothing in it can be pruned so, ConfigError on an unknown layer."""
        names = self._prunable(net)
        skipped = by_layer(dict.fromkeys(self.skip, True), names)
        names = tuple(name for name in names if name not in skipped)
        if not names:
            raise Incompatible(f"what.skip={list(self.skip)} leaves nothing to prune: choose a shorter one, or another model")
        bound = replace(self, names=names)
        bound._check_units(net.state_dict())
        bound.select(net.state_dict(), 1.0)  # a rehearsal: what the scope does not like about its parameters is said now
        return bound

    def _prunable(self, net: nn.Module) -> tuple[str, ...]:
        unknown = [kind for kind in self.layers if kind not in LAYERS]
        if unknown:
            raise ConfigError([f"what.layers={unknown}: the kinds of layer are {', '.join(LAYERS)}"])
        kinds = tuple(kind for name in self.layers for kind in LAYERS[name])
        names = tuple(f"{name}.weight" for name, module in net.named_modules() if isinstance(module, kinds))
        if not names:
            raise Incompatible(
                f"the network has no {' or '.join(self.layers)} layer to prune: choose another model, or what=weights_global"
            )
        return names

    def _check_units(self, params: Params) -> None:
        """Raises Incompatible, naming the layers, where the unit does not fit."""
        problems = []
        for name in self.names:
            try:
                self.unit(params[name])
            except Incompatible as error:
                problems += [f"layer {name.removesuffix('.weight')}: {problem}" for problem in error.problems]
        if problems:
            raise Incompatible(*problems)

    def select(self, scores: Scores, density: float) -> Mask:
        """Entries of the units to keep; higher scores first. Raises RunError, naming the layer, if a score is NaN."""
        for name in self.names:
            if torch.isnan(scores[name]).any():
                raise RunError(f"the criterion gave NaN for layer {name}: the training has diverged; lower local.optimizer.lr")
        units = {name: self.unit(scores[name]) for name in self.names}
        kept = self._kept(units, density, {name: scores[name].shape for name in self.names})
        return {name: spread(kept[name], scores[name].shape) for name in self.names}

    def _kept(self, units: Scores, density: float, shapes: Shapes) -> Mask:
        """What the scope keeps, and of each layer the best `min_per_layer` (of the living: what is dead stays dead)."""
        if not self.min_per_layer:
            return self.scope(units, density, shapes)
        best = {name: keep_best({name: score}, self.min_per_layer)[name] for name, score in units.items()}
        if self.emerges:  # no count to be kept, and protected units would fall out of the layer's standard deviation
            return {name: kept | best[name] for name, kept in self.scope(units, density, shapes).items()}
        return self.scope({name: score.masked_fill(best[name], math.inf) for name, score in units.items()}, density, shapes)

    @property
    def emerges(self) -> str:
        """What to say in the place of an event's density, if it is not what the mask is brought to; else nothing."""
        return self.scope.emerges if isinstance(self.scope, OwnDensity) else ""

    def units(self, params: Params) -> dict[str, int]:
        """The number of units of each layer."""
        return {name: self.unit(params[name]).numel() for name in self.names}

    def alive_units(self, mask: Mask) -> tuple[int, int]:
        """(living units, all units). A unit is alive if its entries are."""
        alive = [self.unit(mask[name].float()) for name in self.names]
        return sum(int((unit > 0).sum()) for unit in alive), sum(unit.numel() for unit in alive)
