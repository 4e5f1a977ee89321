"""Paths: which living entries lie on a path from the network's input to its output. The others cost and do nothing.

effective: (network, mask, shape of one input) -> Mask, a subset of `mask`. An entry is effective if what it reads depends on
the input through living entries, and the output depends on what it writes: whatever their values are, see wires.py.

The network runs once forward on wires, in evaluation mode, and once backward. Networks that do with their values what wires do
not know have no such mask, nor do those with recurrent layers, attention or embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fedprune.pruning.evidence.loss import evaluated
from fedprune.pruning.mask import count, ones, size
from fedprune.pruning.what import prunable
from fedprune.pruning.wires import RULES, VIEWS, Unread, Wire
from fedprune.tensors import call
from fedprune.types import Mask

ASKED = {
    *("size", "dim", "numel", "nelement", "stride", "ndimension", "is_floating_point", "is_complex", "len", "get_device"),
    *("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout", "is_contiguous"),
}
"""What a tensor says of itself, and not of its numbers."""


def effective(net: nn.Module, mask: Mask, shape: tuple[int, ...]) -> Mask:
    """Return the entries of `mask` that lie on some path. The network, its parameters, buffers and mode are left as they are.

    Raises Unread, naming the function, if the network's forward does something that cannot be followed.
    """
    masks = {name: alive.float().requires_grad_() for name, alive in mask.items()}
    parameters = {
        name: _Value(Wire(None, masks[name] if name in masks else torch.ones(value.shape)))
        for name, value in net.named_parameters()
    }
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    example = torch.ones(1, *shape)
    with torch.enable_grad(), evaluated(net):
        outputs = call(net, buffers | parameters, _Value(Wire(example, example)))
        varying = [leaf.wire.varying for leaf in tree_leaves(outputs) if isinstance(leaf, _Value)]
        reached = torch.stack([part.sum() for part in varying if part is not None]).sum()
    if not reached.requires_grad:  # no entry of a mask is between input and output
        return {name: torch.zeros_like(alive) for name, alive in mask.items()}
    gradients = torch.autograd.grad(reached, list(masks.values()), materialize_grads=True, allow_unused=True)
    return {name: alive & (g > 0) for (name, alive), g in zip(mask.items(), gradients, strict=True)}


def unfollowed(net: nn.Module, shape: tuple[int, ...]) -> str:
    """Return why paths through the network cannot be followed, or ""."""
    layers = prunable(net, ("recurrent", "attention", "embedding"))
    if layers:
        name = next(iter(layers))
        return f"{name} ({type(net.get_submodule(name)).__name__}) cannot be followed"
    try:
        effective(net, ones(dict(net.named_parameters()), tuple(dict(net.named_parameters()))), shape)
    except Unread as error:
        return f"{error} in its forward cannot be followed"
    except Exception as error:  # a forward is anybody's code, and may count on numbers
        return f"its forward cannot be followed ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    return ""


def effective_density(net: nn.Module, mask: Mask, shape: tuple[int, ...]) -> float:
    """Return the fraction of the prunable entries that lie on some path."""
    return count(effective(net, mask, shape)) / size(mask)


class _Value(Tensor):
    """A tensor that a forward can be called with: it has a shape, and a wire in the place of numbers. aliased: whether it may
    share its memory with another one."""

    wire: Wire
    aliased: bool

    @staticmethod
    def __new__(cls, wire: Wire) -> _Value:
        return Tensor._make_wrapper_subclass(cls, wire.shape, dtype=torch.float32)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, wire: Wire) -> None:
        self.wire, self.aliased = wire, False

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        named = kwargs or {}
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__  # type: ignore[attr-defined]
        if name.strip("_") in ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **named)
        rule = RULES.get(name.strip("_"))
        if rule is None:
            raise Unread(name)
        result = rule(func, *map(_wire, args), **{key: _wire(value) for key, value in named.items()})
        if _writes(name) or named.get("inplace"):
            return args[0]._become(result)
        view = name.strip("_") in VIEWS
        if view:
            args[0].aliased = True
        several = type(result) in (list, tuple)
        return type(result)(_value(part, view) for part in result) if several else _value(result, view)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise Unread(func.overloadpacket.__name__)  # something asks for numbers past the functions of torch

    def _become(self, wire: Wire) -> _Value:
        if self.aliased and wire is not self.wire:
            raise Unread("writing in place into a view")
        self.wire = wire
        return self


def _writes(name: str) -> bool:
    """Whether a function of this name changes its first argument: relu_, __iadd__, __setitem__."""
    return name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.startswith("__"))


def _wire(value: Any) -> Any:
    """Return the wire of a value, also where several are in a list."""
    if isinstance(value, _Value):
        return value.wire
    return type(value)(map(_wire, value)) if type(value) in (list, tuple) else value


def _value(result: Any, view: bool) -> Any:
    value = _Value(result) if isinstance(result, Wire) else result
    if view and isinstance(value, _Value):
        value.aliased = True
    return value
