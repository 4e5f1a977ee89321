"""Masks: which entries are alive. The two functions that carry the design are `shrink` and `regrow`.

Every function takes dicts of tensors and returns new ones; nothing is changed in place. A Mask holds the prunable names only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.pruning.what import What
from fedprune.pruning.what.tensor_cache import remembered
from fedprune.pruning.what.top_k import how_many
from fedprune.types import Mask, Params, Scores


def ones(params: Mapping[str, Tensor], names: tuple[str, ...]) -> Mask:
    """Return the mask in which every entry of the named tensors is alive."""
    return {name: torch.ones(params[name].shape, dtype=torch.bool) for name in names}


def apply(params: Params, mask: Mask) -> Params:
    """Return `params` with every dead entry set to +0.0 (bitwise). Names outside the mask are passed on as they are."""
    return {name: torch.where(mask[name], value, 0) if name in mask else value for name, value in params.items()}


def shrink(mask: Mask, scores: Scores, density: float, what: What) -> Mask:
    """Keep the best of the living: return a subset of `mask` with the fraction `density` of all units alive.

    Dead units score -inf. Counts are exact: the number of units kept is the nearest integer to density x units (half up); ties
    go to the lower flat index of the alphabetically first name.
    """
    living = {name: torch.where(alive, scores[name], -math.inf) for name, alive in mask.items()}
    survivors = what.select(living, density)
    return {name: survivors[name] & alive for name, alive in mask.items()}


def regrow(mask: Mask, scores: Scores, density: float, what: What) -> Mask:
    """Return `mask` filled up with the best of the dead, until the fraction `density` of all units is alive.

    Living units score +inf, so none is lost; a dead unit with score -inf is never grown (a veto).
    """
    everyone = {name: scores[name].masked_fill(alive, math.inf) for name, alive in mask.items()}
    survivors = what.select(everyone, density)
    return {name: survivors[name] | alive for name, alive in mask.items()}


def count(mask: Mask) -> int:
    """Return the number of living entries."""
    return sum(living(alive) for alive in mask.values())


@remembered
def living(alive: Tensor) -> int:
    """Return the number of living entries of a mask tensor."""
    return how_many(alive)


def size(mask: Mask) -> int:
    """Return the number of entries, dead or alive."""
    return sum(alive.numel() for alive in mask.values())


def density(mask: Mask) -> float:
    """Return the fraction of the prunable entries that is alive (1.0 for a network with nothing to prune)."""
    return count(mask) / size(mask) if size(mask) else 1.0


def collapsed(before: Mask, after: Mask) -> list[str]:
    """Return the layers that were alive before and are dead after, so that nothing passes through them any more."""
    changed = {name: alive for name, alive in after.items() if alive is not before[name]}
    return [name for name, alive in changed.items() if before[name].any() and not alive.any()]


def full(mask: Mask) -> bool:
    """Return whether nothing is dead."""
    return all(alive.numpy().all() for alive in mask.values())


@remembered
def places(alive: Tensor) -> NDArray[np.intp] | slice:
    """Return an index of a mask tensor's living entries: flat numbers, ascending, or the slice of everything if all live."""
    flat = alive.numpy().reshape(-1)
    return slice(None) if flat.all() else np.flatnonzero(flat)


def pack(mask: Mask) -> bytes:
    """Return the mask as bits, one per entry: names in the order of the dict, entries row by row, the last byte zero-padded."""
    if not mask:
        return b""
    return np.packbits(np.concatenate([alive.numpy().reshape(-1) for alive in mask.values()])).tobytes()


def count_packed(bits: bytes) -> int:
    """Return the number of living entries of a packed mask."""
    return int.from_bytes(bits, "big").bit_count()


def all_alive(shapes: dict[str, torch.Size]) -> bytes:
    """Return the packed mask of tensors of these shapes with nothing dead."""
    return _all_alive(sum(shape.numel() for shape in shapes.values()))


@functools.lru_cache(maxsize=8)
def _all_alive(number: int) -> bytes:
    return np.packbits(np.ones(number, bool)).tobytes()


def unpack(bits: bytes, shapes: dict[str, torch.Size]) -> Mask:
    """Return the mask that was packed; names and shapes in the same order. Raises ValueError if the length does not fit."""
    return dict(_unpack(bits, tuple(shapes.items())))


@functools.lru_cache(maxsize=8)
def _unpack(bits: bytes, shapes: tuple[tuple[str, torch.Size], ...]) -> Mask:
    # Cached: the same bits give the same tensors again, for which `places` has its result.
    total = sum(shape.numel() for _, shape in shapes)
    if len(bits) != (total + 7) // 8:
        raise ValueError(f"a mask of {total} entries takes {(total + 7) // 8} bytes, not {len(bits)}")
    flat = torch.from_numpy(np.unpackbits(np.frombuffer(bits, np.uint8), count=total).view(np.bool_))
    parts = flat.split([shape.numel() for _, shape in shapes])
    return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
