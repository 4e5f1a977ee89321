"""A function or class that is used in the wrong way is answered with what to type, and typing it works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.experiment.build import build
from fedprune.local.regularisers.base import Regulariser
from fedprune.types import Subnet
from tests.conftest import TINY

HERE = __name__
ONCE = ("how_often=one_shot", "when=before_training", "density=0.5")


class Last:
    """An aggregate of a user's, as one writes it first: a class without options, and without a base."""

    def __init__(self, server):
        self.params = server

    def add(self, subnet, weight):
        self.params = subnet.params

    def result(self):
        return self.params


class Hot(Last):
    """The same with an option."""

    def __init__(self, server, temperature=1.0):
        super().__init__(server)
        self.temperature = temperature


def steep(params, power=1.0):
    """A criterion of a user's, with an option."""
    return {name: w.abs() ** power for name, w in params.items()}


def total(weights):
    return torch.stack([w.abs().sum() for w in weights.values()]).sum()


def lighter(strength):
    return Regulariser(total, strength)


YAML = {
    "federated/aggregate/bare": "_target_: HERE.Last",
    "federated/aggregate/called": "_target_: HERE.Last\n_partial_: false",
    "federated/aggregate/warm": "_target_: HERE.Hot\ntemperature: 2.0",
    "criterion/bare": "_target_: HERE.steep",
    "criterion/strong": "_target_: HERE.steep\npower: 2.0",
    "criterion/uncalled": "_target_: HERE.steep\n_partial_: true\npower: 2.0",
    "local/penalty/bare": "_target_: HERE.total",
    "local/penalty/uncalled": "_target_: HERE.total\n_partial_: true",
    "local/penalty/weak": "_target_: HERE.lighter",
    "federated/aggregate/good": "_target_: HERE.Last\n_partial_: true",
    "federated/aggregate/misspelt": "_target_: HERE.Hot\n_partial_: true\ntemprature: 2.0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with these yamls."""
    made = tmp_path_factory.mktemp("mine")
    for name, text in YAML.items():
        path = made / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("HERE", HERE))
    return made


@pytest.fixture
def composed(folder, compose):
    """composed(*words) -> a configuration and the names of its options, of a tiny run with the folder's options."""
    return lambda *words: compose(*TINY, *ONCE, f"hydra.searchpath=[file://{folder}]", *words)


TYPED_IN_PLACE = ("criterion._target_=HERE.steep", "local/penalty=l2 local.penalty._target_=HERE.total")


@pytest.mark.parametrize("words", TYPED_IN_PLACE)
def test_a_formula_in_the_place_of_its_holder_is_told_where_it_stands(words, composed):
    words = words.replace("HERE", HERE).split()
    with pytest.raises(ConfigError, match=HERE) as error:
        build(*composed(*words))
    (typed,) = re.findall(r"type (\S+) if it is to stand there, and leave out \S+$", str(error.value))
    assert build(*composed(*words[:-1], typed))


@pytest.mark.parametrize("option", [name for name in YAML if not name.endswith(("good", "misspelt"))])
def test_typing_what_the_error_says_works(option, composed):
    word = "=".join(option.rsplit("/", 1))
    with pytest.raises(ConfigError, match=HERE) as error:
        build(*composed(word))
    (typed,) = re.findall(r"type (.*?)(?:, or .*)?$", str(error.value))
    assert build(*composed(word, *typed.replace("VALUE", "0.5").split()))


def test_an_aggregate_of_a_class_without_options_is_taken(composed):
    assert build(*composed("federated/aggregate=good"))


def test_a_misspelt_key_is_answered_with_the_parameter_that_is_meant(composed):
    with pytest.raises(ConfigError, match="unexpected keyword argument 'temprature': did you mean temperature\\?"):
        build(*composed("federated/aggregate=misspelt"))
    with pytest.raises(ConfigError, match="unexpected keyword argument 'xyz': it takes server, temperature: "):
        build(*composed("federated/aggregate=misspelt", "~federated.aggregate.temprature", "+federated.aggregate.xyz=1"))


def test_the_aggregation_of_the_docs_runs(compose, play, tmp_path, monkeypatch):
    """The file and the yaml of docs/howto/own_method.md, as they stand there."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "own_method.md").read_text().partition("**An aggregation**")[2]
    for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", page.partition("**A task")[0], re.S):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    words = (*TINY, "rounds=2", "federated/aggregate=near", f"hydra.searchpath=[file://{tmp_path / 'mine'}]")
    experiment = build(*compose(*words))
    ((_, metrics),) = play(experiment)[-1:]
    assert metrics["wire/up_bytes"] > 0
    # One client of weight 3 at the distance 2 of the scale 2, one of weight 1 where the server is: shares 3 / 2 and 1.
    server, near = {"w": torch.zeros(4)}, Subnet({"w": torch.zeros(4)}, {})
    merged = experiment.options.aggregate(server)
    merged.add(Subnet({"w": torch.ones(4)}, {}), 3.0)
    merged.add(near, 1.0)
    assert torch.allclose(merged.result()["w"], torch.full((4,), 1.5 / 2.5))
