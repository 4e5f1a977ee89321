"""A tensor without numbers, on which a network's own forward runs: its dependence on the input is followed instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fedprune.pruning.connectivity.dependence import CannotFollow, Dependence
from fedprune.pruning.connectivity.rules import RULES, VIEWS
from fedprune.types import Function

SHAPE_QUERIES = {
    *("size", "dim", "numel", "nelement", "stride", "ndimension", "is_floating_point", "is_complex", "len", "get_device"),
    *("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout", "is_contiguous"),
}
"""Functions and attributes that read a tensor's shape and type, and not its numbers."""


class TracedValue(Tensor):
    """A tensor with a shape and a dependence, and no numbers. aliased: whether another tensor may share its memory."""

    dependence: Dependence
    aliased: bool

    @staticmethod
    def __new__(cls, dependence: Dependence) -> TracedValue:
        value: TracedValue = Tensor._make_wrapper_subclass(cls, dependence.shape, dtype=torch.float32)
        return value

    def __init__(self, dependence: Dependence) -> None:
        self.dependence, self.aliased = dependence, False

    @classmethod
    def __torch_function__(
        cls, func: Function, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        named = kwargs or {}
        name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__  # type: ignore[attr-defined]  # an attribute's getter
        if name.strip("_") in SHAPE_QUERIES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **named)
        rule = RULES.get(name.strip("_"))
        if rule is None:
            raise CannotFollow(name)
        result = rule(func, *map(_dependence, args), **{key: _dependence(value) for key, value in named.items()})
        if _writes(name) or named.get("inplace"):
            return args[0]._become(result)
        is_view = name.strip("_") in VIEWS
        if is_view:
            args[0].aliased = True
        if type(result) in (list, tuple):
            return type(result)(_traced(part, is_view) for part in result)
        return _traced(result, is_view)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's signature is wider
        cls, func: OpOverload, types: object, args: object = (), kwargs: object = None
    ) -> object:
        raise CannotFollow(func.overloadpacket.__name__)  # something asks for numbers past the functions of torch

    def _become(self, dependence: Dependence) -> TracedValue:
        """Return this value after its dependence changed, as a function that writes in place does."""
        if self.aliased and dependence is not self.dependence:
            raise CannotFollow("writing in place into a view")
        self.dependence = dependence
        return self


def _writes(name: str) -> bool:
    """Return whether a function of this name changes its first argument: relu_, __iadd__, __setitem__."""
    return name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.startswith("__"))


def _dependence(value: Any) -> Any:
    """Return the dependence of a traced value, also of those in a list; other values as they are."""
    if isinstance(value, TracedValue):
        return value.dependence
    return type(value)(map(_dependence, value)) if type(value) in (list, tuple) else value


def _traced(result: object, is_view: bool) -> object:
    """Return the traced value of a dependence; other values as they are."""
    value = TracedValue(result) if isinstance(result, Dependence) else result
    if is_view and isinstance(value, TracedValue):
        value.aliased = True
    return value
