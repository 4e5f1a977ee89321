"""Constructors of networks are called with what they take."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fedprune.api.compose import compose
from fedprune.config.instantiate import make_network
from fedprune.config.replaced_model import drop_keys_of_the_replaced
from fedprune.errors import ConfigError


class Plain(nn.Module):
    """A network that takes nothing."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)


class Zoo(nn.Module):
    """With the signature of torchvision's networks."""

    def __init__(self, width, num_classes=1000):
        super().__init__()
        self.fc = nn.Linear(width, num_classes)


def resnet(*, weights=None, progress=True, **kwargs):
    """As torchvision.models.resnet18 is declared."""
    return Zoo(4, **kwargs)


def of_classes(classes):
    return nn.Linear(4, classes)


@pytest.mark.parametrize(
    ("name", "keys", "outputs"),
    [
        ("Plain", {}, 3),
        ("Zoo", {"width": 4}, 5),
        ("resnet", {}, 5),
        ("resnet", {"num_classes": 7}, 7),  # what the yaml says stands
        ("of_classes", {}, 5),
    ],
)
def test_a_network_is_called_with_what_it_takes(name, keys, outputs):
    net = make_network(OmegaConf.create({"_target_": f"{__name__}.{name}", **keys}), (4,), 5)
    assert next(net.parameters()).shape == torch.Size([outputs, 4])


def test_a_key_that_it_does_not_take_is_said_with_what_to_type():
    with pytest.raises(ConfigError, match=r"norm.*model=lenet_300_100 model._target_=.*Plain"):
        make_network(OmegaConf.create({"_target_": f"{__name__}.Plain", "norm": "none"}), (4,), 5)


OF_RESNET = {"norm": "group", "width": 1}
"""What the yaml of model=resnet20 says."""


@pytest.mark.parametrize(
    ("name", "typed", "left"),
    [
        ("Plain", (), {}),
        ("Plain", ("model.norm",), {"norm": "group"}),  # what was typed stays, and is refused where the network is made
        ("Zoo", (), {"width": 1}),
        ("resnet", (), {}),  # takes any keyword, but not these
        ("Nothing", (), OF_RESNET),  # is not found, which is told later
    ],
)
def test_keys_of_a_model_whose_target_was_replaced_go_unless_they_were_typed_or_are_taken(name, typed, left):
    model = OmegaConf.create({"_target_": f"{__name__}.{name}", **OF_RESNET})
    OmegaConf.set_struct(model, True)
    drop_keys_of_the_replaced(model, {"model._target_", *typed})
    assert model == {"_target_": f"{__name__}.{name}", **left}


@pytest.mark.parametrize(
    ("option", "values", "left"),
    [
        ("resnet20", {}, {}),  # an experiment has the target
        ("resnet20", {"norm": "batch"}, {"norm": "batch"}),  # and a key with another value, which is refused
        ("mine", {"depth": 3}, {"depth": 3}),  # a yaml that is based on another one, and has a key of its own
        ("gone", {}, OF_RESNET),
    ],
)
def test_keys_of_the_yaml_go_where_the_target_stands_in_another_yaml(option, values, left, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/resnet20.yaml").write_text("_target_: fedprune.models.resnet.resnet20\nnorm: group\nwidth: 1\n")
    (tmp_path / "model/mine.yaml").write_text(f"defaults: [resnet20, _self_]\n_target_: {__name__}.Plain\ndepth: 3\n")
    model = OmegaConf.create({"_target_": f"{__name__}.Plain", **OF_RESNET, **values})
    drop_keys_of_the_replaced(model, (), option, [tmp_path])
    assert model == {"_target_": f"{__name__}.Plain", **left}


def test_an_experiment_with_a_network_of_ones_own_composes(tmp_path):
    (tmp_path / "experiment").mkdir()
    experiment = (
        f"# @package _global_\n# Mine.\ndefaults: [{{override /model: resnet20}}]\nmodel: {{_target_: {__name__}.Plain}}\n"
    )
    (tmp_path / "experiment/mine.yaml").write_text(experiment)
    assert compose(["+experiment=mine"], tmp_path).config.model == {"_target_": f"{__name__}.Plain"}
    assert {*compose(["model=resnet20"], tmp_path).config.model} == {"_target_", *OF_RESNET}


def test_a_model_of_a_yaml_keeps_its_keys():
    model = OmegaConf.create({"_target_": f"{__name__}.Plain", **OF_RESNET})
    drop_keys_of_the_replaced(model, {"model.norm"})
    assert {*model} == {"_target_", *OF_RESNET}
