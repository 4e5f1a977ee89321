"""Wiring: which channels of which layers are one and the same unit, and in what order a network computes them.

Read from the network's own forward by torch.fx, so it needs nothing but torch, and knows less than torch_pruning.py: a unit is
followed from the convolution or linear layer that makes it, through BatchNorm, activations, pooling and flattening, to the
layers that read it. Whatever else happens to it (it is added, concatenated, normalised with others, dropped at random, put out)
is not taken apart: such a unit is `fixed`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fedprune.compaction.op_tables import CURVES, NORMS, POOLS, RELU, asks_for_batch, averages, flattens
from fedprune.compaction.resize import LAYERS
from fedprune.plain_layers import changed, listens
from fedprune.pruning.evidence.network import blank


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer. makes: the unit of each output channel; reads: that of each input channel, -1 where it is
    none. before: the places at which it reads, (H, W) of images. products: multiplications for one example."""

    makes: Tensor
    reads: Tensor
    before: torch.Size
    products: int


@dataclass(frozen=True)
class Wiring:
    """nodes: what the network does, in order; kinds: `layer`, `norm`, `each` (each channel by itself), `flatten` or `other`.

    units, places: of each value whose channels are units, their numbers and where they are. layers, norms: by name, in order.
    fixed: [units], which have to stay as they are. bare: the layers that are read without a ReLU between.
    """

    nodes: tuple[fx.Node, ...]
    kinds: Mapping[fx.Node, str]
    units: Mapping[fx.Node, Tensor]
    places: Mapping[fx.Node, torch.Size]
    layers: Mapping[str, Layer]
    norms: Mapping[str, Tensor]
    fixed: Tensor
    bare: frozenset[str]


def wiring(net: nn.Module, shape: tuple[int, ...]) -> Wiring | None:
    """How a network is wired while it is trained on inputs [B, *shape]. None if its forward cannot be read or draws random
    numbers itself, or if parts of it are more than layers that are called (hooks, shared weights, weights used elsewhere)."""
    if _entangled(net):
        return None
    traced = copy.deepcopy(net).train()
    graph = _graph(traced)
    if graph is None:
        return None
    reading = _Reading(fx.GraphModule(traced, graph).eval())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            inputs, parameter = blank(net, shape), next(net.parameters())
            reading.run(inputs.to(parameter if inputs.is_floating_point() else parameter.device))
        except (RuntimeError, TypeError, ValueError):
            return None
    return reading.wiring()


def _entangled(net: nn.Module) -> bool:
    """Whether parts of a network are more than layers that are called."""
    shared = len(list(net.named_parameters(remove_duplicate=False))) != len(list(net.parameters()))
    return shared or bool(changed(net)) or listens(net)


def _graph(net: nn.Module) -> fx.Graph | None:
    """What the forward does, if it does the same each time, and draws nothing on its way."""
    before = _generators()
    try:
        first, again = (fx.Tracer().trace(net) for _ in range(2))
    except Exception:  # a forward may do anything that can be done to tensors, and these are none
        return None
    steady = _told(first) == _told(again) and _generators() == before
    inputs = [node for node in first.nodes if node.op == "placeholder"]
    return first if steady and len(inputs) == 1 else None


def _generators() -> tuple:
    """The states of all that a forward could draw from."""
    numbers = np.random.get_state(legacy=True)
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numbers[1].tobytes(), numbers[2:]  # type: ignore[union-attr,index]


def _told(graph: fx.Graph) -> list[tuple[str, ...]]:
    return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in graph.nodes]


class _Reading(fx.Interpreter):
    """One run of the graph, which notes what units are where."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced)
        self._modules = dict(traced.named_modules())
        self._calls = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
        self._shapes: dict[fx.Node, torch.Size] = {}
        self._kinds: dict[fx.Node, str] = {}
        self._units: dict[fx.Node, Tensor] = {}
        self._layers: dict[str, Layer] = {}
        self._norms: dict[str, Tensor] = {}
        self._fixed: list[Tensor] = []
        self._made: dict[fx.Node, tuple[str, bool]] = {}  # by which layer, and whether through a ReLU
        self._bare: set[str] = set()
        self._count = 0

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, as always."""
        value = super().run_node(n)
        kind = self._kinds[n] = self._kind(n, value)
        if isinstance(value, Tensor):
            self._shapes[n] = value.shape
        if kind == "layer":
            self._make(n, n.args[0], value.shape)  # type: ignore[arg-type]
        elif kind != "other":
            self._pass_on(n, n.args[0], kind)  # type: ignore[arg-type]
        elif not asks_for_batch(n):
            self._fixed += [self._units[source] for source in n.all_input_nodes if source in self._units]
        return value

    def wiring(self) -> Wiring | None:
        """What was noted."""
        used = {str(node.target).rpartition(".")[0] for node in self._kinds if node.op == "get_attr"}
        output = next(node for node in self._kinds if node.op == "output")
        if used & (set(self._layers) | set(self._norms)) or not isinstance(output.args[0], fx.Node):
            return None
        fixed = torch.zeros(self._count, dtype=torch.bool)
        for units in self._fixed:
            fixed[units] = True
        places = {node: self._shapes[node][2:] for node in self._units}
        told = (tuple(self._kinds), self._kinds, self._units, places, self._layers, self._norms, fixed)
        return Wiring(*told, frozenset(self._bare))

    def _kind(self, node: fx.Node, value: Any) -> str:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not isinstance(value, Tensor) or source not in self._shapes:
            return "other"
        dims, target = len(self._shapes[source]), self._target(node)
        if source in self._units and value.dim() == 2 and flattens(node, self._modules.get(str(node.target)), dims):
            return "flatten"
        if node.all_input_nodes != [source] or any(arg is source for arg in node.args[1:]):
            return "other"
        if target in LAYERS:
            layer = self._modules[str(node.target)]
            return "layer" if layer.weight.dim() == dims and getattr(layer, "groups", 1) == 1 else "other"  # type: ignore[operator,union-attr]
        if source not in self._units:
            return "other"
        if target in NORMS:
            return "norm"
        return "each" if target in CURVES or POOLS.get(target) == dims or averages(node, dims) else "other"

    def _target(self, node: fx.Node) -> Any:
        """The class of the layer that is called (None: it is called more than once), the function, or the method's name."""
        if node.op != "call_module":
            return node.target if node.op in ("call_function", "call_method") else None
        kind = type(self._modules[str(node.target)])
        return None if kind in (*LAYERS, *NORMS) and self._calls.count(str(node.target)) > 1 else kind

    def _make(self, node: fx.Node, source: fx.Node, shape: torch.Size) -> None:
        name = str(node.target)
        weight: Tensor = self._modules[name].weight  # type: ignore[assignment]
        makes = torch.arange(self._count, self._count + len(weight))
        reads = self._units.get(source, torch.full((weight.shape[1],), -1))
        self._units[node], self._made[node], self._count = makes, (name, False), self._count + len(weight)
        self._layers[name] = Layer(makes, reads, self._shapes[source][2:], weight.numel() * shape[2:].numel())
        self._bare |= {maker for maker, rectified in [self._made.get(source, ("", True))] if not rectified}

    def _pass_on(self, node: fx.Node, source: fx.Node, kind: str) -> None:
        units, (maker, rectified) = self._units[source], self._made[source]
        self._units[node] = units.repeat_interleave(self._shapes[source][2:].numel()) if kind == "flatten" else units
        self._made[node] = maker, rectified or self._target(node) in RELU
        if kind == "norm":
            self._norms[str(node.target)] = units
