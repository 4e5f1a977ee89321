"""Wires: the values of a network as what is known of them whatever numbers its living weights are.

A Wire says of every entry of a value whether it is `varying` (it depends on the network's input through living weights) and
whether it is `nonzero` (it varies, or it is a constant other than 0, as biases are). Weights and biases count as numbers in
general position: they are not 0, and nothing cancels by chance. Buffers and numbers in the code are what they are.

    linear, convolution, matrix product, product    varying where a varying factor meets one that is nonzero
    sum, difference, mean, pool, quotient           varying where anything varies that goes in
    curves                                          each entry by itself; a constant 0 stays 0, but not under a sigmoid
    softmax                                         mixes the entries that it goes over
    normalisation, dropout                          each entry by itself: the statistics that units share are not paths

RULES are what torch's functions do to wires: (the function, its arguments) -> a Wire. A function is looked up by its name
without underscores, so that functions, methods and operators have one rule; any other raises Unread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Rule = Callable[..., Any]


class Unread(Exception):
    """A function that wires do not know."""


@dataclass(frozen=True, eq=False)
class Wire:
    """varying: 1 or 0 of each entry; None of parameters, and of what is made of parameters alone. Torch differentiates it: its
    gradient by a mask is positive where an entry of the mask lies on a path. rest: the same for `nonzero`, or how it is worked
    out: most networks never ask for it."""

    varying: Tensor | None
    rest: Tensor | Callable[[], Tensor]

    @functools.cached_property
    def nonzero(self) -> Tensor:
        """1 or 0 of each entry. It has a gradient only where masks alone have made it."""
        found = self.rest if isinstance(self.rest, Tensor) else self.rest()
        return found if self.varying is None else found.detach()

    @property
    def shape(self) -> torch.Size:
        return self.nonzero.shape if self.varying is None else self.varying.shape


class _Reached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return (values > 0).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] > 0).to(gradients[0].dtype)


def reached(values: Tensor) -> Tensor:
    """Return 1 where anything arrives, else 0; gradients likewise, so that no depth makes numbers overflow."""
    return _Reached.apply(values)  # type: ignore[no-untyped-call,no-any-return]


def _nonzero(value: Any) -> Tensor:
    if isinstance(value, Wire):
        return value.nonzero
    return (value != 0).float() if isinstance(value, Tensor) else torch.tensor(float(value != 0))


def _varying(value: Any) -> Tensor | None:
    return value.varying if isinstance(value, Wire) else None


def _shape(value: Any) -> torch.Size:
    return value.shape if isinstance(value, Wire | Tensor) else torch.Size(())


def _part(value: Any, of_varying: bool) -> Any:
    """Return one part of a wire or floating tensor; indices and numbers stay as they are."""
    if not isinstance(value, Wire) and not (isinstance(value, Tensor) and value.is_floating_point()):
        return value
    if not of_varying:
        return _nonzero(value)
    return _varying_or_zeros(value)


def _varying_or_zeros(value: Any) -> Tensor:
    found = _varying(value)
    return torch.zeros(_shape(value)) if found is None else found


def _of_parts(function: Callable, args: tuple, named: dict) -> Any:
    """Return what a function makes of `varying` and of `nonzero`, each by itself: one wire or several."""

    def run(of_varying: bool) -> Any:
        given, keywords = tree_map(lambda value: _part(value, of_varying), (args, named))
        return function(*given, **keywords)

    rest = functools.cache(lambda: run(False))
    if not any(_varying(leaf) is not None for leaf in tree_leaves((args, named))):
        return tree_map(lambda part: Wire(None, part), rest())
    found = run(True)
    if isinstance(found, Tensor):
        return Wire(found, rest)
    return [Wire(part, functools.partial(lambda number: rest()[number], number)) for number, part in enumerate(found)]


def moved(function: Callable, *args: Any, **named: Any) -> Any:
    """Entries are put elsewhere, or left out."""
    return _of_parts(function, args, named)


def same(function: Callable, wire: Wire, *args: Any, **named: Any) -> Wire:
    """The value itself."""
    return wire


def padded(function: Callable, wire: Wire, pad: Any, mode: str = "constant", value: float | None = None) -> Wire:
    """Padding with a number, or with the value's own entries."""
    if mode != "constant":
        return moved(function, wire, pad, mode)  # type: ignore[no-any-return]
    rest = lambda: function(wire.nonzero, pad, value=float(_nonzero(value or 0.0)))  # noqa: E731
    return Wire(None, rest()) if wire.varying is None else Wire(function(wire.varying, pad), rest)


