"""A network that is trained physically smaller than its mask: the same steps, on what lives (see liveness.py).

Live units are computed for every example, by layers that are cut to them. Constant units, which give every example the same,
are computed once for a batch, by layers of their own, and what their readers make of them is added:

    W x = W_live x + W_constant c

Idle units are not computed; where something moves them all the same (weight decay, a momentum that was kept), they stand by,
with gradients of zero. Each tensor is a `Block` of one of the whole network's, and what is in no block is dead.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedprune.compaction.forward import Emitter, Reader, key_of, run
from fedprune.compaction.fx_graph import Layer, Wiring
from fedprune.compaction.liveness import Parts, anything
from fedprune.compaction.resize import count
from fedprune.compaction.sparse_linear import SparseLinear
from fedprune.types import Mask

STRIDED = ("view", "view_as", "as_strided", "stride")
"""Methods that count on a layout."""


class Block(NamedTuple):
    """A part of one of the whole network's tensors, which the smaller network has as a tensor of its own.

    name: the smaller network's tensor. whole: the whole network's. rows, columns: None means all of them. entries: the flat
    numbers of single entries, instead of rows and columns.
    """

    name: str
    whole: str
    rows: Tensor | None = None
    columns: Tensor | None = None
    entries: Tensor | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return this part of a tensor: a copy, or the tensor itself if the part is all of it."""
        if self.entries is not None:
            return tensor.reshape(-1).index_select(0, self.entries)
        if self.rows is not None and tensor.dim():
            tensor = tensor.index_select(0, self.rows)
        return tensor if self.columns is None else tensor.index_select(1, self.columns)

    def put(self, part: Tensor, whole: Tensor) -> None:
        """Write this part into a whole tensor, in place."""
        if self.entries is not None:
            whole.view(-1).index_copy_(0, self.entries, part)
            return
        if self.columns is not None:
            rows = whole if self.rows is None else whole.index_select(0, self.rows)
            part = rows.index_copy_(1, self.columns, part)
        if self.rows is None or not whole.dim():
            whole.copy_(part)
        else:
            whole.index_copy_(0, self.rows, part)


class Smaller(nn.Module):
    """Its values are to be loaded, and `prepare` is to be called before it is trained. blocks: its tensors. mutable: whether
    constants of zero are nothing, to those who read them and to the biases that they are. thin: the layers that are sparse.

    On a CPU images are laid out channels last, which on small networks takes 0.65 to 0.95 of the time.
    """

    def __init__(self, net: nn.Module, wired: Wiring, divided: Parts, alive: Mask, thin: Collection[str] = ()):
        super().__init__()
        self.live, self.constant, self.added, self.idle = _twin(net), nn.ModuleDict(), nn.ModuleDict(), nn.ParameterList()
        blocks = [
            *(
                b
                for name, layer in wired.layers.items()
                for b in self._cut_layer(name, layer, divided, alive[name], name in thin)
            ),
            *(b for name, units in wired.norms.items() for b in self._cut_norm(name, units, divided)),
        ]
        done = {block.name for block in blocks}
        blocks += [Block(f"live.{name}", name) for name in self.live.state_dict() if f"live.{name}" not in done]
        _own(self.live, set(net.parameters()))
        self.blocks = tuple(blocks)
        rectified = {key_of(name) for name in wired.layers if name not in wired.bare}
        self.mutable = all(isinstance(one, Emitter) and key in rectified for key, one in self.constant.items())
        self._layout = _layout(wired, net)
        self.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._trained = {parameter for parameter in self.parameters() if parameter.requires_grad}
        self._loud = run(wired, self.live, dict(self.constant.items()), dict(self.added.items()))
        self._mute = run(wired, self.live, {}, {})
        self.prepare(moved=True, mute=False)

    def prepare(self, moved: bool, mute: bool) -> None:
        """moved: whether the optimizer moves what has a gradient of zero. mute: whether all constants are zero, and stay so."""
        quiet = [*self.idle, *(self.constant.parameters() if mute else ()), *(self.added.parameters() if mute else ())]
        for parameter in self._trained:
            parameter.requires_grad_(True)
        for parameter in [] if moved else quiet:
            parameter.requires_grad_(False)
        self._run, self._standing_by = self._mute if mute else self._loud, quiet if moved else []

    def forward(self, inputs: Tensor) -> Tensor:
        """What the whole network puts out."""
        outputs = self._run(inputs.contiguous(memory_format=self._layout) if inputs.dim() == 4 else inputs)
        return _StandingBy.apply(outputs, *self._standing_by) if self._standing_by else outputs

    def _cut_layer(self, name: str, layer: Layer, divided: Parts, alive: Tensor, thin: bool) -> Iterator[Block]:
        whole, key = self.live.get_submodule(name), key_of(name)
        steady = divided.constant[layer.reads]
        order = steady.cumsum(0) - 1  # where a constant channel is among the constant ones
        rows, columns = _places(divided.live[layer.makes]), _places(divided.live[layer.reads])
        emits = _places(divided.constant[layer.makes])
        read, fed = (_places(steady & anything(alive[some], 0)) for some in (rows, emits))
        if len(read):
            self.added[key] = Reader(_part(whole, rows, read, without="bias"), _some(order[read], steady), layer.before)
            yield Block(f"added.{key}.layer.weight", f"{name}.weight", rows, read)
        if len(emits):
            part = _part(whole, emits, fed, without="" if len(fed) else "weight")
            nothing = whole.weight.new_zeros(1, len(emits), *[1] * len(layer.before))  # type: ignore[operator]
            self.constant[key] = Reader(part, _some(order[fed], steady), layer.before) if len(fed) else Emitter(part, nothing)
            yield from _blocks(f"constant.{key}.layer", name, part, emits, fed)
        yield from self._stand_by(name, whole, _places(divided.idle[layer.makes]))
        _cut(whole, rows, columns)
        if thin:
            yield from self._thin_out(name, alive, rows, columns)
        else:
            yield from _blocks(f"live.{name}", name, whole, rows, columns)

    def _thin_out(self, name: str, alive: Tensor, rows: Tensor, columns: Tensor) -> Iterator[Block]:
        """Put a sparse layer in the place of one that was cut."""
        owner, _, own = name.rpartition(".")
        left = alive[rows][:, columns]
        self.live.get_submodule(owner)._modules[own] = SparseLinear(self.live.get_submodule(name), left)  # type: ignore[arg-type]
        row, column = left.nonzero().unbind(1)
        yield Block(f"live.{name}.values", f"{name}.weight", entries=rows[row] * alive.shape[1] + columns[column])
        if self.live.get_submodule(name).bias is not None:
            yield Block(f"live.{name}.bias", f"{name}.bias", rows)

    def _cut_norm(self, name: str, units: Tensor, divided: Parts) -> Iterator[Block]:
        whole, key = self.live.get_submodule(name), key_of(name)
        rows, emits = _places(divided.live[units]), _places(divided.constant[units])
        if len(emits):
            self.constant[key] = _part(whole, emits)
            yield from _blocks(f"constant.{key}", name, self.constant[key], emits)
        yield from self._stand_by(name, whole, _places(divided.idle[units]))
        _cut(whole, rows)
        yield from _blocks(f"live.{name}", name, whole, rows)

    def _stand_by(self, name: str, layer: nn.Module, rows: Tensor) -> Iterator[Block]:
        for own, parameter in layer.named_parameters() if len(rows) else ():
            yield Block(f"idle.{len(self.idle)}", f"{name}.{own}", rows)
            self.idle.append(_empty(parameter, len(rows)))


