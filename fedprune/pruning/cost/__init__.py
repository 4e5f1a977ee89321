"""The share of a dense network that a mask leaves, of which `density` is a target: `density_of`.

units: living units / all units, layer by layer or of all layers, as the scope counts them. weights: living entries / prunable
entries. params: (all parameters - dead entries) / all parameters. flops: the multiply-adds of one example's forward pass that
are left / those of the dense network: of each layer as many as entries are left of its weights. For units of whole outputs or
inputs the entries are left that lie on a path from the input to the output (connectivity), as in the network that
`ticket export --compact` writes: a dead filter takes the inputs that read it along.
"""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.errors import ConfigError, Incompatible
from fedprune.pruning.connectivity import effective, unfollowed
from fedprune.pruning.evidence.network import blank, evaluated
from fedprune.pruning.mask import living, ones
from fedprune.pruning.what import What
from fedprune.pruning.what.layers import weights_of
from fedprune.tensors import other_names, tensors_of
from fedprune.types import Mask

log = logging.getLogger(__name__)

OF = ("units", "weights", "params", "flops")
"""The values of density_of."""


@dataclass(frozen=True)
class Cost:
    """(mask) -> the share that is left. of: what is counted. each: the cost of an entry, by tensor. fixed: the cost of all that
    no mask takes away. total: of the dense network. left: (mask) -> the entries that are left; None means the mask's own."""

    of: str
    each: Mapping[str, float]
    fixed: float
    total: float
    left: Callable[[Mask], Mask] | None = None

    def __call__(self, mask: Mask) -> float:
        entries = mask if self.left is None else self.left(mask)
        return (self.fixed + sum(each * living(entries[name]) for name, each in self.each.items())) / self.total


def counted(of: str, what: What, net: nn.Module, shape: tuple[int, ...], option: str) -> What:
    """Return the axis under which a density is a share of what `of` names. option: the name of the axis, for messages.

    Raises ConfigError for an unknown word, Incompatible where the scope has densities of its own or nothing can be counted.
    """
    if of not in OF:
        raise ConfigError([f"density_of={of}: choose one of {', '.join(OF)}"])
    if of == "units":
        return what
    if what.pool.own_density or what.pool.by_formula:
        raise Incompatible(
            f"density_of={of}: what={option} has densities of its own for each layer, or only one: type density_of=units, or "
            f"choose what={'weights_global' if what.kind.single else 'filters_global'}"
        )
    return replace(what, cost=_flops(what, net, shape) if of == "flops" else _entries(of, what, net))


def _entries(of: str, what: What, net: nn.Module) -> Cost:
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    prunable = sum(sizes[name] for name in what.names)
    fixed = sum(sizes.values()) - prunable if of == "params" else 0
    return Cost(of, dict.fromkeys(what.names, 1.0), fixed, fixed + prunable)


def _flops(what: What, net: nn.Module, shape: tuple[int, ...]) -> Cost:
    net = copy.deepcopy(net)  # workers take it along
    each, total = flops_by_entry(net, shape)
    if not any(name in each for name in what.names):
        raise Incompatible("density_of=flops: no operations of the prunable layers can be counted: type density_of=weights")
    sizes = {name: tensor.numel() for name, tensor in tensors_of(net).items()}
    if what.kind.channelwise and not (problem := unfollowed(net, shape)):
        left = functools.partial(_on_paths, net=net, names=tuple(each), shape=shape)
        return Cost("flops", each, total - sum(cost * sizes[name] for name, cost in each.items()), total, left)
    if what.kind.channelwise:
        log.warning("density_of=flops counts inputs that nobody feeds, too, since %s", problem)
    own = {name: each[name] for name in what.names if name in each}
    return Cost("flops", own, total - sum(cost * sizes[name] for name, cost in own.items()), total)


def _on_paths(mask: Mask, net: nn.Module, names: tuple[str, ...], shape: tuple[int, ...]) -> Mask:
    """Return the entries of all counted weights that lie on a path from the input to the output."""
    return effective(net, ones(tensors_of(net), names) | mask, shape)


def flops_by_entry(net: nn.Module, shape: tuple[int, ...]) -> tuple[dict[str, float], float]:
    """Return the operations of one example's forward pass for each entry of each weight, and those of the whole network.

    The products of a layer of several weights (recurrent, attention) are shared out by their sizes. shape: of one input.
    """
    with torch.no_grad(), evaluated(net), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the switch remarks on devices that are not there
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            net(blank(net, shape))
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    further, root, each = other_names(net), type(net).__name__, dict[str, float]()
    for layer, weights in weights_of(net).items():
        names = [further.get(weight, weight) for weight in weights if further.get(weight, weight) in sizes]
        products = counts.get(f"{root}.{layer}" if layer else root, 0)
        for name in names if products else []:
            each[name] = each.get(name, 0.0) + products / sum(sizes[one] for one in names)
    return each, float(counts.get("Global", 0))


def unreachable(what: What, net: nn.Module, density: float) -> list[str]:
    """Return a problem if the density is less than units can reach, with the nearest; else log what they reach by the weights
    of the network as it is."""
    if what.cost is None:
        return []
    scores = {name: net.get_parameter(name).detach().abs() for name in what.names}
    of, least = f"density_of={what.cost.of}", what.cost(what.select(scores, 0.0))
    if least > density + 1e-9:
        nearest = min(1.0, (int(least * 1e4) + 1) / 1e4)
        floors = {"min_per_layer": what.min_per_layer, "round_to": what.round_to}
        named = " and ".join(f"what.{key}={floor}" for key, floor in floors.items() if floor > 1)
        left = f"what is not pruned, with {named}," if named else "what is not pruned, with a unit of each layer,"
        return [f"{of}: {left} leaves {least:.4g}, more than density={density:g}: type density={nearest:g}"]
    log.info("%s: density=%g is asked for, and whole units reach %.6g", of, density, what.cost(what.select(scores, density)))
    return []
