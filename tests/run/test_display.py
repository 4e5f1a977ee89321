"""The first lines of a run on the screen."""

from __future__ import annotations

import pytest

from fedprune.run.display import about_text


@pytest.mark.parametrize(
    ("group", "option", "target", "expected"),
    [
        ("model", "lenet_300_100", "fedprune.models.lenet.lenet_300_100", "model lenet_300_100: "),
        ("model", "lenet_300_100", "mine.Net", "model mine.Net (option lenet_300_100): "),
        ("model", "lenet5", "fedprune.models.vgg.vgg11", "model fedprune.models.vgg.vgg11 (option lenet5): "),
        ("data", "cifar10_jpeg", "fedprune.data.image_folder.image_folder", "data cifar10_jpeg, iid: "),
        ("data", "digits", "mine.load", "data mine.load (option digits), iid: "),
        ("partition", "quantity_skew", "fedprune.data.partition.QuantitySkew", "data digits, quantity_skew: "),
    ],
)
def test_what_is_really_run_is_named(group, option, target, expected):
    names = ("what", "criterion", "when", "how_often", "where", "whose", "rewind", "model", "data", "partition")
    axes = dict.fromkeys(names, "x") | {"data": "digits", "partition": "iid"} | {group: option}
    config = {"model": {}, "data": {}, "partition": {}} | {group: {"_target_": target}}
    counts = dict.fromkeys(("parameters", "prunable", "examples", "clients", "cohort", "seed"), 1)
    assert expected in about_text({"axes": axes, "config": config, "name": "run", **counts})
