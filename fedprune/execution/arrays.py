"""Tensors on their way between processes, as numpy arrays: as torch tensors they would become shared memory.

Types that numpy does not have travel as words of their size, in a record whose one field is called as the type.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedprune.types import Params

Arrays = dict[str, np.ndarray]

WORDS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}


def arrays_of(tensors: Mapping[str, Tensor]) -> Arrays:
    """Return tensors on the CPU as arrays, which share their memory."""
    return {name: as_array(tensor) for name, tensor in tensors.items()}


def tensors_of(arrays: Mapping[str, np.ndarray]) -> Params:
    """Return the tensors that these arrays were made of; they share the arrays' memory."""
    return {name: as_tensor(array) for name, array in arrays.items()}


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor on the CPU as an array of its type or, for types that numpy does not have, as words that name it."""
    try:
        return tensor.numpy()
    except TypeError:
        words = tensor.contiguous().view(WORDS[tensor.dtype.itemsize]).numpy()
        return words.view(np.dtype([(str(tensor.dtype).removeprefix("torch."), words.dtype)]))


def as_tensor(array: np.ndarray) -> Tensor:
    """Return the tensor that `as_array` was given."""
    if array.dtype.names is None:
        return torch.from_numpy(array)
    (name,) = array.dtype.names
    return torch.from_numpy(array[name]).view(getattr(torch, name))
