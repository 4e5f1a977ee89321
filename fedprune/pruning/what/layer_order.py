"""In what order a network runs its layers: which come first, which give its outputs, and which stand right before another.

traced: (network, its layers, one example) -> LayerOrder. The network runs once on the example, in evaluation mode, and every
call of a layer is noted with the calls that its inputs depend on. A call is that of the layer's module, or any operation with
one of its weights (a tied embedding, `F.linear(x, self.fc.weight)`). The order in which layers are defined plays no part.

Where a layer is called more than once, its last call gives its place in the order. A layer that no call was seen of has the
place that its definition gives it, and is neither first nor last. If the network cannot be run, or its outputs do not depend
on any layer that was seen, the order is that of definition. `problem` says so.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedprune.tensors import call

INPUT = 1
"""The bit of the network's input among what a value depends on; call k has bit k + 1."""

WITHOUT_VALUES = ("new_", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like")
"""Operations that take no more than the shape of a tensor."""


@dataclass(frozen=True)
class LayerOrder:
    """weights: of each layer the names of its weights, in the order of definition. calls: the layers, one entry per call, in
    the order of execution. reads: of each call, as bits, the calls (and the input) that it reads without another between.
    outputs: the same of each tensor that the network gives. problem: what could not be told, "" if everything could.

    Where a method takes names of weights and a layer has several, they count one after the other as they are defined.
    """

    weights: tuple[tuple[str, tuple[str, ...]], ...]
    calls: tuple[str, ...]
    reads: tuple[int, ...]
    outputs: tuple[int, ...]
    problem: str = ""

    def sorted(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the weights of these names in the order of execution."""
        return tuple(name for layer in self._placed for name in self._weights[layer] if name in names)

    def first(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the weights that the input reaches without passing any other of these names."""
        among = self._calls_of(names)
        sources = [call for call in _numbers(among) if not self._behind[call] & among]
        from_input = [call for call in sources if self._behind[call] & INPUT]
        layers = {self.calls[call] for call in from_input or sources}
        return self._ends(layers, names, 0) or self.sorted(names)[:1]

    def last(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the weights that stand behind all others of these names on the way to one of the network's outputs."""
        among = self._calls_of(names)
        layers = {self.calls[call] for output in self.outputs for call in self._nearest(output, among)}
        return self._ends(layers, names, -1) or self.sorted(names)[-1:]

    def before(self, layer: str, layers: Collection[str]) -> tuple[str, ...]:
        """Return which of `layers` a layer reads: those with no other of them between. None before the first."""
        among = sum(2 << call for call, name in enumerate(self.calls) if name in layers)
        own = [call for call, name in enumerate(self.calls) if name == layer]
        nearest = {self.calls[before] for call in own for before in self._nearest(self.reads[call], among)}
        return tuple(name for name in self._placed if name in nearest)

    def _ends(self, layers: Collection[str], names: Collection[str], which: int) -> tuple[str, ...]:
        """The first or last named weight of each layer, in the order of execution."""
        named = [[name for name in self._weights[layer] if name in names] for layer in self._placed if layer in layers]
        return tuple(weights[which] for weights in named)

    def _calls_of(self, names: Collection[str]) -> int:
        """The calls of the layers that have one of these weights, as bits."""
        layers = {layer for layer, weights in self.weights if not set(weights).isdisjoint(names)}
        return sum(2 << call for call, layer in enumerate(self.calls) if layer in layers)

    def _nearest(self, reads: int, among: int) -> list[int]:
        """Of the calls in `among`, those behind a value that reads these calls and with no other of them between."""
        waiting, seen, reached = reads & ~INPUT, 0, 0
        while waiting:
            call = waiting.bit_length() - 2
            seen |= 2 << call
            if among >> call & 2:
                reached |= 2 << call
            else:
                waiting |= self.reads[call] & ~INPUT
            waiting &= ~seen
        hidden = functools.reduce(lambda bits, call: bits | self._behind[call], _numbers(reached), 0)
        return _numbers(reached & ~hidden)

    @functools.cached_property
    def _behind(self) -> list[int]:
        """Of each call all that its inputs depend on, directly or not."""
        behind: list[int] = []
        for reads in self.reads:
            behind.append(functools.reduce(lambda bits, call: bits | behind[call], _numbers(reads), reads))
        return behind

    @functools.cached_property
    def _weights(self) -> dict[str, tuple[str, ...]]:
        return dict(self.weights)

    @functools.cached_property
    def _placed(self) -> tuple[str, ...]:
        """All layers by their last call; those without one behind the layer that is defined before them."""
        placed = list(dict.fromkeys(reversed(self.calls)))[::-1]
        before = ""
        for layer, _ in self.weights:
            if layer not in placed:
                placed.insert(placed.index(before) + 1 if before else 0, layer)
            before = layer
        return tuple(placed)


def by_definition(layers: Mapping[str, tuple[str, ...]], problem: str = "") -> LayerOrder:
    """Return the order in which layers are defined: each reads the one before, and the last one gives the outputs."""
    number = len(layers)
    return LayerOrder(tuple(layers.items()), tuple(layers), tuple(1 << call for call in range(number)), (1 << number,), problem)


def traced(net: nn.Module, layers: Mapping[str, tuple[str, ...]], example: Tensor) -> LayerOrder:
    """Return the order in which the network runs these layers on an example [1, ...].

    layers: the names of each layer's weights, by the layer's name, in the order of definition. The network, its buffers,
    flags and gradients and torch's random state are left as they are.
    """
    trace = _Trace(net, layers)
    flags = [(part, part.training) for part in net.modules()]
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    try:
        net.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), trace.hooks(net), trace:
            outputs = call(net, buffers, trace.started(example.clone()))
    except Exception as error:  # a forward is anybody's code and may raise anything
        return by_definition(layers, f"the network does not run on one example ({type(error).__name__}: {_line(error)})")
    finally:
        for part, training in flags:
            part.training = training
    return _order(trace, layers, tuple(trace.reads([leaf]) & ~INPUT for leaf in _tensors(outputs)))


def _order(trace: _Trace, layers: Mapping[str, tuple[str, ...]], outputs: tuple[int, ...]) -> LayerOrder:
    if not any(outputs):
        return by_definition(layers, "no layer was seen that the network's outputs depend on")
    called = [layer for layer, _ in trace.calls]
    never = [layer for layer in layers if layer not in called]
    problem = f"{', '.join(never)} is never called for one example, so its place is that of definition" if never else ""
    reads = tuple(read for _, read in trace.calls)
    return LayerOrder(tuple(layers.items()), tuple(called), reads, outputs, problem)


class _Trace(TorchDispatchMode):
    """Inside, operations note of each tensor's memory which calls of layers it depends on, with no other call between."""

    def __init__(self, net: nn.Module, layers: Mapping[str, tuple[str, ...]]):
        super().__init__()
        self.calls: list[tuple[str, int]] = []
        self._layers = {name: net.get_submodule(name) for name in layers}
        self._reads: dict[int, int] = {}
        self._weights: dict[int, set[str]] = {}  # memory -> the layers whose weight it is, or is made of
        self._within = 0
        self._alive: list[Tensor] = []  # so that no memory is given to two tensors
        parameters = dict(net.named_parameters(remove_duplicate=False))
        for layer, names in layers.items():
            for name in names:
                if name in parameters and not nn.parameter.is_lazy(parameters[name]):
                    self._weights.setdefault(_memory(parameters[name]), set()).add(layer)

    def started(self, example: Tensor) -> Tensor:
        """Return the example, known as the network's input."""
        self._set(example, INPUT)
        return example

    def reads(self, values: Iterable[Any]) -> int:
        """Return what these values depend on."""
        return functools.reduce(lambda bits, value: bits | self._reads.get(_memory(value), 0), _tensors(values), 0)

    @contextmanager
    def hooks(self, net: nn.Module) -> Iterator[None]:
        """Inside, calls of the layers are noted; what happens within them is not looked at."""
        handles = [layer.register_forward_pre_hook(self._enter) for layer in self._layers.values()]
        for name, layer in self._layers.items():
            handles.append(layer.register_forward_hook(functools.partial(self._leave, name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if self._within:
            return outputs
        inputs = list(_tensors((args, kwargs)))
        reads = 0 if str(func._overloadpacket.__name__).startswith(WITHOUT_VALUES) else self.reads(inputs)
        used = set().union(*(self._weights.get(_memory(value), ()) for value in inputs))
        for value in _tensors(outputs):
            if used and not reads:  # made of weights alone
                self._alive.append(value)
                self._weights.setdefault(_memory(value), set()).update(used)
        if reads:
            self._set(outputs, self._noted(used, reads) if used else reads)
        return outputs

    def _enter(self, layer: nn.Module, args: tuple) -> None:
        self._within += 1

    def _leave(self, name: str, layer: nn.Module, args: tuple, kwargs: dict, outputs: Any) -> None:
        self._within -= 1
        if not self._within:
            self._set(outputs, self._noted({name}, self.reads((args, kwargs))), anew=True)

    def _noted(self, layers: Collection[str], reads: int) -> int:
        """Note a call of each of these layers, and return their bits."""
        start = len(self.calls)
        self.calls += [(layer, reads) for layer in self._layers if layer in layers]
        return sum(2 << call for call in range(start, len(self.calls)))

    def _set(self, values: Any, reads: int, anew: bool = False) -> None:
        for value in _tensors(values):
            self._alive.append(value)
            memory = _memory(value)
            self._reads[memory] = reads if anew else reads | self._reads.get(memory, 0)


def _memory(tensor: Tensor) -> int:
    """Where a tensor's storage is: views share it with what they are a view of."""
    return tensor.untyped_storage().data_ptr() or id(tensor)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _numbers(bits: int) -> list[int]:
    """The calls that bits stand for, in order."""
    return [call for call in range(max(bits.bit_length() - 1, 0)) if bits >> call & 2]


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
