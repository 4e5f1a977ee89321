"""The dependence of a network's values on its input, entry by entry, whatever numbers the living weights are.

This is an abstract interpretation of the forward pass: a `Dependence` takes the place of each value of the network. Weights and
biases count as numbers in general position: they are not 0, and nothing cancels by chance. Buffers and numbers in the code are
what they are.

A gradient of `varying` by a mask is positive where an entry of the mask lies on a path from the input to the output.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fedprune.types import Ctx, Function

Rule = Function
"""(a function of torch, its arguments, each value of the network as a Dependence) -> the result, each value as a Dependence."""

TensorFunction = Callable[..., Tensor]


class CannotFollow(Exception):
    """The forward does something for which there is no rule. The message names it."""


@dataclass(frozen=True, eq=False)
class Dependence:
    """The entries of a value that depend on the network's input, and those that are not zero.

    varying: 1 where an entry depends on the input through living weights, else 0. None for parameters, and for values that are
    computed from parameters alone.
    nonzero_or_how: 1 where an entry varies or is a constant other than 0, as biases are, else 0; or a function that computes
    it, since most networks never need it.
    """

    varying: Tensor | None
    nonzero_or_how: Tensor | Callable[[], Tensor]

    @functools.cached_property
    def nonzero(self) -> Tensor:
        """1 or 0 of each entry. It has a gradient only where it is computed from masks alone."""
        nonzero = self.nonzero_or_how if isinstance(self.nonzero_or_how, Tensor) else self.nonzero_or_how()
        return nonzero if self.varying is None else nonzero.detach()

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        return self.nonzero.shape if self.varying is None else self.varying.shape


Operand = Dependence | Tensor | float
"""A value of the network, or a tensor or number of the code."""


class _Positive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Ctx, values: Tensor) -> Tensor:
        return (values > 0).to(values.dtype)

    @staticmethod
    def backward(ctx: Ctx, *gradients: Tensor) -> Tensor:
        return (gradients[0] > 0).to(gradients[0].dtype)


def positive(values: Tensor) -> Tensor:
    """Return 1 where values are positive, else 0; gradients likewise, so that no depth makes numbers overflow."""
    indicator: Tensor = _Positive.apply(values)  # type: ignore[no-untyped-call]  # torch does not type it
    return indicator


def nonzero_of(value: Operand) -> Tensor:
    """Return 1 where a value is not zero, else 0."""
    if isinstance(value, Dependence):
        return value.nonzero
    return (value != 0).float() if isinstance(value, Tensor) else torch.tensor(float(value != 0))


def varying_of(value: object) -> Tensor | None:
    """Return 1 where a value depends on the input, else 0; None if no entry can."""
    return value.varying if isinstance(value, Dependence) else None


def shape_of(value: object) -> torch.Size:
    """Return the shape of a value; () of a number."""
    return value.shape if isinstance(value, Dependence | Tensor) else torch.Size(())


def varying_or_zeros(value: object) -> Tensor:
    """Return 1 where a value depends on the input, else 0."""
    varying = varying_of(value)
    return torch.zeros(shape_of(value)) if varying is None else varying


def never_zero(value: Operand) -> Dependence:
    """Return the dependence of a function of a value that is other than 0 at every entry."""
    varying = varying_of(value)
    if varying is None:
        return Dependence(None, torch.ones(shape_of(value)))
    return Dependence(varying, lambda: torch.ones_like(varying))


def bilinear(product: Callable[[Tensor, Tensor], Tensor], left: Operand, right: Operand) -> Dependence:
    """Return the dependence of a product: it varies where a factor that varies meets one that is not zero."""
    left_varying, right_varying = varying_of(left), varying_of(right)
    terms = [] if left_varying is None else [product(left_varying, nonzero_of(right))]
    terms += [] if right_varying is None else [product(nonzero_of(left), right_varying)]

    def nonzero() -> Tensor:
        return positive(product(nonzero_of(left), nonzero_of(right)))

    if not terms:
        return Dependence(None, nonzero())
    return Dependence(positive(terms[0] if len(terms) == 1 else terms[0] + terms[1]), nonzero)


def of_both(function: Function, args: tuple[object, ...], named: dict[str, object]) -> Any:
    """Return the results of a function of `varying` and of `nonzero`, each by itself: one Dependence or several."""

    def run(of_varying: bool) -> Any:
        given, keywords = tree_map(lambda value: _tensor_of(value, of_varying), (args, named))
        return function(*given, **keywords)

    nonzero = functools.cache(lambda: run(False))
    if not any(varying_of(leaf) is not None for leaf in tree_leaves((args, named))):
        return tree_map(lambda part: Dependence(None, part), nonzero())
    varying = run(True)
    if isinstance(varying, Tensor):
        return Dependence(varying, nonzero)
    return [
        Dependence(part, functools.partial(lambda number: nonzero()[number], number)) for number, part in enumerate(varying)
    ]


def _tensor_of(value: object, of_varying: bool) -> object:
    """Return `varying` or `nonzero` of a value or floating tensor; indices and numbers stay as they are."""
    if not isinstance(value, Dependence) and not (isinstance(value, Tensor) and value.is_floating_point()):
        return value
    return varying_or_zeros(value) if of_varying else nonzero_of(value)
