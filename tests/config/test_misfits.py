"""A text or null where a number, a function or a node belongs, and a target that cannot be found: one line each."""

from __future__ import annotations

import pytest

from fedprune.command.words import arguments
from fedprune.config.located import not_found
from fedprune.errors import ConfigError
from fedprune.experiment.build import build
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("local.module=X", "local.module=X: type local.module._target_=X, a LocalModule of yours"),
        ("local.module=null", "local.module=null: type local.module._target_=my_task.Mine"),
        ("local.optimizer=adam", "local/optimizer is a group of options: type local/optimizer=adam"),
        ("local.optimizer=X", "`python -m fedprune --help` lists them"),
        ("federated.aggregate=intersection", "type federated/aggregate=intersection"),
        ("criterion.drop=magnitude", "criterion.drop=magnitude: it takes a function: type criterion.drop._target_=MODULE"),
        ("criterion.drop=null", "criterion.drop=null: it takes a function"),
        ("what.unit=filters", "what.unit=filters: it takes a function"),
        ("what.scope=globally", "what.scope=globally: it takes a function"),
        ("when.start=abc", "when.start=abc: it takes a number"),
        ("when.start=null", "when.start=null: it takes a number"),
        ("where.examples=abc", "where.examples=abc: it takes a whole number"),
        ("partition.alpha=abc", "partition.alpha=abc: it takes a number"),
        ("executor.at_once=abc", "executor.at_once=abc: it takes"),
    ],
)
def test_a_value_of_another_kind_is_told_in_one_line(typed, says, assemble):
    besides = {"partition.alpha=abc": ["partition=dirichlet"], "executor.at_once=abc": ["executor=batched"]}.get(typed, [])
    with pytest.raises(ConfigError) as error:
        build(*assemble(*TINY, "how_often=one_shot", *besides, typed))
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "path").mkdir()
    (tmp_path / "unseen_task.py").write_text("class Mine: pass")
    (tmp_path / "path" / "misspelt_task.py").write_text("class Nice: pass\n")
    (tmp_path / "path" / "broken_task.py").write_text("import torchhh\n")
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (
            "nowhere_task.Mine",
            "there is no module nowhere_task: set PYTHONPATH=FOLDER in front of the command, the folder that",
        ),
        ("unseen_task.Mine", "there is no module unseen_task: set PYTHONPATH=. in front of the command (in Python: sys.path"),
        ("misspelt_task.Nise", "misspelt_task has no Nise; the nearest are Nice"),
        ("misspelt_task.Other", "misspelt_task has no Other; it has Nice"),
        ("broken_task.Mine", "importing it fails: ModuleNotFoundError: No module named 'torchhh' ("),
        ("Mine", "Mine: name the module and what is in it, such as my_module.Mine"),
        ("torch.optim.SDG", "torch.optim has no SDG; the nearest are SGD"),
        ("fedprune.models.cnn.cmn", "fedprune.models.cnn has no cmn"),
    ],
)
@pytest.mark.parametrize("key", ["local.module", "model", "criterion.drop", "where"])
def test_a_target_that_cannot_be_found_is_told_alike_wherever_it_stands(key, target, says, here, assemble):
    assert says in str(not_found(target))
    with pytest.raises(ConfigError) as error:
        build(*assemble(*TINY, "how_often=one_shot", f"{key}._target_={target}"))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_what_can_be_found_is_no_problem():
    assert not_found("torch.optim.SGD") is None and not_found("fedprune.config.located.not_found") is None


def test_a_number_is_no_name_of_an_option():
    typed = ["partition=3", "local/optimizer=0.1", "rounds=3", "local.epochs=2", "+experiment=4"]
    assert arguments(typed) == ["partition='3'", "local/optimizer='0.1'", *typed[2:]]
