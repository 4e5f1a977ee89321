"""Pickles as arrays that any number of processes can map: large tensors in them are not copied."""

from __future__ import annotations

import io
import pickle
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 16
"""Bytes from which memory is mapped, and so cannot be written to; smaller tensors are copied."""


def wrap(content: object) -> list[np.ndarray]:
    """Return the content as arrays, each uint8 [bytes]: its pickle, then the memory of every large tensor and array in it."""
    large: list[np.ndarray] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        memory = np.asarray(buffer.raw())
        if memory.nbytes >= LARGE:
            large.append(memory)
        return memory.nbytes < LARGE

    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=is_small).dump(content)
    return [np.asarray(file.getbuffer()), *large]


def unwrap(parcel: list[np.ndarray]) -> Any:
    """Return the content that was wrapped. Its large tensors and arrays share the parcel's memory."""
    pickled, *large = parcel
    return pickle.loads(pickled.data, buffers=large)


class _Pickler(pickle.Pickler):
    """Tensors travel as numpy arrays: by themselves they would be copied into the pickle."""

    def reducer_override(self, content: object) -> Any:
        """Take a tensor apart for pickle (see pickle.Pickler.reducer_override)."""
        if type(content) is not Tensor or content.requires_grad:
            return NotImplemented
        try:
            return _tensor, (content.numpy(),)
        except (TypeError, RuntimeError):  # numpy has no such type, or it is not a plain tensor on the CPU
            return NotImplemented


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it cannot be written to: nobody does
        return torch.from_numpy(array)
