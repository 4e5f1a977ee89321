"""The order in which a network runs its layers, read from one run on an example.

The network runs once, in evaluation mode, and every call of a layer is noted with the calls that its inputs depend on. A call
is that of the layer's module, or any operation with one of its weights (a tied embedding, `F.linear(x, self.fc.weight)`). The
order in which layers are defined plays no part.

A layer that is never called has the place that its definition gives it, and is neither first nor last. If the network cannot be
run, or its outputs do not depend on any layer that was seen, the order is that of definition. `LayerOrder.problem` says so.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedprune.pruning.what.layer_order import INPUT, LayerOrder, by_definition
from fedprune.tensors import call

WITHOUT_VALUES = ("new_", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like")
"""The beginnings of the names of operations that read the shape of a tensor and not its values."""


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
        with torch.no_grad(), torch.random.fork_rng(devices=[]), trace.hooks(), trace:
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
    """A context in which operations note, for each tensor's memory, the calls of layers that it depends on directly.

    calls: (layer, the calls that it reads, as bits), in the order of execution.
    """

    def __init__(self, net: nn.Module, layers: Mapping[str, tuple[str, ...]]):
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self.calls: list[tuple[str, int]] = []
        self._layers = {name: net.get_submodule(name) for name in layers}
        self._reads: dict[int, int] = {}
        self._weights: dict[int, set[str]] = {}  # memory -> the layers whose weight it is, or that it is computed from
        self._within = 0
        self._alive: list[Tensor] = []  # held, so that no memory is given to two tensors
        parameters = dict(net.named_parameters(remove_duplicate=False))
        for layer, names in layers.items():
            for name in names:
                if name in parameters and not nn.parameter.is_lazy(parameters[name]):
                    self._weights.setdefault(_memory(parameters[name]), set()).add(layer)

    def started(self, example: Tensor) -> Tensor:
        """Return the example, after its memory is noted as the network's input."""
        self._set(example, INPUT)
        return example

    def reads(self, values: Iterable[object]) -> int:
        """Return the calls that these values depend on, as bits."""
        return functools.reduce(lambda bits, value: bits | self._reads.get(_memory(value), 0), _tensors(values), 0)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Note calls of the layers; operations within a layer are not looked at."""
        handles = [layer.register_forward_pre_hook(self._enter) for layer in self._layers.values()]
        for name, layer in self._layers.items():
            handles.append(layer.register_forward_hook(functools.partial(self._leave, name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        outputs = func(*args, **(kwargs or {}))
        if self._within:
            return outputs
        inputs = list(_tensors((args, kwargs)))
        reads = 0 if str(func._overloadpacket.__name__).startswith(WITHOUT_VALUES) else self.reads(inputs)
        used = set().union(*(self._weights.get(_memory(value), ()) for value in inputs))
        for value in _tensors(outputs):
            if used and not reads:  # computed from weights alone
                self._alive.append(value)
                self._weights.setdefault(_memory(value), set()).update(used)
        if reads:
            self._set(outputs, self._noted(used, reads) if used else reads)
        return outputs

    def _enter(self, layer: nn.Module, args: tuple[object, ...]) -> None:
        self._within += 1

    def _leave(self, name: str, layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], outputs: object) -> None:
        self._within -= 1
        if not self._within:
            self._set(outputs, self._noted({name}, self.reads((args, kwargs))), anew=True)

    def _noted(self, layers: Collection[str], reads: int) -> int:
        """Note a call of each of these layers, and return their bits."""
        start = len(self.calls)
        self.calls += [(layer, reads) for layer in self._layers if layer in layers]
        return sum(2 << call for call in range(start, len(self.calls)))

    def _set(self, values: object, reads: int, anew: bool = False) -> None:
        for value in _tensors(values):
            self._alive.append(value)
            memory = _memory(value)
            self._reads[memory] = reads if anew else reads | self._reads.get(memory, 0)


def _memory(tensor: Tensor) -> int:
    """Return the address of a tensor's storage, which views share with the tensor that they are a view of."""
    return tensor.untyped_storage().data_ptr() or id(tensor)


def _tensors(values: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
