"""The names and tags of W&B, the commit, and the run with the tables and figures of a sweep."""

from __future__ import annotations

import json
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fedprune.analysis.__main__ import main as analyse
from fedprune.errors import ConfigError
from fedprune.running.loggers import Wandb, wandb_project
from fedprune.running.loggers.weights_and_biases import shortened
from helpers.wandb_files import fields, records

TINY = (
    *("rounds=1", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=1"),
    *("local.batch_size=16", "executor=serial", "federated.tuned=0"),
)


def kinds(path: Path, patience: float = 30) -> dict[str, list[Any]]:
    """The records of a file by kind, once it is whole: W&B's own process writes it, on a busy machine a while after the end."""
    end = time.monotonic() + patience
    while True:
        found: dict[str, list[Any]] = {}
        with suppress(struct.error, AssertionError):  # half of a record
            for record in records(path):
                found.setdefault(record.WhichOneof("record_type"), []).append(record)
        if "exit" in found or time.monotonic() > end:
            return found
        time.sleep(0.1)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, perform) -> Path:
    """The folder of a sweep over two seeds that W&B was told of, with names of the user's own."""
    folder = tmp_path_factory.mktemp("swept")
    own = ("logger.entity=team", "logger.project=mine", "logger.job_type=pilot", f"logger.tags=[first,{'x' * 200},first]")
    result = perform(folder, *TINY, *own, "seed=0,1", "-m")
    assert result.rc == 0, result.text
    return folder / "outputs" / "fedprune"


def test_a_run_has_the_users_names_and_tags_beside_its_own(swept):
    runs = [kinds(path)["run"][0].run for path in swept.glob("*/wandb/offline-run-*/*.wandb") if "sweep-" not in path.name]
    assert len(runs) == 2
    for run in runs:
        assert (run.entity, run.project, run.job_type) == ("team", "mine", "pilot")
        assert list(run.tags)[:4] == ["fedprune", "magnitude", "digits", "first"]
        assert len(run.tags) == 5 and len(run.tags[4]) == 64 and run.tags[4].startswith("xxx")


def test_a_run_has_the_commit_as_run_json_has_it(swept, monkeypatch):
    opened = {}

    class Run:
        def define_metric(self, *args: object, **kwargs: object) -> None:
            pass

        def log(self, row: object) -> None:
            pass

        def finish(self, exit_code: int) -> None:
            pass

    def init(**given: Any) -> Run:
        opened.update(given)
        return Run()

    monkeypatch.setattr("wandb.init", init)
    folder = next(path.parent for path in swept.glob("*/run.json"))
    about = json.loads((folder / "run.json").read_text())
    about["made_with"]["commit"] = "0123abcd"
    with Wandb(mode="offline")(folder, about):
        pass
    assert opened["settings"].git_commit == "0123abcd"
    assert opened["config"]["made_with"]["torch"] == about["made_with"]["torch"]


def test_the_tables_and_figures_of_a_sweep_are_a_run_in_its_group(swept):
    (path,) = swept.glob("wandb/offline-run-*/*.wandb")
    of_sweep = kinds(path)
    run = of_sweep["run"][0].run
    (group,) = {json.loads(each.read_text())["sweep"] for each in swept.glob("*/run.json")}
    assert (run.run_group, run.display_name, run.job_type, run.project) == (group, group, "sweep", "mine")
    logged = fields(of_sweep["history"][0].history.item)
    shown = {key.rpartition(".")[0] for key, value in logged.items() if key.endswith("._type")}
    assert shown == {"tables/table", "figures/accuracy_bytes", "figures/accuracy_density", "figures/accuracy_rounds"}
    (table,) = path.parent.rglob("*.table.json")
    content = json.loads(table.read_text())
    row = dict(zip(content["columns"], content["data"][0], strict=True))
    assert (row["seeds"], row["status"]) == (2, "done")
    assert of_sweep["exit"][0].exit.exit_code == 0


def test_the_analysis_logs_them_too_if_it_is_asked(swept, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["analysis", str(swept), "--into", str(tmp_path), "--wandb", "team/other"])
    analyse()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    run = kinds(path)["run"][0].run
    assert (run.entity, run.project, run.display_name, run.job_type) == ("team", "other", "fedprune", "sweep")


def test_a_sweep_whose_tables_cannot_be_logged_has_them_all_the_same(command, outputs, monkeypatch):
    def refuse(*args: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(Wandb, "report", refuse)
    result = command(*TINY, "seed=0,1", "-m")
    assert result.rc == 0
    assert "logger=wandb: no network; tables and figures are in outputs/fedprune all the same" in result.text
    assert (outputs / "fedprune" / "table.csv").exists()


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"entity": "my team"}, "logger.entity=my-team"),
        ({"entity": "team/project"}, "logger.entity=team-project"),
        ({"project": "a/b"}, "logger.project=a-b"),
        ({"project": ""}, "logger.project=fedprune"),
        ({"mode": "onlin"}, "auto, online, offline, disabled"),
        ({"timeout": 0}, "above 0"),
    ],
)
def test_names_that_wandb_does_not_take_are_refused_with_one_that_it_takes(options, instead):
    with pytest.raises(ConfigError, match=instead):
        Wandb(**options)


def test_an_entity_may_stand_before_a_project():
    assert wandb_project("team/x") == Wandb(project="x", entity="team")
    assert wandb_project("x") == Wandb(project="x")
    with pytest.raises(ConfigError, match="logger.entity=my-team"):
        wandb_project("my team/x")


def test_tags_are_at_most_64_characters_and_two_stay_two():
    long = [f"{'t' * 100}{number}" for number in range(2)]
    cut = shortened(["a", *long, "a", "", " b "])
    assert cut[0] == "a" and cut[-1] == "b" and len(cut) == 4
    assert all(len(tag) == 64 and tag.startswith("t" * 55 + "~") for tag in cut[1:3])
    assert shortened("one") == ["one"]
