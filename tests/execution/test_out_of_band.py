"""What is wrapped is what is unwrapped, and nothing large in it is copied, out or in."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fedprune.execution.out_of_band import LARGE, unwrap, wrap

NUMBERS = torch.arange(float(LARGE))

TENSORS = {
    "plain": NUMBERS,
    "a part": NUMBERS[10:-10],
    "bytes": torch.arange(2 * LARGE).to(torch.uint8),
    "truth": NUMBERS > 7,
    "transposed": torch.arange(2.0 * LARGE).reshape(2, -1).t(),
    "strided": NUMBERS[::2],
    "small": torch.tensor([1.5, -0.0, float("inf")]),
    "a number": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "of a type that numpy has not got": NUMBERS.bfloat16(),
    "sparse": torch.eye(3).to_sparse(),
    "a parameter": nn.Parameter(NUMBERS.clone()),
}


def untouchable(parcel: list[np.ndarray]) -> list[np.ndarray]:
    """The same arrays in other memory that cannot be written to, as it comes out of an object store."""
    return [np.frombuffer(array.tobytes(), np.uint8) for array in parcel]


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
@pytest.mark.filterwarnings("error")
def test_every_tensor_is_what_it_was(tensor):
    (found,) = unwrap(untouchable(wrap([tensor])))
    assert type(found) is type(tensor) and found.dtype == tensor.dtype and found.shape == tensor.shape
    assert found.requires_grad == tensor.requires_grad and found.layout == tensor.layout
    assert torch.equal(found.to_dense(), tensor.to_dense())


def test_large_memory_is_neither_in_the_pickle_nor_copied():
    array = np.arange(LARGE)
    content = functools.partial(dict, x=NUMBERS, part=NUMBERS[10:-10], array=array, small=torch.ones(10))
    parcel = wrap(content)
    pickled, *large = parcel
    assert len(pickled) < 2000 and [memory.nbytes for memory in large] == [NUMBERS.nbytes, NUMBERS.nbytes - 80, array.nbytes]
    assert large[0].ctypes.data == NUMBERS.data_ptr() and large[2].ctypes.data == array.ctypes.data
    arrived = untouchable(parcel)
    found = unwrap(arrived)()
    assert found["x"].data_ptr() == arrived[1].ctypes.data and found["array"].ctypes.data == arrived[3].ctypes.data


def test_what_is_small_may_be_written_to():
    found = unwrap(untouchable(wrap({"tensor": torch.zeros(3), "array": np.zeros(3)})))
    found["tensor"] += 1
    found["array"] += 1
    assert found["tensor"].tolist() == found["array"].tolist() == [1, 1, 1]


def test_what_cannot_be_pickled_is_refused_as_ever():
    with pytest.raises((AttributeError, pickle.PicklingError)):
        wrap(lambda: None)
