"""The axis `what`: unit x scope x which tensors are prunable.

unit (unit.py): the groups of entries of a tensor that live or die together.
scope (scope.py): the pool in which units compete. fixed_density.py has the scopes that bring densities of their own.
Scores come by name, shaped as the tensors: higher = keep, -inf = never, +inf = always.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fedprune.capabilities import complete, declared, named
from fedprune.errors import ConfigError, Incompatible, NotANumber, in_user_code
from fedprune.precision import wide
from fedprune.pruning.what.layer_order import LayerOrder, by_definition
from fedprune.pruning.what.layers import LAYERS, computed, others, prunable
from fedprune.pruning.what.reach import Cost, carriers, check_round_to, reached, rounded
from fedprune.pruning.what.scope import Ends, Pool, Scope, Shapes, by_layer, check_kept
from fedprune.pruning.what.tensor_cache import remembered
from fedprune.pruning.what.top_k import keep_best
from fedprune.pruning.what.unit import Unit, UnitKind, check_grid, spread
from fedprune.tensors import one_name, tensors_of
from fedprune.types import Mask, Params, Scores


@dataclass(frozen=True)
class What:
    """The units that are pruned, and the pool in which they compete.

    layers: the kinds of layer that are prunable. skip: layers that are not, by name or by the words of `Ends`.
    min_per_layer: the number of units of every layer that outlive any event, against layer collapse.
    frozen: whether weights with requires_grad=False, which nobody trains, are prunable, too.
    round_to: the number of units that are left of a layer, in the exported network, is a multiple of this.

    `bind` fills in the others. names: the prunable tensors, in the order of definition, as in every mask. order: the order in
    which the network runs its layers. untouched: the weights that would be prunable, but are frozen. cost: what a density is a
    share of; None means the units. carry: the layers that keep a dead unit, which round_to counts (reach.py).
    """

    unit: Unit
    scope: Scope
    layers: Sequence[str] = ("conv", "linear", "recurrent", "attention")
    skip: Sequence[str] = ()
    min_per_layer: int = 0
    frozen: bool = False
    round_to: int = 1
    names: tuple[str, ...] = field(default=())
    order: LayerOrder | None = field(default=None, repr=False)
    untouched: tuple[str, ...] = field(default=(), repr=False)
    cost: Cost | None = field(default=None, repr=False)
    carry: frozenset[str] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        for key in ("layers", "skip"):
            if isinstance(value := getattr(self, key), str):
                raise ConfigError([f"what.{key}={value} is no list: type what.{key}=[{value}]"])
        check_round_to(self.round_to, self.kind.whole_lines)

    def bind(self, net: nn.Module, order: LayerOrder | None = None) -> What:
        """Return this axis for one network. order: of the network's layers; None: they run as they are defined.

        Raises Incompatible if nothing in the network can be pruned like this, ConfigError on an unknown layer.
        """
        order = order or by_definition(prunable(net))
        candidates = self._without_outputs(net, order, self._unskipped(net, order))
        untouched = self._untouched(net, candidates)
        names = tuple(name for name in candidates if name not in untouched)
        carry = carriers(net, order) if self.round_to > 1 and self.kind.of_filters else frozenset()
        bound = replace(self, names=names, order=order, untouched=untouched, carry=carry)
        bound._check_units(net)
        sizes = {name: net.get_parameter(name).detach().abs() for name in names}
        bound.select(sizes, 1.0)  # a rehearsal: a scope that does not fit its parameters raises now
        return bound

    def _unskipped(self, net: nn.Module, order: LayerOrder) -> tuple[str, ...]:
        """Return the prunable weights of layers that are not skipped."""
        names = self._prunable(net)
        wanted = {layer if isinstance(layer, float) else one_name(net, str(layer)): True for layer in self.skip}
        skipped = by_layer(wanted, names, _ends(order, names))
        names = tuple(name for name in names if name not in skipped)
        if problems := computed(net, names):
            raise Incompatible(*problems)
        if not names:
            raise Incompatible(f"what.skip={list(self.skip)} leaves nothing to prune: choose what.skip=[] or a shorter list")
        return names

    def _without_outputs(self, net: nn.Module, order: LayerOrder, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the weights whose units are not the network's outputs."""
        outputs = self._outputs(net, order)
        hidden = tuple(name for name in names if name not in outputs)
        if not hidden:
            raise Incompatible(f"the filters of {_listed(outputs)} are the network's outputs: choose what=weights_global")
        return hidden

    def _untouched(self, net: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the weights that nobody trains, if such are not pruned."""
        if self.frozen:
            return ()
        untrained = tuple(name for name in names if not net.get_parameter(name).requires_grad)
        if len(untrained) == len(names):
            raise Incompatible(
                f"nobody trains {_listed(untrained)} (requires_grad=False), nor prunes them: set what.frozen=true"
            )
        return untrained

    def _outputs(self, net: nn.Module, order: LayerOrder) -> tuple[str, ...]:
        """Return the convolutions whose filters are the network's outputs, where filters are pruned: none of these can go.

        Linear layers that give the outputs are left out by `skip`.
        """
        if not self.kind.of_filters:
            return ()
        outputs = order.last([weight for _, weights in order.weights for weight in weights])
        return tuple(name for name in outputs if isinstance(net.get_submodule(name.rpartition(".")[0]), LAYERS["conv"]))

    def _prunable(self, net: nn.Module) -> tuple[str, ...]:
        if unknown := [kind for kind in self.layers if kind not in LAYERS]:
            known = ", ".join(LAYERS)
            raise ConfigError([f"what.layers={unknown}: the kinds of layer are {known}; type e.g. what.layers=[conv,linear]"])
        names = tuple(weight for weights in prunable(net, self.layers).values() for weight in weights)
        if not names:
            there = [kind for kind in LAYERS if prunable(net, (kind,))]
            instead = f", or what=weights_global with what.layers=[{','.join(there)}]" if there else ""
            raise Incompatible(f"the network has no {' or '.join(self.layers)} layer to prune: choose another model{instead}")
        return names

    def _check_units(self, net: nn.Module) -> None:
        """Raise Incompatible, naming the layers, where the unit does not fit."""
        params, problems, unit = tensors_of(net), list[str](), declared(self.unit, "__name__", self.unit)
        if self.kind.channelwise:
            problems += [
                f"layer {name} ({type(layer).__name__}) has no {unit} that could go by themselves: "
                "choose what.layers=[conv,linear], or what=weights_global"
                for name, layer in others(net, self.names).items()
            ]
        for name in self.names:
            try:
                with in_user_code(f"what.unit, {named(self.unit)}"):
                    check_grid(self.unit(params[name]), params[name].shape)
            except Incompatible as error:
                problems += [f"layer {name.removesuffix('.weight')}: {problem}" for problem in error.problems]
        if problems:
            raise Incompatible(*problems)

    def select(self, scores: Scores, density: float) -> Mask:
        """Return the entries of the units to keep; higher scores first.

        Raises NotANumber, with the layer, if a score is NaN.
        """
        for name in self.names:
            if torch.isnan(scores[name]).any():
                raise NotANumber(name)
        units = {name: self.unit(wide(scores[name])) for name in self.names}
        shapes = {name: scores[name].shape for name in self.names}
        if self.cost is None:
            return self._selected(units, density, shapes)
        total, least = sum(u.numel() for u in units.values()), sum(min(u.numel(), self.min_per_layer) for u in units.values())
        return reached(lambda part: self._selected(units, part, shapes), density, self.cost, total, least)

    def _selected(self, units: Scores, density: float, shapes: Shapes) -> Mask:
        """Return the entries of the units to keep, of which `density` is a share of units."""
        with in_user_code(f"what.scope, {named(self.scope)}"):
            survivors = self._survivors(units, density, shapes)
            check_kept(survivors, units)
        if self.round_to > 1:
            survivors = rounded(units, survivors, self.round_to, self.carry)
        return {name: spread(survivors[name], shapes[name]) for name in self.names}

    def _survivors(self, units: Scores, density: float, shapes: Shapes) -> Mask:
        """Return the units that the scope keeps, and the best `min_per_layer` living units of each layer."""
        if not self.min_per_layer:
            return self._scope(units, density, shapes)
        best = {name: keep_best({name: score}, self.min_per_layer)[name] for name, score in units.items()}
        if self.emerges:  # there is no exact count, and protected units would not count in the layer's standard deviation
            return {name: alive | best[name] for name, alive in self._scope(units, density, shapes).items()}
        return self._scope({name: score.masked_fill(best[name], math.inf) for name, score in units.items()}, density, shapes)

    @property
    def emerges(self) -> str:
        """The text for the plan in the place of an event's density, if the scope does not bring the mask to it; else ""."""
        return self.pool.emerges

    @functools.cached_property
    def kind(self) -> UnitKind:
        """The attributes that the unit declares."""
        return complete(self.unit, UnitKind)

    @functools.cached_property
    def pool(self) -> Pool:
        """The attributes that the scope declares."""
        return complete(self.scope, Pool)

    @functools.cached_property
    def ends(self) -> Ends:
        """The first and last layers of the network, by the words that configurations use."""
        return _ends(self._order, self.names)

    @functools.cached_property
    def in_order(self) -> tuple[str, ...]:
        """The prunable tensors in the order in which the network runs them."""
        return self._order.sorted(self.names)

    @property
    def _order(self) -> LayerOrder:
        return self.order or by_definition({name: (name,) for name in self.names})

    @functools.cached_property
    def _scope(self) -> Scope:
        """The scope, with the ends if it has an argument for them."""
        takes_ends = "ends" in inspect.signature(self.scope).parameters
        return functools.partial(self.scope, ends=self.ends) if takes_ends else self.scope

    def broken(self, mask: Mask) -> list[str]:
        """Return the names of the tensors of which some units live in part."""
        alive = {name: (self.unit(entries.float()) > 0).expand(entries.shape) for name, entries in mask.items()}
        return [name for name, entries in mask.items() if not torch.equal(alive[name], entries)]

    def units(self, params: Params) -> dict[str, int]:
        """Return the number of units of each layer."""
        return {name: self.unit(params[name]).numel() for name in self.names}

    def alive_units(self, mask: Mask) -> tuple[int, int]:
        """Return (living units, all units). A unit is alive if its entries are."""
        layers = [_alive_units(mask[name], self.unit) for name in self.names]
        return sum(alive for alive, _ in layers), sum(units for _, units in layers)

    def alive_by_layer(self, mask: Mask) -> dict[str, int]:
        """Return the number of living units of each layer."""
        return {name: _alive_units(mask[name], self.unit)[0] for name in self.names}


def _listed(names: tuple[str, ...]) -> str:
    """Return the layers of these weights as text."""
    return ", ".join(name.removesuffix(".weight") for name in names)


def _ends(order: LayerOrder, names: tuple[str, ...]) -> Ends:
    return {"first": order.first(names), "last": order.last(names)}


@remembered
def _alive_units(mask: Tensor, unit: Unit) -> tuple[int, int]:
    alive = unit(mask.float())
    return int((alive > 0).sum()), alive.numel()