def summed(function: Callable, *args: Any, **named: Any) -> Wire:
    """Entries are added with positive weights: sums, means, average pools."""
    return _of_parts(lambda *given, **keywords: reached(function(*given, **keywords)), args, named)  # type: ignore[no-any-return]


def largest(function: Callable, *args: Any, **named: Any) -> Wire:
    """The largest or smallest of several: which one that is, the numbers say, so all of them pass."""
    return summed(torch.sum, *args, **named)


def added(function: Callable, one: Any, other: Any, **named: Any) -> Wire:
    """A sum, a difference, or the larger of two."""
    left, right = _varying(one), _varying(other)
    rest = lambda: reached(_nonzero(one) + _nonzero(other))  # noqa: E731
    if left is not None and right is not None:
        return Wire(reached(left + right), rest)
    if left is None and right is None:
        return Wire(None, rest())
    part: Tensor = left if left is not None else right  # type: ignore[assignment]
    return Wire(part.expand(torch.broadcast_shapes(_shape(one), _shape(other))), rest)


def _bilinear(product: Callable[[Tensor, Tensor], Tensor], one: Any, other: Any) -> Wire:
    left, right = _varying(one), _varying(other)
    terms = [] if left is None else [product(left, _nonzero(other))]
    terms += [] if right is None else [product(_nonzero(one), right)]
    rest = lambda: reached(product(_nonzero(one), _nonzero(other)))  # noqa: E731
    return Wire(reached(terms[0] if len(terms) == 1 else terms[0] + terms[1]), rest) if terms else Wire(None, rest())


def multiplied(function: Callable, one: Any, other: Any, **named: Any) -> Wire:
    """A product, entry by entry."""
    return _bilinear(torch.mul, one, other)


def divided(function: Callable, one: Any, other: Any, **named: Any) -> Wire:
    """A quotient. What divides is never 0."""
    return _bilinear(torch.mul, one, _never_zero(other))


def matrix_product(function: Callable, one: Any, other: Any) -> Wire:
    """A product of matrices."""
    return _bilinear(function, one, other)


def einsum(function: Callable, equation: str, *operands: Any) -> Wire:
    """Sums of products of two tensors."""
    if len(operands) != 2:
        raise Unread(f"einsum of {len(operands)} tensors")
    return _bilinear(functools.partial(function, equation), *operands)


def layer(function: Callable, input: Any, weight: Any, bias: Any = None, *rest: Any, **named: Any) -> Wire:
    """A linear layer or convolution, transposed or not."""
    product = _bilinear(lambda x, w: function(x, w, None, *rest, **named), input, weight)
    if bias is None or product.varying is None:
        return product if bias is None else added(function, product, _spread(function, bias, product))
    return Wire(product.varying, lambda: reached(product.nonzero + _spread(function, bias, product)))


def _spread(function: Callable, bias: Any, product: Wire) -> Tensor:
    """Return a bias as what is added at each place."""
    places = 0 if function is F.linear else len(_shape(product)) - 2
    return _nonzero(bias).view(-1, *[1] * places)


def curve(function: Callable, wire: Wire, *args: Any, **named: Any) -> Wire:
    """Each entry by itself, 0 at 0."""
    return wire


def _never_zero(value: Any) -> Wire:
    part = _varying(value)
    return Wire(None, torch.ones(_shape(value))) if part is None else Wire(part, lambda: torch.ones_like(part))


def offset(function: Callable, wire: Wire, *args: Any, **named: Any) -> Wire:
    """Each entry by itself, other than 0 at 0."""
    return _never_zero(wire)


