"""Remembered: worked out once for each tensor and each choice beside it, and forgotten with the tensor."""

import weakref

import torch

from fedprune.pruning.what.tensor_cache import remembered


def test_a_function_is_called_once_for_each_tensor_and_not_for_its_value():
    calls = []

    @remembered
    def total(tensor, factor=1):
        calls.append(factor)
        return int(tensor.sum()) * factor

    one, other = torch.ones(3), torch.ones(3)
    assert [total(one), total(one), total(one, 5), total(one, 5), total(other)] == [3, 3, 15, 15, 3]
    assert calls == [1, 5, 1]


def test_nothing_is_kept_of_a_tensor_that_is_gone():
    class Result:
        pass

    of, tensor = remembered(lambda _: Result()), torch.ones(3)
    result = weakref.ref(of(tensor))
    assert result() is not None
    del tensor
    assert result() is None
