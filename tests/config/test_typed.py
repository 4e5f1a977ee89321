"""Values are held against the annotations of what takes them, before it is made: of our options and of anybody's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from torch import Tensor

from fedprune.config import CONF
from fedprune.config.typed import fits, misfits, parameters
from fedprune.errors import ConfigError
from fedprune.experiment.build import build
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("hint", "takes", "refuses"),
    [
        (int, [0, -3, 10**12], [2.5, True, "2", None, [1], math.nan]),
        (float, [0, 2.5, math.inf], [True, "2", None, math.nan, {}]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["", "last"], [1, None, ["a"]]),
        (int | None, [None, 3], [True, 0.5]),
        (list[str], [[], ["a"], ("a",), [1, 0.1]], ["last", -1, None, [True], ["a", None], {"a": 1}]),
        (Sequence[float], [[1, 2.5]], ["12", [True], [math.nan]]),
        (Iterable[int], [[1]], [[1.5], 3]),
        (tuple[float, float], [[0.9, 1]], [[0.9], [1, 2, 3], 0.9, {"a": 1}]),
        (tuple[str, ...], [[], ["a", "b"]], ["ab"]),
        (tuple[str, ...] | str, ["ab", ["a"]], [3]),
        (Mapping[str, float], [{"a": 1}], [{"a": "x"}, [1]]),
        (Literal["auto", "never"], ["auto"], ["always", True, None]),
        (Literal[1, "one"], [1, "one"], [True, "two"]),
        (Path, ["a/b"], [3, None]),
        (Callable[[int], int], [], ["magnitude", 3, None, {"a": 1}]),
        (float | Tensor, [0.1], ["abc", None]),
        (Any, [None, "x", 3, {"a": 1}], []),
        (complex, [3, "1j"], []),  # of other classes it is not known what they are made of
    ],
)
def test_what_fits_an_annotation(hint, takes, refuses):
    assert [value for value in takes if not fits(value, hint)] == []
    assert [value for value in refuses if fits(value, hint)] == []


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("what.skip=last", "what.skip=last is no list: type what.skip=[last]"),
        ("what.skip=null", "what.skip=null: it takes a list of texts"),
        ("what.layers=-1", "what.layers=-1: it takes a list of texts"),
        ("what.min_per_layer=0.5", "what.min_per_layer=0.5: it takes a whole number"),
        ("what.frozen=2", "what.frozen=2: it takes true or false"),
        ("where.examples=all", "where.examples=all: it takes a whole number or null"),
        ("where.examples=2.5", "where.examples=2.5: it takes a whole number or null"),
        ("partition.test=null", "partition.test=null: it takes a number"),
        ("partition.test=nan", "partition.test=nan: it takes a number"),
        ("local.optimizer.nesterov=1", "local.optimizer.nesterov=1: it takes true or false"),
        ("local.optimizer.lr=abc", "local.optimizer.lr=abc: it takes a number"),
        ("criterion.grow=[1]", "criterion.grow=[1]: it takes a function or null"),
        ("executor.workers=2.5 executor=processes", "executor.workers=2.5: it takes a whole number or null"),
        ("federated.server.beta1=[1] federated=fedadam", "federated.server.beta1=[1]: it takes a number"),
        ("federated.server.beta2=2.5 federated=fedadam", "federated.server.beta2=2.5 is the share of the old mean"),
        ("federated.server.beta=1.5 federated=fedavgm", "federated.server.beta=1.5 is the share of the old mean"),
        ("federated.batchnorm=-1 federated=scaffold", "federated.batchnorm=-1"),
        ("local.optimizer.lr=-1 federated=scaffold", "-1"),
        ("local.clip_norm=inf", "local.clip_norm=inf must be positive; null for no clipping"),
        ("local.retrain_lr=inf", "local.retrain_lr=inf"),
        ("rounds=999999999999", "rounds=999999999999 must be at most 1,000,000"),
        ("partition.classes=1000000000000 partition=shards", "are more than the"),
        ("model.width=1000000000000 model=resnet20", "there is not enough memory for so large a network"),
    ],
)
def test_a_wrong_type_or_range_is_one_line_with_what_to_type(typed, says, assemble):
    value, *options = typed.split(" ")
    with pytest.raises(ConfigError) as error:
        build(*assemble(*TINY, *options, value))
    assert says in str(error.value) and "\n" not in str(error.value)


def nodes(node: object):
    """All mappings with a `_target_` in a yaml."""
    if isinstance(node, dict):
        yield from ([node] if "_target_" in node else [])
        for below in node.values():
            yield from nodes(below)
    elif isinstance(node, list):
        for below in node:
            yield from nodes(below)


def test_every_option_of_ours_is_annotated_and_its_own_values_fit():
    seen = {}
    for path in CONF.rglob("*.yaml"):
        for node in nodes(yaml.safe_load(path.read_text(encoding="utf-8"))):
            if node["_target_"].startswith("fedprune."):
                keys = {key for key in node if not key.startswith("_")}
                seen[path.name, node["_target_"]] = keys
    untyped = [
        (path, target, key)
        for (path, target), keys in seen.items()
        for key in keys & parameters(target).keys()
        if parameters(target)[key][0] is object
    ]
    assert len(seen) > 100 and untyped == []


@dataclasses.dataclass
class Theirs:
    times: int
    names: list[str] = dataclasses.field(default_factory=list)
    scale: float = None  # as many write it
    other: object = 3


def test_an_option_from_outside_is_held_against_its_own_annotations():
    target = {"_target_": f"{__name__}.Theirs"}
    assert misfits(target | {"times": 2, "names": ["a"], "scale": None, "other": "x"}) == []
    assert misfits(target | {"times": 2.5, "names": "ab", "scale": "x"}) == [
        "times=2.5: it takes a whole number",
        "names=ab is no list: type names=[ab]",
        "scale=x: it takes a number",
    ]
    assert misfits({"_target_": "nowhere.Nothing", "times": "x"}) == []  # which is told where it is made
