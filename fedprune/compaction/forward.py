"""The forward of a network whose units are divided into live and constant ones (see liveness.py): each step runs on both.

A constant is [1, units, *places]; while it is the same at all places, as biases are, these are 1. Zero padding ends that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from fedprune.compaction.constants import with_weight
from fedprune.compaction.fx_graph import ChannelGraph
from fedprune.compaction.op_tables import AVERAGES, POOLS
from fedprune.compaction.sparse_linear import SparseLinear
from fedprune.types import Function

Values = dict[fx.Node, Any]
Step = Callable[[Values, Values], None]
"""(values of the live units, values of the constant ones) -> None; it adds the next value to both."""


class Reader(nn.Module):
    """The output of a layer for constants. channels: those that it reads, if not all.

    places: the shape in which it reads them.
    """

    channels: Tensor | None

    def __init__(self, layer: nn.Module, channels: Tensor | None, places: torch.Size):
        super().__init__()
        self.layer, self.places = layer, places
        self.padded = any(getattr(layer, "padding", ()))  # the words `same` and `valid` count as padding
        self.register_buffer("channels", channels, persistent=False)

    def forward(self, constants: Tensor) -> Tensor:
        """Return [1, outputs, ...] of constants [1, channels, ...]."""
        constants = constants if self.channels is None else constants.index_select(1, self.channels)
        if self.padded or not even(constants):
            outputs: Tensor = self.layer(constants.expand(-1, -1, *self.places))
            return outputs
        weight, bias = cast(Tensor, self.layer.weight), cast(Tensor | None, self.layer.bias)
        columns = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        return F.linear(constants.flatten(1), columns, bias).view(1, -1, *[1] * len(self.places))


class Emitter(nn.Module):
    """The constants that units of a layer emit when they read none: their biases."""

    nothing: Tensor

    def __init__(self, layer: nn.Module, nothing: Tensor):
        super().__init__()
        self.layer = layer
        self.register_buffer("nothing", nothing, persistent=False)

    def forward(self, constants: Tensor | None) -> Tensor:
        """Return [1, units, 1, ...]."""
        bias = cast(Tensor | None, self.layer.bias)
        return self.nothing.clone() if bias is None else bias.view(self.nothing.shape).clone()


def even(constants: Tensor) -> bool:
    """Return whether constants are the same at all places."""
    return constants.shape[2:].numel() == 1


def key_of(name: str) -> str:
    """Return a layer's name for a place where names cannot have dots."""
    return name.replace(".", "/")


Extras = Mapping[str, nn.Module]
"""Modules by the names of layers, see `key_of`."""


def run(graph: ChannelGraph, live: nn.Module, constant: Extras, added: Extras) -> Callable[[Tensor], Tensor]:
    """Return the network as a function.

    live: the network with layers cut to live units. constant: the modules that compute a layer's constants. added: the modules
    that compute the sum which constants add to the outputs of a layer.
    """
    first = next(node for node in graph.nodes if node.op == "placeholder")
    last = cast(fx.Node, graph.nodes[-1].args[0])
    inner = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    steps = [_step(node, graph, live, constant, added) for node in inner]

    def forward(inputs: Tensor) -> Tensor:
        lives: Values = {first: inputs}
        constants: Values = {}
        for step in steps:
            step(lives, constants)
        outputs: Tensor = lives[last]
        return outputs

    return forward


def _source(node: fx.Node) -> fx.Node:
    """Return the node whose value is the first argument of this one."""
    return cast(fx.Node, node.args[0])


def _step(node: fx.Node, graph: ChannelGraph, live: nn.Module, constant: Extras, added: Extras) -> Step:
    kind, name = graph.kinds[node], str(node.target)
    if kind == "other":
        return partial(_other, node, _called(node, live))
    if kind == "flatten":
        return partial(_flatten, node, graph.places[_source(node)])
    if kind == "each":
        target = type(live.get_submodule(name)) if node.op == "call_module" else node.target
        places = graph.places[_source(node)] if target in POOLS else None
        function = partial(_with, _called(node, live), node.args[1:], node.kwargs)
        return partial(_each, node, function, places, target in AVERAGES)
    emitter = constant.get(key_of(name))
    if kind == "norm":
        return partial(_norm, node, live.get_submodule(name), emitter)
    return partial(_layer, node, live.get_submodule(name), emitter, added.get(key_of(name)))


def _called(node: fx.Node, live: nn.Module) -> Function:
    """Return the function that a node calls on its arguments."""
    if node.op == "call_module":
        return live.get_submodule(str(node.target))
    if node.op == "call_method":
        return lambda values, *rest, **named: getattr(values, str(node.target))(*rest, **named)
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return lambda: getattr(live.get_submodule(owner), name)
    return cast(Function, node.target)


def _with(function: Callable[..., Tensor], rest: tuple[object, ...], named: Mapping[str, object], values: Tensor) -> Tensor:
    return function(values, *rest, **named)


def _layer(
    node: fx.Node, layer: nn.Module, emitter: nn.Module | None, reader: nn.Module | None, lives: Values, constants: Values
) -> None:
    source = _source(node)
    more = None if reader is None else reader(constants[source])
    if more is None:
        lives[node] = layer(lives[source])
    elif isinstance(layer, SparseLinear):
        lives[node] = layer(lives[source], more.view(-1))
    elif even(more):  # biases are added to each example anyway
        bias = more.view(-1) if layer.bias is None else layer.bias + more.view(-1)
        lives[node] = with_weight(layer, lives[source], cast(Tensor, layer.weight), bias)
    else:
        lives[node] = layer(lives[source]) + more
    if emitter is not None:
        constants[node] = emitter(constants.get(source))


def _norm(node: fx.Node, norm: nn.Module, emitter: nn.Module | None, lives: Values, constants: Values) -> None:
    source = _source(node)
    lives[node] = norm(lives[source])
    if emitter is not None:  # of one value there is no variance, and torch refuses: let there be two examples
        once = constants[source]
        constants[node] = emitter(once.expand(2, *once.shape[1:]))[:1]


def _each(
    node: fx.Node,
    function: Callable[[Tensor], Tensor],
    places: torch.Size | None,
    averages: bool,
    lives: Values,
    constants: Values,
) -> None:
    """Run a step that acts on each channel by itself. places: those over which it pools, if it does.

    A constant that is the same at all places is its own maximum, and its own average but for padding.
    """
    source = _source(node)
    lives[node] = function(lives[source])
    if source in constants:
        once = constants[source]
        if places is None:
            constants[node] = function(once)
        elif even(once) and not averages:
            constants[node] = once.clone()
        else:
            constants[node] = function(once.expand(-1, -1, *places))


def _flatten(node: fx.Node, places: torch.Size, lives: Values, constants: Values) -> None:
    source = _source(node)
    lives[node] = lives[source].flatten(1)
    if source in constants:
        constants[node] = constants[source].expand(-1, -1, *places).flatten(1)


def _other(node: fx.Node, function: Function, lives: Values, constants: Values) -> None:
    args, named = map_arg((node.args, node.kwargs), lives.__getitem__)
    lives[node] = function(*args, **named)
