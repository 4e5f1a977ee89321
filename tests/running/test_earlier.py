"""A run whose code, data or ticket has changed is done again, and says what has changed; any other is done already."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from fedprune.errors import RunError
from fedprune.identity import Inputs
from fedprune.identity.changes import changes
from fedprune.run_id import RunId
from fedprune.running.earlier import changed_since, refuse_another

TINY = (
    *("rounds=1", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "executor=serial", "density=0.3", "logger=none", "how_often=one_shot", "device=cpu"),
    *("federated.tuned=0", "when=before_training"),
)
MINE = (*TINY, "criterion._target_=my_criterion.Mine", "data._target_=my_data.shaded", "data.root=pictures")

CRITERION = """
from fedprune.pruning.criterion import Criterion
from my_helper import formula

def Mine(**keys):
    return Criterion(**keys | {"drop": formula})
"""

HELPER = "def formula(params):\n    return {name: weight.abs() for name, weight in params.items()}\n"

DATA = """
from pathlib import Path
import torch
from fedprune.data.datasets import Dataset

def shaded(root):
    shade = int((Path(root) / "shade").read_text())
    x, y = torch.full((80, 1, 4, 4), shade, dtype=torch.uint8), torch.arange(80) % 2
    return Dataset("shaded", x, y, x[:10], y[:10], classes=2, mean=(0.0,), std=(1.0,))
"""


@pytest.fixture
def mine(command, outputs: Path, monkeypatch: pytest.MonkeyPatch):
    """mine(*overrides) -> what the command prints, with the user's modules as they are in the working directory by then."""
    here = outputs.parent
    monkeypatch.syspath_prepend(here)
    texts = {"my_criterion.py": CRITERION, "my_helper.py": HELPER, "my_data.py": DATA, "my_other.py": "", "pictures/shade": "3"}
    for name, text in texts.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("my_")]:
            del sys.modules[name]

    def run(*overrides: str) -> str:
        forget()
        shutil.rmtree(here / "__pycache__", ignore_errors=True)  # which goes by times and sizes that the test makes equal
        result = command(*MINE, *overrides)
        assert result.rc == 0, result.err
        return result.out

    yield run
    forget()


def test_what_a_run_depends_on_is_what_does_it_again(mine, outputs):
    here = outputs.parent
    assert "not the run of" not in mine()
    (first,) = outputs.glob("*/*")
    assert f"already done: {first}" in mine()
    (here / "my_other.py").write_text("x = 1")
    os.utime(here / "my_criterion.py", ns=(1, 1))
    os.utime(here / "pictures/shade", ns=(1, 1))
    assert "already done" in mine()
    (here / "my_criterion.py").write_text(CRITERION + "\n")
    assert f"not the run of {first}: my_criterion.py has changed since" in mine()
    (here / "my_helper.py").write_text(HELPER.replace("abs()", "square()"))
    assert "my_helper.py has changed since" in mine()
    (here / "pictures/shade").write_text("9")
    assert "the content of data.root has changed since" in mine()
    assert len(list(outputs.glob("*/*/summary.json"))) == 4
    inputs = json.loads(next(outputs.glob("*/*/run.json")).read_text())["inputs"]
    assert sorted(inputs["code"]) == ["my_criterion.py", "my_data.py", "my_helper.py"]
    (here / "my_criterion.py").write_text(CRITERION)
    (here / "my_helper.py").write_text(HELPER)
    (here / "pictures/shade").write_text("3")
    assert f"already done: {first}" in mine()


def test_a_ticket_counts_by_what_is_in_it(command, outputs):
    assert command(*TINY, "name=giver").rc == 0
    (ticket,) = outputs.glob("giver/*/ticket.safetensors")
    shutil.copy(ticket, outputs.parent / "copied.safetensors")
    assert command(*TINY, f"ticket={ticket}", "seed=1").rc == 0
    assert "already done" in command(*TINY, "ticket=copied.safetensors", "seed=1").out
    assert "already done" in command(*TINY, f"ticket={ticket.parent}", "seed=1").out
    assert command(*TINY, "name=giver", "seed=2").rc == 0
    (other,) = {*outputs.glob("giver/*/ticket.safetensors")} - {ticket}
    shutil.copy(other, ticket)
    assert "the content of ticket.path has changed since" in command(*TINY, f"ticket={ticket}", "seed=1").out
    assert len(list(outputs.glob("fedprune/*/summary.json"))) == 2


def test_what_has_changed_is_told_part_by_part():
    before = {"code": {"a.py": "1", "b.py": "1"}, "packages": {"timm": "1.0"}, "files": {"data.root": "1", "data.users": "1"}}
    now = Inputs({"a.py": "2", "c.py": "1"}, {"timm": "1.1"}, {"data.root": "2", "data.users": "1"})
    assert changes(before, now) == (
        "a.py has changed, b.py is no longer used, c.py is new, timm was 1.0 and is 1.1, the content of data.root has changed"
    )


def test_the_latest_run_beside_it_is_named_and_none_of_another_configuration(tmp_path):
    for number, (name, of_config) in enumerate([("snip-00000001", "x"), ("snip-00000002", "x"), ("snip-00000003", "y")]):
        (tmp_path / name).mkdir()
        about = {"id": name[-8:], "id_of_config": of_config, "inputs": {"code": {"a.py": "1"}}}
        (tmp_path / name / "run.json").write_text(json.dumps(about))
        os.utime(tmp_path / name / "run.json", (number, number))
    which = RunId("00000004", "x", Inputs({"a.py": "2"}, {}, {}))
    assert changed_since(tmp_path / "snip-00000004", which) == (
        f"not the run of {tmp_path}/snip-00000002: a.py has changed since"
    )
    assert changed_since(tmp_path / "grasp-00000004", which) is None
    assert changed_since(tmp_path / "snip-00000004", RunId("00000004", "x", Inputs({}, {}, {}))) is None


def test_a_folder_that_was_named_by_hand_says_what_has_changed_since(tmp_path):
    about = {"id": "00000001", "id_of_config": "x", "inputs": {"code": {"a.py": "1"}}}
    (tmp_path / "run.json").write_text(json.dumps(about))
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(RunError, match=r"holds another run, that of config.yaml there \(a.py has changed since\)"):
        refuse_another(tmp_path, RunId("00000002", "x", Inputs({"a.py": "2"}, {}, {})))
