"""A network that is trained physically smaller than its mask: the same steps, on living units (see liveness.py).

Live units are computed for every example, by layers that are cut to them. Constant units, which are the same for every example,
are computed once for a batch, by layers of their own, and the sum that a layer computes from them is added to its outputs:

    W x = W_live x + W_constant c

Idle units are not computed. Where something moves them all the same (weight decay, a momentum of earlier rounds), they stand
by, with gradients of zero. Each tensor is a `Block` of one of the whole network's; entries in no block are dead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from fedprune.compaction.cut import cut, empty, own_parameters, part_of, shallow_copy
from fedprune.compaction.forward import Emitter, Reader, key_of, run
from fedprune.compaction.fx_graph import ChannelGraph, Layer
from fedprune.compaction.liveness import Parts, anything
from fedprune.compaction.sparse_linear import SparseLinear
from fedprune.types import Ctx, Mask

STRIDED = ("view", "view_as", "as_strided", "stride")
"""Methods that depend on the layout of memory."""


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


class SmallerNetwork(nn.Module):
    """The smaller network. Its values must be loaded, and `prepare` called, before it is trained.

    sparse: the layers that become sparse. blocks: its tensors. mutable: whether constants of zero have no effect, neither on
    the layers that read them nor on the biases that they come from. On a CPU images are laid out channels last, which on small
    networks takes 0.65 to 0.95 of the time.
    """

    def __init__(self, net: nn.Module, graph: ChannelGraph, parts: Parts, alive: Mask, sparse: Collection[str] = ()):
        super().__init__()
        self.live, self.constant, self.added, self.idle = (
            shallow_copy(net),
            nn.ModuleDict(),
            nn.ModuleDict(),
            nn.ParameterList(),
        )
        blocks = list[Block]()
        for name, layer in graph.layers.items():
            blocks += self._cut_layer(name, layer, parts, alive[name], name in sparse)
        for name, units in graph.norms.items():
            blocks += self._cut_norm(name, units, parts)
        done = {block.name for block in blocks}
        blocks += [Block(f"live.{name}", name) for name in self.live.state_dict() if f"live.{name}" not in done]
        own_parameters(self.live, set(net.parameters()))
        self.blocks = tuple(blocks)
        rectified = {key_of(name) for name in graph.layers if name not in graph.bare}
        self.mutable = all(isinstance(module, Emitter) and key in rectified for key, module in self.constant.items())
        self._layout = _layout(graph, net)
        self.to(memory_format=self._layout)  # type: ignore[call-overload]  # torch's stub lacks this form
        self._trained = {parameter for parameter in self.parameters() if parameter.requires_grad}
        self._loud = run(graph, self.live, dict(self.constant.items()), dict(self.added.items()))
        self._mute = run(graph, self.live, {}, {})
        self.prepare(moved=True, mute=False)

    def prepare(self, moved: bool, mute: bool) -> None:
        """Get ready for a job.

        moved: whether the optimizer moves entries whose gradient is zero. mute: whether all constants are zero, and stay so.
        """
        quiet = [*self.idle, *(self.constant.parameters() if mute else ()), *(self.added.parameters() if mute else ())]
        for parameter in self._trained:
            parameter.requires_grad_(True)
        for parameter in [] if moved else quiet:
            parameter.requires_grad_(False)
        self._run, self._standing_by = self._mute if mute else self._loud, quiet if moved else []

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the whole network."""
        inputs = inputs.contiguous(memory_format=self._layout) if inputs.dim() == 4 else inputs
        outputs: Tensor = self._run(inputs)
        if self._standing_by:
            outputs = _StandingBy.apply(outputs, *self._standing_by)  # type: ignore[no-untyped-call]  # torch does not type it
        return outputs

    def _cut_layer(self, name: str, layer: Layer, parts: Parts, alive: Tensor, sparse: bool) -> Iterator[Block]:
        """Cut a layer to its live units, make the modules for its constants, and yield the blocks of all of them."""
        whole, key = self.live.get_submodule(name), key_of(name)
        steady = parts.constant[layer.reads]
        order = steady.cumsum(0) - 1  # the number of a constant channel among the constant ones
        rows, columns = _places(parts.live[layer.makes]), _places(parts.live[layer.reads])
        emits = _places(parts.constant[layer.makes])
        read, fed = (_places(steady & anything(alive[outputs], 0)) for outputs in (rows, emits))
        if len(read):
            self.added[key] = Reader(part_of(whole, rows, read, without="bias"), _some(order[read], steady), layer.before)
            yield Block(f"added.{key}.layer.weight", f"{name}.weight", rows, read)
        if len(emits):
            part = part_of(whole, emits, fed, without="" if len(fed) else "weight")
            if len(fed):
                self.constant[key] = Reader(part, _some(order[fed], steady), layer.before)
            else:
                nothing = cast(Tensor, whole.weight).new_zeros(1, len(emits), *[1] * len(layer.before))
                self.constant[key] = Emitter(part, nothing)
            yield from _blocks(f"constant.{key}.layer", name, part, emits, fed)
        yield from self._stand_by(name, whole, _places(parts.idle[layer.makes]))
        cut(whole, rows, columns)
        if sparse:
            yield from self._make_sparse(name, alive, rows, columns)
        else:
            yield from _blocks(f"live.{name}", name, whole, rows, columns)

    def _make_sparse(self, name: str, alive: Tensor, rows: Tensor, columns: Tensor) -> Iterator[Block]:
        """Put a sparse layer in the place of one that was cut."""
        owner, _, attribute = name.rpartition(".")
        left = alive[rows][:, columns]
        layer = cast(nn.Linear, self.live.get_submodule(name))
        self.live.get_submodule(owner)._modules[attribute] = SparseLinear(layer, left)
        row, column = left.nonzero().unbind(1)
        yield Block(f"live.{name}.values", f"{name}.weight", entries=rows[row] * alive.shape[1] + columns[column])
        if layer.bias is not None:
            yield Block(f"live.{name}.bias", f"{name}.bias", rows)

    def _cut_norm(self, name: str, units: Tensor, parts: Parts) -> Iterator[Block]:
        """Cut a norm to its live units, make the module for its constants, and yield the blocks of both."""
        whole, key = self.live.get_submodule(name), key_of(name)
        rows, emits = _places(parts.live[units]), _places(parts.constant[units])
        if len(emits):
            self.constant[key] = part_of(whole, emits)
            yield from _blocks(f"constant.{key}", name, self.constant[key], emits)
        yield from self._stand_by(name, whole, _places(parts.idle[units]))
        cut(whole, rows)
        yield from _blocks(f"live.{name}", name, whole, rows)

    def _stand_by(self, name: str, layer: nn.Module, rows: Tensor) -> Iterator[Block]:
        for tensor, parameter in layer.named_parameters() if len(rows) else ():
            yield Block(f"idle.{len(self.idle)}", f"{name}.{tensor}", rows)
            self.idle.append(empty(parameter, len(rows)))


