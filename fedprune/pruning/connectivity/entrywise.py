"""Rules of functions that treat each entry by itself: curves, sums, products, and choices by a condition.

A rule is (the function of torch, its arguments) -> Dependence, with torch's own names of arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fedprune.pruning.connectivity.dependence import (
    CannotFollow,
    Dependence,
    Operand,
    Rule,
    bilinear,
    never_zero,
    nonzero_of,
    positive,
    shape_of,
    varying_of,
    varying_or_zeros,
)
from fedprune.types import Function


def zero_at_zero(function: Function, input: Dependence, *args: object, **named: object) -> Dependence:
    """Follow a curve through 0, such as ReLU: the dependence stays as it is."""
    return input


def nonzero_at_zero(function: Function, input: Dependence, *args: object, **named: object) -> Dependence:
    """Follow a curve that is other than 0 at 0, such as the sigmoid."""
    return never_zero(input)


def clamped(
    function: Function, input: Dependence, min: Operand | None = None, max: Operand | None = None, *args: object, **named: float
) -> Dependence:
    """Follow a clamp: 0 stays 0 if it is between the bounds."""
    low, high = named.get("min_val", min), named.get("max_val", max)
    if isinstance(low, Dependence | Tensor) or isinstance(high, Dependence | Tensor):
        raise CannotFollow("clamp between tensors")
    return input if (low is None or low <= 0) and (high is None or high >= 0) else never_zero(input)


def power(function: Function, input: Operand, exponent: Operand) -> Operand:
    """Follow a power."""
    if not isinstance(exponent, int | float):
        return divided(function, never_zero(input), exponent)
    if exponent == 0:
        return Dependence(None, torch.ones(shape_of(input)))
    return input if exponent > 0 else never_zero(input)


def added(function: Function, input: Operand, other: Operand, **named: object) -> Dependence:
    """Follow a sum, a difference, or the larger of two: it varies where either side does."""
    varying, other_varying = varying_of(input), varying_of(other)

    def nonzero() -> Tensor:
        return positive(nonzero_of(input) + nonzero_of(other))

    if varying is not None and other_varying is not None:
        return Dependence(positive(varying + other_varying), nonzero)
    varying = other_varying if varying is None else varying
    if varying is None:
        return Dependence(None, nonzero())
    return Dependence(varying.expand(torch.broadcast_shapes(shape_of(input), shape_of(other))), nonzero)


def multiplied(function: Function, input: Operand, other: Operand, **named: object) -> Dependence:
    """Follow a product of entries."""
    return bilinear(torch.mul, input, other)


def divided(function: Function, input: Operand, other: Operand, **named: object) -> Dependence:
    """Follow a quotient of entries. The divisor is taken to be other than 0."""
    return bilinear(torch.mul, input, never_zero(other))


def swapped(rule: Rule, function: Function, right: Operand, left: Operand) -> Operand:
    """Follow an operator whose left side is no tensor, such as 1 - x: torch calls it with its operands swapped."""
    result: Operand = rule(function, left, right)
    return result


def chosen(function: Function, condition: object, input: Operand, other: Operand) -> Dependence:
    """Follow torch.where with a condition that depends on neither value."""
    if not isinstance(condition, Tensor):
        raise CannotFollow("where by a condition that depends on the input")

    def nonzero() -> Tensor:
        return torch.where(condition, nonzero_of(input), nonzero_of(other))

    if varying_of(input) is None and varying_of(other) is None:
        return Dependence(None, nonzero())
    return Dependence(torch.where(condition, varying_or_zeros(input), varying_or_zeros(other)), nonzero)


def filled(function: Function, input: Dependence, mask: object, value: Operand) -> Dependence:
    """Follow masked_fill: a number where a mask is true."""
    return chosen(function, mask, value, input)


def put(function: Function, input: Operand, index: object, value: Operand) -> Dependence:
    """Follow input[index] = value."""
    if not isinstance(input, Dependence) or any(isinstance(leaf, Dependence) for leaf in tree_leaves(index)):
        raise CannotFollow("writing into a tensor that is no value of the network")

    def written(whole: Tensor, part: Tensor) -> Tensor:
        copy = whole.clone()
        copy[index] = part  # type: ignore[index]  # any index that the forward uses
        return copy

    def nonzero() -> Tensor:
        return written(nonzero_of(input), nonzero_of(value))

    if varying_of(input) is None and varying_of(value) is None:
        return Dependence(None, nonzero())
    return Dependence(written(varying_or_zeros(input), varying_or_zeros(value)), nonzero)
