"""An augmentation that cannot be trained with is refused before the first round, by name and with what to type."""

from __future__ import annotations

import itertools

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fedprune.data.augment import CropFlip
from fedprune.data.datasets import Dataset
from fedprune.errors import ConfigError
from fedprune.experiment.augment import check_augment, make_augment

COUNTER = itertools.count()


def smaller(inputs):
    return inputs[..., 1:]


def scaled(inputs):
    return inputs / 255


def undefined(inputs):
    return inputs * float("nan")


def counting(inputs):
    return inputs + next(COUNTER)


def broken(inputs):
    raise ValueError("no such\n  pixel")


def bright(inputs):
    return inputs.clamp(min=1)


class Module(nn.Module):
    """With parameters, one of which is drawn."""

    def __init__(self, strength=1.0):
        super().__init__()
        self.noise = nn.Parameter(strength * torch.rand(1))

    def forward(self, inputs):
        return inputs + self.noise


def data(dtype=torch.float32, labels=None):
    x = torch.ones(10, 1, 8, 8, dtype=dtype)
    y = torch.zeros(10, dtype=torch.int64) if labels is None else labels
    return Dataset("ones", x, y, x, y, classes=10)


def config(node):
    return OmegaConf.create({"seed": 0, "data": {"_target_": "nothing.of.it", "augment": node}})


def function(name):
    return {"_target_": f"{__name__}.{name}", "_partial_": True}


@pytest.mark.parametrize(
    ("node", "says"),
    [
        (function("smaller"), r"smaller changes the shape of inputs, to \[8, 1, 8, 7\] for a batch of \[8, 1, 8, 8\]"),
        (function("undefined"), "undefined returns numbers that are infinite or NaN"),
        (function("counting"), "counting gives other inputs for the same draws: .* keep nothing between batches"),
        (function("broken"), r"broken cannot take a batch of float32 \[8, 1, 8, 8\]: no such pixel; data/augment=none"),
        ({"_target_": f"{__name__}.bright"}, r"called with \(inputs\): type \+data.augment._partial_=true"),
        ({"_target_": f"{__name__}.Module", "_partial_": True}, "type data.augment._partial_=false"),
        ("crop_flip", "data.augment=crop_flip: .* type data/augment=crop_flip"),
        ({"_target_": "nobodys.transforms.Flip"}, "there is no module nobodys: set PYTHONPATH"),
    ],
)
def test_what_is_refused(node, says):
    with pytest.raises(ConfigError, match=says):
        check_augment(config(node), data(), "cpu")


def test_bytes_that_become_numbers_are_refused():
    with pytest.raises(ConfigError, match="scaled changes the type of inputs, from uint8 to float32: leave out what converts"):
        check_augment(config(function("scaled")), data(torch.uint8), "cpu")


def test_pixels_do_not_move_away_from_their_labels():
    labels = torch.zeros(10, 8, 8, dtype=torch.int64)
    crop_flip = {"_target_": f"{CropFlip.__module__}.CropFlip"}
    with pytest.raises(ConfigError, match="labels of data=ones do not move with them: type data/augment=none"):
        check_augment(config(crop_flip), data(labels=labels), "cpu")
    check_augment(config(function("bright")), data(labels=labels), "cpu")


@pytest.mark.parametrize("node", [function("bright"), {"_target_": f"{__name__}.Module", "strength": 2.0}, None])
def test_what_is_fine(node):
    check_augment(config(node), data(), "cpu")


def test_every_worker_makes_the_same_module():
    node = config({"_target_": f"{__name__}.Module"})
    before = torch.get_rng_state()
    first, second = (make_augment(node, torch.device("cpu")) for _ in range(2))
    assert torch.equal(first.noise, second.noise)
    assert torch.equal(torch.get_rng_state(), before)
