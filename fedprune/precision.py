"""The precision in which sums and means are taken, and the types for which torch's fused optimizers are used.

Half precision (float16, bfloat16) has 11 or 8 bits: a running sum in it stops growing once its terms are less than half of its
last bit, and float16 overflows beyond 65504. So sums and means of such tensors are taken in float32 and rounded once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

Made = TypeVar("Made")

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.complex32: torch.complex64}
"""The type in which sums of a half precision type are taken."""

FUSED = (torch.float32, torch.float64)
"""The types of parameters for which torch's fused optimizers do what the plain ones do. In torch 2.13 fused SGD leaves most
entries of a bfloat16 or float16 parameter on a CPU as they are, without a warning."""


def wide(tensor: Tensor) -> Tensor:
    """Return a half precision tensor in single precision, and any other tensor itself."""
    return tensor.to(WIDER[tensor.dtype]) if tensor.dtype in WIDER else tensor


def wide_zeros(like: Tensor) -> Tensor:
    """Return zeros of a tensor's shape and layout, in the type in which its sums are taken."""
    return torch.zeros_like(like, dtype=WIDER.get(like.dtype, like.dtype))


def is_number(tensor: Tensor) -> bool:
    """Return whether a tensor can have gradients: whether it is floating or complex."""
    return tensor.is_floating_point() or tensor.is_complex()


def finite(tensor: Tensor) -> bool:
    """Return whether all entries are finite numbers.

    A sum is finite if its terms are (weights of 1e37 aside), and takes a tenth of the time of `isfinite` on each.
    """
    if not is_number(tensor):
        return True
    total = complex(tensor.sum(dtype=WIDER.get(tensor.dtype)))
    return math.isfinite(total.real) and math.isfinite(total.imag)


def unfused(optimizer: Callable[..., Made], parameters: Iterable[nn.Parameter]) -> Callable[..., Made]:
    """Return the optimizer's constructor without `fused=True`, if one of these parameters is of no type in FUSED."""
    if not asks_for_fused(optimizer) or all(parameter.dtype in FUSED for parameter in parameters):
        return optimizer
    return functools.partial(optimizer, fused=None)


def asks_for_fused(optimizer: Callable[..., object]) -> bool:
    """Return whether an optimizer's constructor switches `fused` on."""
    return isinstance(optimizer, functools.partial) and bool(optimizer.keywords.get("fused"))
