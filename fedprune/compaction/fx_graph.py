"""The graph of a network's channels: the units that layers make and read, and the operations in their order.

torch.fx reads it from the network's own forward. It needs no other package, and knows less than torch_pruning.py: a unit is
followed from the convolution or linear layer that makes it, through BatchNorm, activations, pooling and flattening, to the
layers that read it. A unit to which anything else happens (it is added, concatenated, normalised with others, dropped at
random, put out) is `fixed`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from fedprune.compaction.op_tables import BATCHNORMS, CURVES, POOLS, RELU, asks_for_batch, averages, flattens
from fedprune.compaction.resize import CUTTABLE_LAYERS
from fedprune.plain_layers import changed, listens
from fedprune.pruning.evidence.network import blank


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer.

    makes: the unit of each output channel. reads: the unit of each input channel, -1 where it is none. before: the places at
    which the layer reads, (H, W) of images. products: the multiplications for one example.
    """

    makes: Tensor
    reads: Tensor
    before: torch.Size
    products: int


@dataclass(frozen=True)
class ChannelGraph:
    """The operations of a network, and its units.

    nodes: the operations, in order. kinds: `layer`, `norm`, `each` (each channel by itself), `flatten` or `other`.
    units, places: of each value whose channels are units, their numbers and the shape of its places. layers, norms: by name, in
    order. fixed: [units], true where a unit must stay as it is. bare: the layers that are read without a ReLU between.
    """

    nodes: tuple[fx.Node, ...]
    kinds: Mapping[fx.Node, str]
    units: Mapping[fx.Node, Tensor]
    places: Mapping[fx.Node, torch.Size]
    layers: Mapping[str, Layer]
    norms: Mapping[str, Tensor]
    fixed: Tensor
    bare: frozenset[str]


def channel_graph(net: nn.Module, shape: tuple[int, ...]) -> ChannelGraph | None:
    """Return the graph of a network in training on inputs [B, *shape], or None.

    None: the forward cannot be read or draws random numbers itself, or parts of the network are more than layers that are
    called (hooks, shared weights, weights used elsewhere).
    """
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
    return reading.channel_graph()


def _entangled(net: nn.Module) -> bool:
    """Return whether parts of a network are more than layers that are called."""
    shared = len(list(net.named_parameters(remove_duplicate=False))) != len(list(net.parameters()))
    return shared or bool(changed(net)) or listens(net)


def _graph(net: nn.Module) -> fx.Graph | None:
    """Return the operations of the forward if they are the same each time and draw no random numbers, else None."""
    before = _generators()
    try:
        first, again = (fx.Tracer().trace(net) for _ in range(2))
    except Exception:  # a forward may use tensors in any way, and is traced without tensors
        return None
    steady = _told(first) == _told(again) and _generators() == before
    inputs = [node for node in first.nodes if node.op == "placeholder"]
    return first if steady and len(inputs) == 1 else None


def _generators() -> tuple[object, ...]:
    """Return the states of all generators that a forward could draw from."""
    numpy_state = cast(tuple[str, np.ndarray, int, int, float], np.random.get_state(legacy=True))
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy_state[1].tobytes(), numpy_state[2:]


def _told(graph: fx.Graph) -> list[tuple[str, ...]]:
    """Return the operations of a graph as text."""
    return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in graph.nodes]


class _Reading(fx.Interpreter):
    """One run of the graph, which notes the units of each value."""

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
        self._made: dict[fx.Node, tuple[str, bool]] = {}  # the layer that makes a value, and whether through a ReLU
        self._bare: set[str] = set()
        self._count = 0

    def run_node(self, n: fx.Node) -> object:
        """Return the node's value, after its units are noted."""
        value = super().run_node(n)
        kind = self._kinds[n] = self._kind(n, value)
        if isinstance(value, Tensor):
            self._shapes[n] = value.shape
        if kind == "layer":
            self._make(n, cast(fx.Node, n.args[0]), value.shape)
        elif kind != "other":
            self._pass_on(n, cast(fx.Node, n.args[0]), kind)
        elif not asks_for_batch(n):
            self._fixed += [self._units[source] for source in n.all_input_nodes if source in self._units]
        return value

    def channel_graph(self) -> ChannelGraph | None:
        """Return the graph that was noted, or None if weights are used outside of their layers."""
        used = {str(node.target).rpartition(".")[0] for node in self._kinds if node.op == "get_attr"}
        output = next(node for node in self._kinds if node.op == "output")
        if used & (set(self._layers) | set(self._norms)) or not isinstance(output.args[0], fx.Node):
            return None
        fixed = torch.zeros(self._count, dtype=torch.bool)
        for units in self._fixed:
            fixed[units] = True
        places = {node: self._shapes[node][2:] for node in self._units}
        return ChannelGraph(
            nodes=tuple(self._kinds),
            kinds=self._kinds,
            units=self._units,
            places=places,
            layers=self._layers,
            norms=self._norms,
            fixed=fixed,
            bare=frozenset(self._bare),
        )

    def _kind(self, node: fx.Node, value: object) -> str:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not isinstance(value, Tensor) or source not in self._shapes:
            return "other"
        dims, target = len(self._shapes[source]), self._target(node)
        if source in self._units and value.dim() == 2 and flattens(node, self._modules.get(str(node.target)), dims):
            return "flatten"
        if node.all_input_nodes != [source] or any(arg is source for arg in node.args[1:]):
            return "other"
        if target in CUTTABLE_LAYERS:
            layer = self._modules[str(node.target)]
            reads_all = cast(Tensor, layer.weight).dim() == dims and getattr(layer, "groups", 1) == 1
            return "layer" if reads_all else "other"
        if source not in self._units:
            return "other"
        if target in BATCHNORMS:
            return "norm"
        return "each" if target in CURVES or POOLS.get(target) == dims or averages(node, dims) else "other"

    def _target(self, node: fx.Node) -> object:
        """Return the class of the layer that is called (None: it is called again), the function, or the method's name."""
        if node.op != "call_module":
            return node.target if node.op in ("call_function", "call_method") else None
        kind = type(self._modules[str(node.target)])
        return None if kind in (*CUTTABLE_LAYERS, *BATCHNORMS) and self._calls.count(str(node.target)) > 1 else kind

    def _make(self, node: fx.Node, source: fx.Node, shape: torch.Size) -> None:
        name = str(node.target)
        weight = cast(Tensor, self._modules[name].weight)
        makes = torch.arange(self._count, self._count + len(weight))
        reads = self._units.get(source, torch.full((weight.shape[1],), -1))
        self._units[node], self._made[node], self._count = makes, (name, False), self._count + len(weight)
        self._layers[name] = Layer(makes, reads, self._shapes[source][2:], weight.numel() * shape[2:].numel())
        maker, rectified = self._made.get(source, ("", True))
        if not rectified:
            self._bare.add(maker)

    def _pass_on(self, node: fx.Node, source: fx.Node, kind: str) -> None:
        units, (maker, rectified) = self._units[source], self._made[source]
        self._units[node] = units.repeat_interleave(self._shapes[source][2:].numel()) if kind == "flatten" else units
        self._made[node] = maker, rectified or self._target(node) in RELU
        if kind == "norm":
            self._norms[str(node.target)] = units
