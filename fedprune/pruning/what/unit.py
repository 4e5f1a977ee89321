"""Units: the groups of entries of a tensor that live or die together.

unit: (scores of one tensor [O, I, ...]) -> one score per unit, on a grid with the tensor's dimensions or with those of its
      matrix [O, I k k]. Along each dimension a unit covers size / grid entries.
Higher = keep. -inf = dead: a unit with such an entry scores -inf, whatever the others are worth. +inf = protected.

Two words say how a unit's score is computed from its entries' scores:
reduce: `mean` (units of different sizes stay comparable), `sum`, or `l2`, the root of the sum of squares.
of:     `signed` scores as they are, or their `absolute` values (the same for criteria that never go below 0, and for l2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedprune.capabilities import declares
from fedprune.errors import ConfigError, Incompatible

Unit = Callable[[Tensor], Tensor]


class UnitKind:
    """The attributes that a unit may declare.

    single: every entry is a unit of its own.
    channelwise: its layers give each output by a row of their own, and read each input by a column, as convolutions and linear
    layers do. A row of a recurrent layer is one gate of a unit, one of attention's is a coordinate of queries, keys or values,
    and a row of an embedding is an input.
    of_filters: by it a convolution loses all that produces one of its outputs.
    whole_lines: each unit is a whole output or a whole input of its layer.
    """

    single: bool = False
    channelwise: bool = False
    of_filters: bool = False
    whole_lines: bool = False


REDUCE: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "mean": lambda entries, dims, keepdim: entries.mean(dims, keepdim),
    "sum": lambda entries, dims, keepdim: entries.sum(dims, keepdim),
    "l2": lambda entries, dims, keepdim: entries.square().sum(dims, keepdim).sqrt(),
}
OF: dict[str, Callable[[Tensor], Tensor]] = {"signed": lambda entries: entries, "absolute": torch.abs}


@declares(single=True)
def weights(scores: Tensor) -> Tensor:
    """Take every entry as a unit of its own."""
    return scores


@declares(channelwise=True, of_filters=True, whole_lines=True)
def filters(scores: Tensor, reduce: str = "mean", of: str = "signed") -> Tensor:
    """Take all that produces one output channel: a row [o, :, ...]. Grid [O, 1, ...]."""
    return _reduced(scores, tuple(range(1, scores.dim())), reduce, of)


@declares(of_filters=True)
def filters_or_weights(scores: Tensor, reduce: str = "mean", of: str = "signed") -> Tensor:
    """Take a filter of a convolution, a single weight of a linear layer. Vahidian et al. 2021 (Sub-FedAvg, hybrid)."""
    return filters(scores, reduce, of) if scores.dim() > 2 else scores


@declares(channelwise=True, whole_lines=True)
def neurons(scores: Tensor, reduce: str = "mean", of: str = "signed") -> Tensor:
    """Take all that produces one output of a linear layer: a row of [O, I]. Grid [O, 1]. A convolution's rows are `filters`."""
    if scores.dim() != 2:
        raise Incompatible("neurons are of linear layers: choose what.layers=[linear], or what=filters_global")
    return filters(scores, reduce, of)


@declares(channelwise=True, whole_lines=True)
def channels(scores: Tensor, reduce: str = "mean", of: str = "signed") -> Tensor:
    """Take all that reads one input channel (of a linear layer: one input): [:, i, ...]. Grid [1, I, 1, ...].

    In a convolution with groups: one place among the input channels of every group.
    """
    return _reduced(scores, (0, *range(2, scores.dim())), reduce, of)


@declares(channelwise=True)
def kernels(scores: Tensor, reduce: str = "mean", of: str = "signed") -> Tensor:
    """Take all that leads from one input channel to one output channel: a slice [o, i]. Grid [O, I, 1, ...]."""
    return _reduced(scores, tuple(range(2, scores.dim())), reduce, of) if scores.dim() > 2 else scores


def blocks(scores: Tensor, h: int, w: int, reduce: str = "mean", of: str = "signed") -> Tensor:
    """Take tiles of h rows x w columns of the matrix [O, I k k]. Grid [O/h, I k k/w].

    Raises Incompatible where tiles do not fit: at a ragged edge they would be smaller, and as cheap to keep as whole ones.
    """
    rows, columns = len(scores), scores[0].numel()
    if h < 1 or w < 1:
        raise ConfigError([f"what.unit.h={h} and what.unit.w={w} are a block's rows and columns: at least 1"])
    if rows % h or columns % w:
        raise Incompatible(
            f"blocks of {h} x {w} do not fit into its {rows} x {columns} matrix: "
            f"choose what.unit.h={math.gcd(h, rows)} with what.unit.w={math.gcd(w, columns)}, "
            "or leave the layer out with what.skip"
        )
    return _reduced(scores.reshape(rows // h, h, columns // w, w), (1, 3), reduce, of, keepdim=False)


def check_grid(grid: object, shape: torch.Size) -> None:
    """Raise ValueError if what a unit, which may be anybody's, gives for a tensor of this shape is no grid of its units."""
    sizes = list(grid.shape) if isinstance(grid, Tensor) else []
    for whole in ([*shape], [shape[0], shape[1:].numel()]):
        if len(sizes) == len(whole) and all(cells and not n % cells for cells, n in zip(sizes, whole, strict=True)):
            return
    given = f"a tensor of shape {sizes}" if isinstance(grid, Tensor) else f"{grid!r:.40}"
    raise ValueError(
        f"gave {given} for scores of shape {list(shape)}: return one score for each unit, on a grid of these dimensions"
    )


def spread(grid: Tensor, shape: torch.Size) -> Tensor:
    """Broadcast per-unit values to entries: a contiguous tensor of that shape."""
    whole = shape if grid.dim() == len(shape) else torch.Size((shape[0], shape[1:].numel()))
    for dim, (cells, size) in enumerate(zip(grid.shape, whole, strict=True)):
        if 1 < cells < size:
            grid = grid.repeat_interleave(size // cells, dim)
    return grid.expand(whole).reshape(shape).contiguous()


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Broadcast one value per output unit to every entry that makes the unit: [O] -> the shape [O, ...] of `like`."""
    return values.view(-1, *[1] * (like.dim() - 1)).expand(like.shape).clone()


def _reduced(scores: Tensor, dims: tuple[int, ...], reduce: str, of: str, keepdim: bool = True) -> Tensor:
    for key, value, known in (("reduce", reduce, tuple(REDUCE)), ("of", of, tuple(OF))):
        if value not in known:
            raise ConfigError([f"what.unit.{key}={value}: choose one of {', '.join(known)}"])
    # Squares and absolute values would turn -inf into +inf, and -inf beside +inf is not a number.
    dead = (scores == -math.inf).any(dims, keepdim)
    return REDUCE[reduce](OF[of](scores), dims, keepdim).masked_fill(dead, -math.inf)