def clamped(function: Callable, wire: Wire, min: Any = None, max: Any = None, *args: Any, **named: Any) -> Wire:
    """Each entry by itself; 0 stays 0 if it is between the bounds."""
    low, high = named.get("min_val", min), named.get("max_val", max)
    if isinstance(low, Wire | Tensor) or isinstance(high, Wire | Tensor):
        raise Unread("clamp between tensors")
    return wire if (low is None or low <= 0) and (high is None or high >= 0) else _never_zero(wire)


def power(function: Callable, base: Any, exponent: Any) -> Wire:
    """A power."""
    if not isinstance(exponent, int | float):
        return divided(function, _never_zero(base), exponent)
    if exponent == 0:
        return Wire(None, torch.ones(_shape(base)))
    return base if exponent > 0 else _never_zero(base)  # type: ignore[no-any-return]


def softmax(function: Callable, wire: Wire, dim: int | None = None, *args: Any, **named: Any) -> Wire:
    """Each entry depends on all that it goes over, and none is 0."""
    if dim is None:
        dim = 0 if len(wire.shape) in (0, 1, 3) else 1  # torch's own choice
    whole = summed(torch.sum, wire, dim, keepdim=True).varying
    return _never_zero(wire) if whole is None else _never_zero(Wire(whole.expand(wire.shape), whole))


def normalised(function: Callable, wire: Wire, p: float = 2.0, dim: int = 1, *args: Any, **named: Any) -> Wire:
    """x / |x|, the length taken over a dimension."""
    return divided(function, wire, summed(torch.sum, wire, dim, keepdim=True))


def gated(function: Callable, wire: Wire, dim: int = -1) -> Wire:
    """GLU: one half times the sigmoid of the other."""
    half, gate = moved(torch.chunk, wire, 2, dim)
    return multiplied(function, half, _never_zero(gate))


WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def pooled(average: Callable, function: Callable, wire: Wire, *args: Any, **named: Any) -> Wire:
    """The largest of each window, as of any numbers: the average lets the whole window pass."""
    given = dict(zip(WINDOW, args, strict=False)) | named
    if given.pop("return_indices", False) or {*tree_leaves(given.pop("dilation", 1))} != {1}:
        raise Unread(f"{function.__name__.strip('_')} with dilation or indices")
    return summed(average, wire, **given)


def pooled_to_size(average: Callable, function: Callable, wire: Wire, output_size: Any, return_indices: bool = False) -> Wire:
    """The same, for pools that are told how many places are left."""
    if return_indices:
        raise Unread(f"{function.__name__.strip('_')} with indices")
    return summed(average, wire, output_size)


WEIGHTED = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area")
"""Interpolation whose weights are positive."""


def resized(function: Callable, wire: Wire, *args: Any, mode: str = "nearest", **named: Any) -> Wire:
    """Interpolation."""
    if mode not in WEIGHTED:
        raise Unread(f"interpolate with mode={mode}")
    return summed(functools.partial(function, mode=mode), wire, *args, **named)


def chosen(function: Callable, condition: Any, one: Any, other: Any) -> Wire:
    """Entries of one value or of another, by a condition that depends on neither."""
    if isinstance(condition, Wire):
        raise Unread("where by a condition that depends on the input")
    rest = lambda: torch.where(condition, _nonzero(one), _nonzero(other))  # noqa: E731
    if _varying(one) is None and _varying(other) is None:
        return Wire(None, rest())
    return Wire(torch.where(condition, _varying_or_zeros(one), _varying_or_zeros(other)), rest)


def filled(function: Callable, wire: Wire, mask: Any, value: Any) -> Wire:
    """A number wherever a mask says so."""
    return chosen(function, mask, value, wire)


