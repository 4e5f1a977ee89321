"""A cache of results for each tensor of a mask: a mask never changes, and serves many rounds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


def remembered(function: Callable[..., T]) -> Callable[..., T]:
    """Return the same function of (tensor, hashable arguments), with its results cached for as long as the tensor lives."""
    by_tensor = WeakTensorKeyDictionary()

    @functools.wraps(function)
    def of(tensor: Tensor, *more: Hashable) -> T:
        results: dict[tuple[Hashable, ...], T] = by_tensor.setdefault(tensor, {})
        if more not in results:
            results[more] = function(tensor, *more)
        return results[more]

    of.cache_clear = by_tensor.clear  # type: ignore[attr-defined]  # as functools.lru_cache has it
    return of
