"""A network that is trained physically smaller than its mask: the same steps, on what lives (see pruning/parts.py).

Live units are computed for every example, by layers that are cut to them. Constant units, which give every example the same,
are computed once for a batch, by layers of their own, and what their readers make of them is added:

    W x = W_live x + W_constant c

Idle units are not computed; where something moves them all the same (weight decay, a momentum that was kept), they stand by,
with gradients of zero. Each tensor is a `Block` of one of the whole network's, and what is in no block is dead.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedprune.local.divided import Emitter, Reader, key_of, run
from fedprune.pruning.parts import Parts, matrices
from fedprune.pruning.resize import cut
from fedprune.pruning.wiring import Layer, Wiring
from fedprune.types import Mask


class Block(NamedTuple):
    """The smaller network's tensor `name` is these rows and columns (None: all) of the whole network's tensor `whole`."""

    name: str
    whole: str
    rows: Tensor | None = None
    columns: Tensor | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """This part of a tensor: a copy, or the tensor itself if it is all of it."""
        if self.rows is not None and tensor.dim():
            tensor = tensor.index_select(0, self.rows)
        return tensor if self.columns is None else tensor.index_select(1, self.columns)

    def put(self, part: Tensor, whole: Tensor) -> None:
        """Write this part into a whole tensor."""
        if self.columns is not None:
            rows = whole if self.rows is None else whole.index_select(0, self.rows)
            part = rows.index_copy_(1, self.columns, part)
        if self.rows is None or not whole.dim():
            whole.copy_(part)
        else:
            whole.index_copy_(0, self.rows, part)


class Smaller(nn.Module):
    """Its values are to be loaded. blocks: its tensors. mask: what is dead inside it. idle: the parameters of units that nobody
    reads; moved: whether they have gradients, of zero, or none at all."""

    def __init__(self, net: nn.Module, wired: Wiring, divided: Parts, mask: Mask):
        super().__init__()
        self.live, self.constant, self.added, self.idle = _sharing(net), nn.ModuleDict(), nn.ModuleDict(), nn.ParameterList()
        self.moved, alive = False, matrices(wired, mask)
        blocks = [block for name in wired.layers for block in self._cut_layer(name, wired.layers[name], divided, alive[name])]
        blocks += [block for name, units in wired.norms.items() for block in self._cut_norm(name, units, divided)]
        done = {block.name for block in blocks}
        blocks += [Block(f"live.{name}", name) for name in net.state_dict() if f"live.{name}" not in done]
        _own(self.live, set(net.parameters()))
        self.blocks = tuple(blocks)
        self.mask = {block.name: block.of(mask[block.whole]) for block in blocks if block.whole in mask}
        self._trained = [parameter.requires_grad for parameter in self.idle]
        self._run = run(wired, self.live, dict(self.constant.items()), dict(self.added.items()))

    def forward(self, inputs: Tensor) -> Tensor:
        """What the whole network puts out."""
        outputs = self._run(inputs)
        return _StandingBy.apply(outputs, *self.idle) if self.moved and len(self.idle) else outputs

    def stand_by(self, moved: bool) -> None:
        """Whether what nobody reads takes part in the optimizer's steps."""
        self.moved = moved
        for parameter, trained in zip(self.idle, self._trained, strict=True):
            parameter.requires_grad_(moved and trained)

    def _cut_layer(self, name: str, layer: Layer, divided: Parts, alive: Tensor) -> Iterator[Block]:
        whole, key = self.live.get_submodule(name), key_of(name)
        steady = divided.constant[layer.reads]
        order = steady.cumsum(0) - 1  # where a constant channel is among the constant ones
        rows, columns = _places(divided.live[layer.makes]), _places(divided.live[layer.reads])
        emits = _places(divided.constant[layer.makes])
        read, fed = (_places(steady & alive[some].any(0)) for some in (rows, emits))
        if len(read):
            self.added[key] = Reader(_part(whole, rows, read, bias=False), order[read])
            yield Block(f"added.{key}.layer.weight", f"{name}.weight", rows, read)
        if len(emits):
            part = _part(whole, emits, fed, weight=len(fed) > 0)
            nothing = whole.weight.new_zeros(1, len(emits), *layer.places)  # type: ignore[operator]
            self.constant[key] = Reader(part, order[fed]) if len(fed) else Emitter(part, nothing)
            yield from _blocks(f"constant.{key}.layer", name, part, emits, fed)
        yield from self._stand_by(name, whole, _places(divided.idle[layer.makes]))
        cut(whole, {"out": rows, "in": columns})
        yield from _blocks(f"live.{name}", name, whole, rows, columns)

    def _cut_norm(self, name: str, units: Tensor, divided: Parts) -> Iterator[Block]:
        whole, key = self.live.get_submodule(name), key_of(name)
        rows, emits = _places(divided.live[units]), _places(divided.constant[units])
        if len(emits):
            self.constant[key] = _part(whole, emits)
            yield from _blocks(f"constant.{key}", name, self.constant[key], emits)
        yield from self._stand_by(name, whole, _places(divided.idle[units]))
        cut(whole, {"out": rows})
        yield from _blocks(f"live.{name}", name, whole, rows)

    def _stand_by(self, name: str, layer: nn.Module, rows: Tensor) -> Iterator[Block]:
        for own, parameter in layer.named_parameters() if len(rows) else ():
            yield Block(f"idle.{len(self.idle)}", f"{name}.{own}", rows)
            self.idle.append(nn.Parameter(parameter.detach()[rows], parameter.requires_grad))


class _StandingBy(torch.autograd.Function):
    """Outputs as they are; and parameters that have no part in them, with gradients of zero."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, *idle: Tensor) -> Tensor:
        ctx.idle = idle
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return (*gradients, *(torch.zeros_like(parameter) for parameter in ctx.idle))


def _places(those: Tensor) -> Tensor:
    return those.nonzero().flatten()


def _sharing(module: nn.Module) -> nn.Module:
    """A copy that has the same parameters, and buffers of its own."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def _own(module: nn.Module, others: set[nn.Parameter]) -> None:
    """Give it parameters of its own in the place of these."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter in others:
                part._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def _part(layer: nn.Module, rows: Tensor, columns: Tensor | None = None, weight: bool = True, bias: bool = True) -> nn.Module:
    """A layer with some of its channels, and perhaps without one of its parameters."""
    part = _sharing(layer)
    for name in (["weight"] if not weight else []) + (["bias"] if not bias else []):
        part.register_parameter(name, None)
    cut(part, {"out": rows} if columns is None else {"out": rows, "in": columns})
    return part


def _blocks(at: str, name: str, layer: nn.Module, rows: Tensor, columns: Tensor | None = None) -> Iterator[Block]:
    """The tensors of a layer that was cut."""
    for own in layer.state_dict():
        yield Block(f"{at}.{own}", f"{name}.{own}", rows, columns if own == "weight" else None)
