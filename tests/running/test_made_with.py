"""The commit and the versions in run.json."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy
import pytest
import torch

import fedprune
from fedprune.running import made_with as module
from fedprune.running.made_with import graphics, made_with, state_of

GIT = ("git", "-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which git is asked anew each time."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "mine.py").write_text("a = 1\n")
    for words in (("init", "-q"), ("add", "mine.py"), ("commit", "-q", "-m", "one")):
        subprocess.run([*GIT, *words], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    moments = iter(range(100))
    monkeypatch.setattr(module.time, "monotonic", lambda: 100 * next(moments) * module.FRESH)
    module._asked.cache_clear()
    return tmp_path


def test_the_commit_of_the_working_directory_and_whether_tracked_files_differ(repository):
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert state_of(repository) == (head, False)
    (repository / "new.txt").write_text("untracked files, such as outputs/, make nothing dirty")
    assert state_of(repository) == (head, False)
    (repository / "mine.py").write_text("a = 2\n")
    assert state_of(repository) == (head, True)
    made = made_with()
    assert (made["commit"], made["dirty"]) == (head, True)


def test_the_repository_of_a_hook_does_not_count(repository, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as git sets it for hooks
    assert state_of(repository)[0] is not None


def test_no_repository_no_commit_yet_and_no_git_are_none(tmp_path, monkeypatch):
    module._asked.cache_clear()
    assert state_of(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert state_of(tmp_path / "other") == (None, None)


def test_git_is_asked_once_for_runs_that_follow_each_other(monkeypatch, tmp_path):
    asked = []

    def refuse(*words: object, **settings: object) -> None:
        asked.append(words)
        raise OSError

    monkeypatch.setattr(module.subprocess, "run", refuse)
    monkeypatch.setattr(module.time, "monotonic", lambda: 5.0)
    module._asked.cache_clear()
    assert [state_of(tmp_path), state_of(tmp_path)] == [(None, None)] * 2
    assert len(asked) == 1


def test_run_json_has_versions_and_machine_and_one_of_before_has_none(command, folder):
    tiny = ("rounds=1", "federated.clients=4", "federated.cohort=2", "local.epochs=null", "local.steps=1", "logger=none")
    assert command(*tiny, "federated.tuned=0").rc == 0
    about = json.loads((folder() / "run.json").read_text())
    made = about.pop("made_with")
    del about["digest"]  # which is of all values
    assert (made["fedprune"], made["torch"], made["numpy"]) == (fedprune.__version__, torch.__version__, numpy.__version__)
    assert made["cpu"] and made["platform"] and made["gpu"] == graphics()
    assert fedprune.load(folder()).made_with == made
    (folder() / "run.json").write_text(json.dumps(about))
    assert fedprune.load(folder()).made_with == {}
