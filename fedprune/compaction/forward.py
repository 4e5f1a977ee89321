"""How a network runs whose units are divided into live and constant ones (see liveness.py): each step, on both.

A constant is [1, units, *places]; while it is the same at all places, as biases are, these are 1. Zero padding ends that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from fedprune.compaction.constants import apply
from fedprune.compaction.fx_graph import Wiring
from fedprune.compaction.op_tables import AVERAGES, POOLS
from fedprune.compaction.sparse_linear import SparseLinear

Values = dict[fx.Node, Any]
Step = Callable[[Values, Values], None]
"""(what the live units have come to, what the constant ones have) -> the next value is among them."""


class Reader(nn.Module):
    """What a layer makes of constants. channels: which of those before it, if not all. places: where it reads them."""

    channels: Tensor | None

    def __init__(self, layer: nn.Module, channels: Tensor | None, places: torch.Size):
        super().__init__()
        self.layer, self.places = layer, places
        self.padded = any(getattr(layer, "padding", ()))  # a word, `same` or `valid`, counts as padding
        self.register_buffer("channels", channels, persistent=False)

    def forward(self, constants: Tensor) -> Tensor:
        """[1, channels, ...] -> [1, outputs, ...]."""
        constants = constants if self.channels is None else constants.index_select(1, self.channels)
        if self.padded or not even(constants):
            return self.layer(constants.expand(-1, -1, *self.places))
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        columns = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        return F.linear(constants.flatten(1), columns, self.layer.bias).view(1, -1, *[1] * len(self.places))  # type: ignore[arg-type]


class Emitter(nn.Module):
    """The constants that units of a layer emit, whatever those before it are: biases."""

    nothing: Tensor

    def __init__(self, layer: nn.Module, nothing: Tensor):
        super().__init__()
        self.layer = layer
        self.register_buffer("nothing", nothing, persistent=False)

    def forward(self, constants: Tensor | None) -> Tensor:
        """[1, units, 1, ...]."""
        bias = self.layer.bias
        return self.nothing.clone() if bias is None else bias.view(self.nothing.shape).clone()  # type: ignore[operator]


def even(constants: Tensor) -> bool:
    """Whether they are the same at all places."""
    return constants.shape[2:].numel() == 1


def key_of(name: str) -> str:
    """A layer's name where names cannot have dots."""
    return name.replace(".", "/")


Extras = Mapping[str, nn.Module]
"""By the names of layers, see `key_of`."""


def run(wired: Wiring, live: nn.Module, constant: Extras, added: Extras) -> Callable[[Tensor], Tensor]:
    """The network as a function. live: it, with layers cut to what is live; constant: what makes a layer's constants of those
    before it; added: what a layer adds to its outputs for them."""
    first = next(node for node in wired.nodes if node.op == "placeholder")
    last = wired.nodes[-1].args[0]
    inner = [node for node in wired.nodes if node.op not in ("placeholder", "output")]
    steps = [_step(node, wired, live, constant, added) for node in inner]

    def forward(inputs: Tensor) -> Tensor:
        lives: Values = {first: inputs}
        constants: Values = {}
        for step in steps:
            step(lives, constants)
        return lives[last]  # type: ignore[index]

    return forward


def _step(node: fx.Node, wired: Wiring, live: nn.Module, constant: Extras, added: Extras) -> Step:
    kind, name = wired.kinds[node], str(node.target)
    if kind == "other":
        return partial(_other, node, _called(node, live))
    if kind == "flatten":
        return partial(_flatten, node, wired.places[node.args[0]])  # type: ignore[index]
    if kind == "each":
        target = type(live.get_submodule(name)) if node.op == "call_module" else node.target
        places = None if target not in POOLS else wired.places[node.args[0]]  # type: ignore[index]
        return partial(_each, node, partial(_with, _called(node, live), node.args[1:], node.kwargs), places, target in AVERAGES)
    emitter = constant.get(key_of(name))
    if kind == "norm":
        return partial(_norm, node, live.get_submodule(name), emitter)
    return partial(_layer, node, live.get_submodule(name), emitter, added.get(key_of(name)))


def _called(node: fx.Node, live: nn.Module) -> Callable:
    """What a node calls, on its arguments."""
    if node.op == "call_module":
        return live.get_submodule(str(node.target))
    if node.op == "call_method":
        return lambda values, *rest, **named: getattr(values, str(node.target))(*rest, **named)
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return lambda: getattr(live.get_submodule(owner), name)
    return node.target  # type: ignore[return-value]


def _with(function: Callable, rest: tuple, named: dict, values: Tensor) -> Tensor:
    return function(values, *rest, **named)


def _layer(
    node: fx.Node, layer: nn.Module, emitter: nn.Module | None, reader: nn.Module | None, lives: Values, constants: Values
) -> None:
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    more = None if reader is None else reader(constants[source])
    if more is None:
        lives[node] = layer(lives[source])
    elif isinstance(layer, SparseLinear):
        lives[node] = layer(lives[source], more.view(-1))
    elif even(more):  # biases are added to each example anyway
        bias = more.view(-1) if layer.bias is None else layer.bias + more.view(-1)
        lives[node] = apply(layer, lives[source], layer.weight, bias)  # type: ignore[arg-type]
    else:
        lives[node] = layer(lives[source]) + more
    if emitter is not None:
        constants[node] = emitter(constants.get(source))


def _norm(node: fx.Node, norm: nn.Module, emitter: nn.Module | None, lives: Values, constants: Values) -> None:
    source: fx.Node = node.args[0]  # type: ignore[assignment]
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
    """places: over which it pools, if it does. What is the same everywhere is its own maximum, its average but for padding."""
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    lives[node] = function(lives[source])
    if source in constants:
        once = constants[source]
        if places is None:
            constants[node] = function(once)
        else:
            constants[node] = once.clone() if even(once) and not averages else function(once.expand(-1, -1, *places))


def _flatten(node: fx.Node, places: torch.Size, lives: Values, constants: Values) -> None:
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    lives[node] = lives[source].flatten(1)
    if source in constants:
        constants[node] = constants[source].expand(-1, -1, *places).flatten(1)


def _other(node: fx.Node, function: Callable, lives: Values, constants: Values) -> None:
    args, named = map_arg((node.args, node.kwargs), lives.__getitem__)
    lives[node] = function(*args, **named)
