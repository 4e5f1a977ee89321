"""Users with too few examples are named, with what to type."""

import logging

import pytest
import torch

from fedprune.data.datasets import Dataset
from fedprune.data.federate import federate
from fedprune.data.partition import Natural
from fedprune.errors import DataError

GROUPS = torch.tensor([0] * 12 + [1] * 4 + [2] * 2 + [3] * 20)


def mine() -> Dataset:
    x, y = torch.zeros(38, 2), torch.arange(38) % 2
    return Dataset("mine", x, y, x, y, 2, groups=GROUPS, users=("ann", "bob", "cy", "dot"))


def test_users_with_too_few_examples_are_named(caplog):
    caplog.set_level(logging.INFO)
    assert len(federate(mine(), Natural(), clients=2, seed=0).train) == 2
    said = "2 of 4 users have fewer than 10 examples and are no clients: cy (2), bob (4): type partition.min_examples=3"
    assert said in caplog.text
    caplog.clear()
    assert len(federate(mine(), Natural(min_examples=3), clients=3, seed=0).train) == 3
    assert "1 of 4 users have fewer than 3 examples and are no clients: cy (2): partition.val=0 partition.test=0" in caplog.text
    caplog.clear()
    assert len(federate(mine(), Natural(min_examples=1, val=0, test=0), clients=4, seed=0).train) == 4
    assert caplog.text == ""


def test_they_are_named_where_too_few_are_left():
    with pytest.raises(DataError, match=r"choose federated.clients=2 or fewer.*; 2 of 4 users .* cy \(2\), bob \(4\)"):
        federate(mine(), Natural(), clients=4, seed=0)
