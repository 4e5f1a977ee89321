"""What is worked out of a mask's tensors, once for each: a mask never changes, and serves many rounds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")


def remembered(function: Callable[..., T]) -> Callable[..., T]:
    """The same function of (tensor, more that can be hashed), whose results are kept for as long as the tensor is."""
    found = WeakTensorKeyDictionary()

    @functools.wraps(function)
    def of(tensor: Tensor, *more: Hashable) -> T:
        results = found.setdefault(tensor, {})
        if more not in results:
            results[more] = function(tensor, *more)
        return results[more]

    of.cache_clear = found.clear  # type: ignore[attr-defined]  # as functools.lru_cache has it
    return of
