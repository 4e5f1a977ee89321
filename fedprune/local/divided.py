"""How a network runs whose units are divided into live and constant ones (see pruning/parts.py): each step, on both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from fedprune.pruning.wiring import Wiring

Values = dict[fx.Node, Any]
Step = Callable[[Values, Values], None]
"""(what the live units have come to, what the constant ones have, for one example) -> the next value is among them."""


class Reader(nn.Module):
    """What a layer makes of constants. channels: which of those before it, if not all."""

    channels: Tensor | None

    def __init__(self, layer: nn.Module, channels: Tensor | None):
        super().__init__()
        self.layer = layer
        self.register_buffer("channels", channels, persistent=False)

    def forward(self, constants: Tensor) -> Tensor:
        """[1, channels, ...] -> [1, outputs, ...]."""
        return self.layer(constants if self.channels is None else constants.index_select(1, self.channels))


class Emitter(nn.Module):
    """The constants that units of a layer emit: biases, spread over all places."""

    nothing: Tensor

    def __init__(self, layer: nn.Module, nothing: Tensor):
        super().__init__()
        self.layer = layer
        self.register_buffer("nothing", nothing, persistent=False)

    def forward(self, constants: Tensor | None) -> Tensor:
        """[1, units, *places], whatever the constants before it are."""
        if self.layer.bias is None:
            return self.nothing.clone()
        return self.nothing + self.layer.bias.view(-1, *[1] * (self.nothing.dim() - 2))  # type: ignore[operator]


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
    steps = [_step(node, wired.kinds[node], live, constant, added) for node in inner]

    def forward(inputs: Tensor) -> Tensor:
        lives: Values = {first: inputs}
        constants: Values = {}
        for step in steps:
            step(lives, constants)
        return lives[last]  # type: ignore[index]

    return forward


def _step(node: fx.Node, kind: str, live: nn.Module, constant: Extras, added: Extras) -> Step:
    if kind == "other":
        return partial(_other, node, _called(node, live))
    if kind == "flatten":
        return partial(_each, node, lambda values: values.flatten(1))
    if kind == "each":
        return partial(_each, node, partial(_with, _called(node, live), node.args[1:], node.kwargs))
    name = str(node.target)
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
    if reader is None:
        lives[node] = layer(lives[source])
    elif isinstance(layer, nn.Linear):  # its bias is added to each example anyway
        more = reader(constants[source])[0]
        lives[node] = F.linear(lives[source], layer.weight, more if layer.bias is None else layer.bias + more)
    else:
        lives[node] = layer(lives[source]) + reader(constants[source])
    if emitter is not None:
        constants[node] = emitter(constants.get(source))


def _norm(node: fx.Node, norm: nn.Module, emitter: nn.Module | None, lives: Values, constants: Values) -> None:
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    lives[node] = norm(lives[source])
    if emitter is not None:  # of one value there is no variance, and torch refuses: let there be two examples
        once = constants[source]
        constants[node] = emitter(once.expand(2, *once.shape[1:]))[:1]


def _each(node: fx.Node, function: Callable[[Tensor], Tensor], lives: Values, constants: Values) -> None:
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    lives[node] = function(lives[source])
    if source in constants:
        constants[node] = function(constants[source])


def _other(node: fx.Node, function: Callable, lives: Values, constants: Values) -> None:
    args, named = map_arg((node.args, node.kwargs), lives.__getitem__)
    lives[node] = function(*args, **named)
