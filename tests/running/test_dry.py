"""A dry run leaves nothing behind: alone and in a sweep, when it fails, and whatever folder was typed."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

TINY = (
    *("rounds=2", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "logger=none", "executor=serial", "density=0.3", "dry_run=true"),
)


@pytest.fixture
def leftovers(outputs: Path, monkeypatch: pytest.MonkeyPatch):
    """leftovers() -> what lies in the working directory and in the folder of temporary files."""
    temporary = outputs.parent.parent / f"{outputs.parent.name}_temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return lambda: sorted(str(path) for folder in (outputs.parent, temporary) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "overrides", [(), ("hydra.run.dir=outputs/mine/one",), ("seed=0,1", "-m"), ("name=x", "seed=0,1", "-m")]
)
def test_nothing_is_left(overrides, command, leftovers):
    result = command(*TINY, *overrides)
    assert result.rc == 0 and "bytes down" in result.out
    assert leftovers() == []


@pytest.mark.parametrize("overrides", [(), ("seed=0,1", "-m"), ("hydra.sweep.dir=outputs/mine", "seed=0,1", "-m")])
@pytest.mark.parametrize("wrong", ["federated.clients=0", "data._target_=my_broken.data"])
def test_nothing_is_left_of_one_that_fails(overrides, wrong, command, leftovers):
    result = command(*TINY, wrong, *overrides)
    assert result.err
    assert leftovers() == []


def test_nothing_is_left_beside_a_module_of_the_users(command, leftovers, outputs, monkeypatch):
    (outputs.parent / "my_dry.py").write_text("from fedprune.data.datasets import digits as data\n")
    monkeypatch.syspath_prepend(outputs.parent)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert command(*TINY, "data._target_=my_dry.data").rc == 0
    assert leftovers() == [str(outputs.parent / "my_dry.py")]
    assert not sys.dont_write_bytecode


def test_nothing_is_left_by_joblib(command, leftovers):
    """With one worker joblib runs the jobs in this process, which takes no 10 seconds."""
    result = command(*TINY, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "seed=0,1", "-m")
    assert result.rc == 0, result.err
    assert result.out.count("bytes down") == 2
    assert leftovers() == []


def test_a_folder_that_cannot_be_written_to_will_do(command, outputs):
    outputs.write_text("a file where the results would go")
    assert command(*TINY).rc == 0
