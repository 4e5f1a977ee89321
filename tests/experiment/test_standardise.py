"""Inputs standardised by numbers of the user's, in the units in which people know them."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from fedprune.data.datasets import Dataset
from fedprune.errors import ConfigError
from fedprune.experiment.standardise import of_the_data_set, standardised
from fedprune.identity import identity
from helpers.composed import TINY, assemble


def photographs() -> Dataset:
    x, y = torch.zeros(2, 3, 1, 1, dtype=torch.uint8), torch.tensor([0, 1])
    return Dataset("photographs", x, y, x, y, classes=2, mean=(9.0,), std=(2.0,))


def of(**keys: object):
    return OmegaConf.create({"data": {"_target_": "fedprune.data.datasets.digits", "root": "", **keys}})


def test_the_numbers_of_torchvision_are_of_pixels_in_0_to_1():
    data = standardised(of(mean=[0.5, 0.2, 0.4], std=[0.1]), photographs())
    assert data.mean == pytest.approx((127.5, 51.0, 102.0)) and data.std == pytest.approx((25.5,))
    x = torch.tensor([255, 51, 0], dtype=torch.uint8)[None, :, None, None]
    assert data.normalise(x).flatten().tolist() == pytest.approx([5.0, 0.0, -4.0])  # (1 - 0.5) / 0.1, 0, (0 - 0.4) / 0.1


def test_of_digits_1_is_16_and_of_floats_the_units_are_their_own(tiny):
    data = tiny("data.mean=[0.5]", "data.std=[0.25]").dataset
    assert (data.mean, data.std, data.white) == ((8.0,), (4.0,), 16)
    floats = tiny("data=diabetes", "local=regression", "model=lenet_300_100", "data.mean=40", "data.std=2").dataset
    assert (floats.mean, floats.std) == ((40.0,), (2.0,))


def test_null_changes_nothing_and_keeps_the_identity():
    assert standardised(of(mean=None, std=None), photographs()).mean == (9.0,)
    config, _ = assemble(*TINY)
    assert {"mean", "std"} <= set(config.data) and not {"mean", "std"} & set(identity(config)["data"])
    assert list(of_the_data_set(config)) == ["_target_", "root"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mean": [127.5], "std": [0.5]}, "as torchvision states it: for 0..255 type data.mean=[0.5]"),
        ({"mean": [0.5]}, "data.mean=[0.5] without data.std: type both"),
        ({"mean": [0.5, 0.5], "std": [0.5]}, "is 2 numbers for 3 channels"),
        ({"mean": [0.5], "std": [0]}, "data.std=[0]: inputs are divided by it: type positive numbers"),
        ({"mean": ["half"], "std": [0.5]}, "type a number for each channel"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_answered_with_what_to_type(keys, said):
    with pytest.raises(ConfigError) as refused:
        standardised(of(**keys), photographs())
    assert said in str(refused.value)


def loader(mean: float = 1.0) -> Dataset:
    """A data set of a user's whose own argument is called mean."""
    data = photographs()
    return Dataset("theirs", data.x, data.y, data.x, data.y, classes=2, mean=(mean,), std=(1.0,))


def test_a_function_that_has_such_an_argument_keeps_it():
    config = OmegaConf.create({"data": {"_target_": f"{__name__}.loader", "mean": 7.0}})
    assert list(of_the_data_set(config)) == ["_target_", "mean"]
    assert standardised(config, loader(7.0)).mean == (7.0,)