class _StandingBy(torch.autograd.Function):
    """The identity on outputs, which gives parameters that take no part in them gradients of zero."""

    @staticmethod
    def forward(ctx: Ctx, outputs: Tensor, *idle: Tensor) -> Tensor:
        ctx.idle = idle
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Ctx, *gradients: Tensor) -> tuple[Tensor, ...]:
        return (*gradients, *(torch.zeros_like(parameter) for parameter in ctx.idle))


def _layout(graph: ChannelGraph, net: nn.Module) -> torch.memory_format:
    """Return the layout of images in memory."""
    images = any(len(layer.before) == 2 for layer in graph.layers.values())
    strides = any(node.target in STRIDED for node, kind in graph.kinds.items() if kind == "other")
    on_cpu = all(parameter.device.type == "cpu" for parameter in net.parameters())
    return torch.channels_last if images and on_cpu and not strides else torch.contiguous_format


def _places(those: Tensor) -> Tensor:
    return those.nonzero().flatten()


def _some(order: Tensor, steady: Tensor) -> Tensor | None:
    """Return these numbers of constants, or None if they are all of them."""
    return None if len(order) == int(steady.sum()) else order


def _blocks(at: str, name: str, layer: nn.Module, rows: Tensor, columns: Tensor | None = None) -> Iterator[Block]:
    """Yield the blocks of a layer that was cut. at: its name in the smaller network."""
    for tensor in layer.state_dict():
        yield Block(f"{at}.{tensor}", f"{name}.{tensor}", rows, columns if tensor == "weight" else None)
