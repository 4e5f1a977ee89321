"""Networks of torchvision and timm by name: with stand-ins of the same signatures, and with the packages where they are."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from fedprune.errors import ConfigError
from fedprune.models.zoo import timm_network, torchvision_network

NAMES = ["resnet18", "resnet34", "mobilenet_v3_small", "vit_tiny_patch16_224"]
IMAGES = (3, 32, 32)


class Made(nn.Linear):
    """Remembers the words that it was made with."""

    def __init__(self, name, **words):
        super().__init__(4, words["num_classes"])
        self.name, self.words = name, words


@pytest.fixture
def stand_ins(monkeypatch):
    """Modules of these names with as much of them as is used."""
    models, vision, timm = ModuleType("torchvision.models"), ModuleType("torchvision"), ModuleType("timm")

    def list_models(module=None):
        assert module is models, "else it lists detection and segmentation, too"
        return NAMES

    def create_model(name, pretrained=False, **words):
        if "wrong" in words:
            raise TypeError("ResNet.__init__() got an unexpected keyword argument 'wrong'")
        return Made(name, **words)

    vars(models).update(list_models=list_models, get_model=Made)
    vars(vision).update(models=models)
    fixed = {"vit_tiny_patch16_224": SimpleNamespace(fixed_input_size=True), "resnet34": None}
    vars(timm).update(
        list_models=lambda: NAMES,
        create_model=create_model,
        get_pretrained_cfg=lambda name: fixed.get(name, SimpleNamespace(fixed_input_size=False)),
    )
    for name, module in {"torchvision": vision, "torchvision.models": models, "timm": timm}.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_a_network_of_torchvision_gets_the_number_of_classes_and_more(stand_ins):
    made = torchvision_network(IMAGES, 7, "mobilenet_v3_small", {"dropout": 0.1})
    assert (made.name, made.words) == ("mobilenet_v3_small", {"num_classes": 7, "dropout": 0.1})


@pytest.mark.parametrize(("name", "more"), [("resnet18", {}), ("resnet34", {}), ("vit_tiny_patch16_224", {"img_size": (8, 8)})])
def test_a_network_of_timm_gets_channels_and_the_size_if_it_is_fixed(name, more, stand_ins):
    assert timm_network((1, 8, 8), 7, name).words == {"num_classes": 7, "in_chans": 1} | more


@pytest.mark.parametrize(("network", "option"), [(torchvision_network, "torchvision"), (timm_network, "timm")])
def test_an_unknown_name_is_answered_with_the_nearest(network, option, stand_ins):
    with pytest.raises(ConfigError, match=f"model.name=resnet81: {option} has no such network: the nearest are resnet18, resn"):
        network(IMAGES, 10, "resnet81")


@pytest.mark.parametrize(
    ("network", "shape", "says"),
    [
        (torchvision_network, (1, 8, 8), "takes images of three channels, and .*choose model=timm.*or model=mlp"),
        (torchvision_network, (30,), "takes images of three channels, and .*: choose model=mlp"),
        (timm_network, (30,), "model=timm takes images, and an example is of shape .30.: choose model=mlp"),
    ],
)
def test_examples_that_are_no_such_images_are_refused(network, shape, says, stand_ins):
    with pytest.raises(ConfigError, match=says):
        network(shape, 10)


def test_what_it_does_not_take_is_said(stand_ins):
    with pytest.raises(ConfigError, match=r"model=timm model.name=resnet18 cannot be made: .*'wrong': change model.args"):
        timm_network(IMAGES, 10, "resnet18", {"wrong": 1})


@pytest.mark.parametrize(("network", "option"), [(torchvision_network, "torchvision"), (timm_network, "timm")])
@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (ModuleNotFoundError("No module named 'timm'", name="timm.models"), "needs the package timm: type `pip install timm`"),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "cannot be imported beside this torch .operator",
        ),
    ],
)
def test_a_package_that_is_not_there_or_does_not_fit_is_said_in_a_line(network, option, failure, says, monkeypatch):
    def fail(name):
        raise failure

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ConfigError, match=f"model={option}.*{says}"):
        network(IMAGES, 10)


@pytest.mark.parametrize(
    ("network", "option", "name"),
    [
        (torchvision_network, "torchvision", "resnet18"),
        (torchvision_network, "torchvision", "mobilenet_v3_small"),
        (timm_network, "timm", "resnet18"),
        (timm_network, "timm", "vit_tiny_patch16_224"),
    ],
)
def test_the_real_ones(network, option, name):
    pytest.importorskip(option, reason=f"the extra {option} is not installed", exc_type=ImportError)
    net = network(IMAGES, 10, name).eval()
    assert net(torch.zeros(2, *IMAGES)).shape == (2, 10)