def put(function: Callable, wire: Any, index: Any, value: Any) -> Wire:
    """wire[index] = value."""
    if not isinstance(wire, Wire) or any(isinstance(leaf, Wire) for leaf in tree_leaves(index)):
        raise Unread("writing into a tensor that is no value of the network")

    def written(whole: Tensor, piece: Tensor) -> Tensor:
        copy = whole.clone()
        copy[index] = piece
        return copy

    rest = lambda: written(_nonzero(wire), _nonzero(value))  # noqa: E731
    if _varying(wire) is None and _varying(value) is None:
        return Wire(None, rest())
    return Wire(written(_varying_or_zeros(wire), _varying_or_zeros(value)), rest)


def constant(function: Callable, wire: Wire, *args: Any, **named: Any) -> Any:
    """A new tensor."""
    made = function(torch.empty(wire.shape), *args, **named)
    return Wire(None, _nonzero(made)) if made.is_floating_point() else made


def turned(rule: Rule, function: Callable, other: Any, one: Any) -> Wire:
    """An operator whose left side is no tensor of torch's."""
    return rule(function, one, other)  # type: ignore[no-any-return]


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


VIEWS: dict[str, Rule] = {
    **_named(moved, "view reshape flatten unflatten ravel transpose permute t T mT movedim moveaxis swapaxes swapdims squeeze"),
    **_named(moved, "unsqueeze expand broadcast_to narrow select getitem chunk split tensor_split unbind diagonal unfold"),
    **_named(same, "contiguous detach data to float dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"),
}
"""What gives another name to memory that has one: writing in place into either is not followed."""

RULES: dict[str, Rule] = VIEWS | {
    **_named(same, "clone double half bfloat16 type_as"),
    **_named(
        moved, "repeat tile index_select gather take_along_dim cat concat concatenate stack hstack vstack flip roll rot90"
    ),
    **_named(moved, "pixel_shuffle pixel_unshuffle channel_shuffle tril triu repeat_interleave"),
    **_named(padded, "pad"),
    **_named(added, "add iadd radd sub subtract isub rsub maximum minimum"),
    **_named(summed, "sum mean nansum cumsum avg_pool1d avg_pool2d avg_pool3d"),
    **_named(summed, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    **_named(largest, "amax amin"),
    **_named(multiplied, "mul multiply imul rmul"),
    **_named(divided, "div divide true_divide truediv itruediv"),
    **_named(functools.partial(turned, divided), "rtruediv rdiv"),
    **_named(matrix_product, "matmul mm bmm mv"),
    **_named(functools.partial(turned, lambda function, a, b: matrix_product(torch.matmul, a, b)), "rmatmul"),
    **_named(einsum, "einsum"),
    **_named(layer, "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_named(
        curve, "relu relu6 leaky_relu elu selu celu gelu silu mish prelu rrelu tanh hardswish softsign softshrink hardshrink"
    ),
    **_named(curve, "tanhshrink neg abs square sqrt sin tan asin atan sinh asinh erf log1p expm1 local_response_norm rms_norm"),
    **_named(offset, "sigmoid hardsigmoid softplus logsigmoid exp exp2 log log2 log10 cos cosh acos rsqrt reciprocal erfc"),
    **_named(offset, "batch_norm group_norm layer_norm instance_norm"),
    **_named(clamped, "clamp clip hardtanh"),
    **_named(power, "pow ipow"),
    **_named(functools.partial(turned, power), "rpow"),
    **_named(softmax, "softmax log_softmax"),
    **_named(normalised, "normalize"),
    **_named(gated, "glu"),
    "max_pool1d": functools.partial(pooled, F.avg_pool1d),
    "max_pool2d": functools.partial(pooled, F.avg_pool2d),
    "max_pool3d": functools.partial(pooled, F.avg_pool3d),
    "adaptive_max_pool1d": functools.partial(pooled_to_size, F.adaptive_avg_pool1d),
    "adaptive_max_pool2d": functools.partial(pooled_to_size, F.adaptive_avg_pool2d),
    "adaptive_max_pool3d": functools.partial(pooled_to_size, F.adaptive_avg_pool3d),
    **_named(resized, "interpolate upsample"),
    **_named(chosen, "where"),
    **_named(filled, "masked_fill"),
    **_named(put, "setitem"),
    **_named(constant, "new_zeros new_ones new_full zeros_like ones_like full_like"),
}
