"""What is said of data and code of one's own that do not fit, and that what it says to type works."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from fedprune.api.compose import compose
from fedprune.errors import ConfigError
from fedprune.experiment.build import build

pytestmark = pytest.mark.slow

NUMBER = 60
BASE = (
    *("data=dataset", "model=mlp", "federated.clients=4", "federated.cohort=2", "partition=iid", "logger=none", "rounds=2"),
    "executor=serial",
)


def rows(labels):
    inputs = torch.randn(NUMBER, 5, generator=torch.Generator().manual_seed(0))
    return list(zip(inputs, labels, strict=True))


def floats():
    return rows((torch.arange(NUMBER) % 3).float())


def whole():
    return rows(torch.arange(NUMBER) % 3)


def undefined():
    examples = whole()
    examples[7][0][2] = float("nan")
    return examples


class Deep(nn.Linear):
    def __init__(self, shape, classes, depth):
        super().__init__(shape[0], classes)


class ForImages(nn.Linear):
    def __init__(self):
        super().__init__(64, 3)


def scores(params):
    return {name: w.abs() for name, w in params.items()}


HERE = f"{__name__}."
WHOLE = f"+data.train._target_={HERE}whole"


def told(*words):
    """What is said of a composition; nothing if it is fine."""
    made = compose([*BASE, *words])
    try:
        build(made.config, made.options)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("typed", "says", "instead"),
    [
        ([f"+data.train._target_={HERE}floats"], "set data.renumber=true; or choose local=regr", ["data.renumber=true"]),
        ([f"+data.train._target_={HERE}floats"], "choose local=regression", ["local=regression"]),
        ([f"+data.train._target_={HERE}undefined"], "type data.missing=drop", ["data.missing=drop"]),
        ([WHOLE, "local=regression"], "which are classes: choose local=classification", ["local=classification"]),
        ([WHOLE, f"model._target_={HERE}Deep"], r"type \+model.depth=VALUE", ["+model.depth=3"]),
        (
            [WHOLE, f"criterion._target_={HERE}scores", "how_often=one_shot"],
            rf"type criterion.drop._target_={HERE}scores if it is to stand there",
            ["criterion._target_=fedprune.pruning.criterion.Criterion", f"criterion.drop._target_={HERE}scores"],
        ),
    ],
)
def test_what_is_said_works(typed, says, instead):
    said = told(*typed)
    assert re.search(says, said), said
    assert told(*typed, *instead) == ""


def test_a_key_of_a_replaced_aggregate_is_named():
    assert "type ~federated.aggregate.uncovered" in told(WHOLE, f"federated.aggregate._target_={HERE}scores")


def test_a_network_that_takes_other_inputs_is_named():
    said = told(WHOLE, f"model._target_={HERE}ForImages")
    assert "choose model=mlp without model._target_, or let ForImages take these" in said