class _StandingBy(torch.autograd.Function):
    """Outputs as they are; and parameters that have no part in them, with gradients of zero."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, *idle: Tensor) -> Tensor:
        ctx.idle = idle
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return (*gradients, *(torch.zeros_like(parameter) for parameter in ctx.idle))


def _layout(wired: Wiring, net: nn.Module) -> torch.memory_format:
    """How images are laid out in memory."""
    images = any(len(layer.before) == 2 for layer in wired.layers.values())
    strides = any(node.target in STRIDED for node, kind in wired.kinds.items() if kind == "other")
    on_cpu = all(parameter.device.type == "cpu" for parameter in net.parameters())
    return torch.channels_last if images and on_cpu and not strides else torch.contiguous_format


def _places(those: Tensor) -> Tensor:
    return those.nonzero().flatten()


def _some(order: Tensor, steady: Tensor) -> Tensor | None:
    """Which of the constants, or None if it is all of them."""
    return None if len(order) == int(steady.sum()) else order


def _twin(module: nn.Module) -> nn.Module:
    """A copy that has the same parameters, and buffers of its own. (deepcopy takes milliseconds.)"""
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = dict(module._parameters)
    twin.__dict__["_buffers"] = {name: None if value is None else value.clone() for name, value in module._buffers.items()}
    twin.__dict__["_modules"] = {name: None if part is None else _twin(part) for name, part in module._modules.items()}
    return twin


def _own(module: nn.Module, others: set[nn.Parameter]) -> None:
    """Give it parameters of its own in the place of these."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter in others:
                part._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def _part(layer: nn.Module, rows: Tensor, columns: Tensor | None = None, without: str = "") -> nn.Module:
    """A layer with some of its channels, and perhaps without one of its parameters."""
    part = _twin(layer)
    if without:
        part._parameters[without] = None
    _cut(part, rows, columns)
    return part


def _cut(layer: nn.Module, rows: Tensor, columns: Tensor | None = None) -> None:
    """Leave a layer only so many channels, in place; its parameters are new, and without values yet."""
    for name, parameter in layer._parameters.items():
        if parameter is not None:
            wide = len(columns) if columns is not None and name == "weight" else None
            layer._parameters[name] = _empty(parameter, len(rows), wide)
    for name, value in layer._buffers.items():
        if value is not None and value.dim():
            layer._buffers[name] = value[: len(rows)].clone()
    count(layer, {"out": len(rows)} if columns is None else {"out": len(rows), "in": len(columns)})


def _empty(parameter: nn.Parameter, rows: int, columns: int | None = None) -> nn.Parameter:
    shape = (rows, *parameter.shape[1:]) if columns is None else (rows, columns, *parameter.shape[2:])
    return nn.Parameter(parameter.detach().new_empty(shape), parameter.requires_grad)


def _blocks(at: str, name: str, layer: nn.Module, rows: Tensor, columns: Tensor | None = None) -> Iterator[Block]:
    """The tensors of a layer that was cut."""
    for own in layer.state_dict():
        yield Block(f"{at}.{own}", f"{name}.{own}", rows, columns if own == "weight" else None)
