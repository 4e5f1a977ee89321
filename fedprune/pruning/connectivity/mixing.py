"""Rules of functions that move or mix entries: views, sums, layers, pools, normalisations over a dimension.

A rule is (the function of torch, its arguments) -> Dependence, with torch's own names of arguments.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fedprune.pruning.connectivity.dependence import (
    CannotFollow,
    Dependence,
    Operand,
    TensorFunction,
    bilinear,
    never_zero,
    nonzero_of,
    of_both,
    positive,
    shape_of,
)
from fedprune.pruning.connectivity.entrywise import added, divided, multiplied
from fedprune.types import Function


def moved(function: Function, *args: object, **named: object) -> Any:
    """Follow a function that puts entries elsewhere or leaves some out. Return one Dependence or several."""
    return of_both(function, args, named)


def unchanged(function: Function, input: Dependence, *args: object, **named: object) -> Dependence:
    """Follow a function that returns the value itself, or a copy."""
    return input


def padded(
    function: TensorFunction, input: Dependence, pad: object, mode: str = "constant", value: float | None = None
) -> Dependence:
    """Follow padding with a number, or with the value's own entries."""
    if mode != "constant":
        repeated: Dependence = moved(function, input, pad, mode)
        return repeated

    def nonzero() -> Tensor:
        return function(input.nonzero, pad, value=float((value or 0.0) != 0))

    return Dependence(None, nonzero()) if input.varying is None else Dependence(function(input.varying, pad), nonzero)


def summed(function: TensorFunction, *args: object, **named: object) -> Dependence:
    """Follow sums with positive weights: sums, means, average pools."""
    total: Dependence = of_both(lambda *given, **keywords: positive(function(*given, **keywords)), args, named)
    return total


def largest(function: Function, *args: object, **named: object) -> Dependence:
    """Follow the largest or smallest of several entries. Each of them may be it, so all of them count."""
    return summed(torch.sum, *args, **named)


def matrix_product(function: TensorFunction, input: Operand, other: Operand) -> Dependence:
    """Follow a product of matrices."""
    return bilinear(function, input, other)


def right_matrix_product(function: TensorFunction, right: Operand, left: Operand) -> Dependence:
    """Follow a product of matrices whose left side is no tensor."""
    return bilinear(torch.matmul, left, right)


def einsum(function: TensorFunction, equation: str, *operands: Operand) -> Dependence:
    """Follow sums of products of two tensors."""
    if len(operands) != 2:
        raise CannotFollow(f"einsum of {len(operands)} tensors")
    left, right = operands
    return bilinear(functools.partial(function, equation), left, right)


def layer(
    function: TensorFunction, input: Operand, weight: Operand, bias: Operand | None = None, *rest: object, **named: object
) -> Dependence:
    """Follow a linear layer or a convolution, transposed or not."""
    product = bilinear(lambda x, w: function(x, w, None, *rest, **named), input, weight)
    if bias is None:
        return product
    if product.varying is None:
        return added(function, product, _over_places(function, bias, product))
    return Dependence(product.varying, lambda: positive(product.nonzero + _over_places(function, bias, product)))


def _over_places(function: TensorFunction, bias: Operand, product: Dependence) -> Tensor:
    """Return where a bias is not zero, in the shape in which it is added at each place."""
    places = 0 if function is F.linear else len(shape_of(product)) - 2
    return nonzero_of(bias).view(-1, *[1] * places)


def softmax(function: Function, input: Dependence, dim: int | None = None, *args: object, **named: object) -> Dependence:
    """Follow a softmax: each entry depends on all that it goes over, and none is 0."""
    if dim is None:
        dim = 0 if len(input.shape) in (0, 1, 3) else 1  # torch's own choice
    total = summed(torch.sum, input, dim, keepdim=True).varying
    return never_zero(input) if total is None else never_zero(Dependence(total.expand(input.shape), total))


def unit_length(
    function: Function, input: Dependence, p: float = 2.0, dim: int = 1, *args: object, **named: object
) -> Dependence:
    """Follow x / |x|, the length taken over a dimension."""
    return divided(function, input, summed(torch.sum, input, dim, keepdim=True))


def glu(function: Function, input: Dependence, dim: int = -1) -> Dependence:
    """Follow GLU: one half times the sigmoid of the other."""
    half, gate = moved(torch.chunk, input, 2, dim)
    return multiplied(function, half, never_zero(gate))


WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
"""The arguments of max pools, in their order."""


def max_pool(average: TensorFunction, function: Function, input: Dependence, *args: object, **named: object) -> Dependence:
    """Follow a max pool by the average pool of the same windows: any entry of a window may be the largest."""
    given = dict(zip(WINDOW, args, strict=False)) | named
    if given.pop("return_indices", False) or {*tree_leaves(given.pop("dilation", 1))} != {1}:
        raise CannotFollow(f"{function.__name__.strip('_')} with dilation or indices")
    return summed(average, input, **given)


def adaptive_max_pool(
    average: TensorFunction, function: Function, input: Dependence, output_size: object, return_indices: bool = False
) -> Dependence:
    """Follow a max pool that is told the number of places of its output."""
    if return_indices:
        raise CannotFollow(f"{function.__name__.strip('_')} with indices")
    return summed(average, input, output_size)


POSITIVE_WEIGHTS = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area")
"""Interpolations whose weights are positive."""


def resized(function: TensorFunction, input: Dependence, *args: object, mode: str = "nearest", **named: object) -> Dependence:
    """Follow an interpolation."""
    if mode not in POSITIVE_WEIGHTS:
        raise CannotFollow(f"interpolate with mode={mode}")
    return summed(functools.partial(function, mode=mode), input, *args, **named)


def filled_anew(function: TensorFunction, input: Dependence, *args: object, **named: object) -> Dependence | Tensor:
    """Follow the making of a new tensor of a value's shape or type."""
    made = function(torch.empty(input.shape), *args, **named)
    return Dependence(None, nonzero_of(made)) if made.is_floating_point() else made
