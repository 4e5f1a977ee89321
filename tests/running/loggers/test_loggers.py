"""Who is told: what is in a W&B run, that it cannot end a run, metrics.csv, and lines that were torn."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fedprune.running import loggers
from fedprune.running.loggers import append
from fedprune.storage.history import read_metrics
from helpers.interrupting import raised_in
from helpers.wandb_files import fields, offline_runs, records

TINY = (
    *("rounds=3", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "executor=serial", "density=0.3", "eval_every=2", "how_often=one_shot"),
)


# --- W&B -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory, perform) -> Path:
    """The results of a sweep over two seeds that was told to W&B, with nobody logged in."""
    folder = tmp_path_factory.mktemp("logged")
    result = perform(folder, *TINY, "logger=wandb", "profile=true", "seed=0,1", "-m")
    assert result.rc == 0, result.text
    assert "Weights & Biases" not in result.text  # nothing went wrong with it
    return folder / "outputs" / "fedprune"


def of_seed(logged: Path, seed: int) -> tuple[Path, dict[str, list[Any]]]:
    """The run's folder, and its W&B records by kind."""
    (path,) = (p for p in logged.glob("*/wandb/offline-run-*/*.wandb") if about(p.parents[2])["seed"] == seed)
    kinds: dict[str, list[Any]] = {}
    for record in records(path):
        kinds.setdefault(record.WhichOneof("record_type"), []).append(record)
    return path.parents[2], kinds


def about(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


@pytest.mark.parametrize("seed", [0, 1])
def test_each_job_of_a_sweep_is_a_wandb_run_of_its_own_with_a_row_per_round(logged, seed):
    folder, kinds = of_seed(logged, seed)
    rows = [fields(record.history.item) for record in kinds["history"]]
    by_round = [row for row in rows if "test/accuracy" in row or "train/loss" in row]
    assert [row["round"] for row in by_round] == [0, 1, 2]
    for row, written in zip(by_round, read_metrics(folder), strict=True):
        assert {key: row[key] for key in written} == pytest.approx(written)
        assert row["profile/train_s"] > 0


def test_every_metric_is_drawn_over_the_round(logged):
    _, kinds = of_seed(logged, 0)
    steps = {record.metric.glob_name or record.metric.name: record.metric.step_metric for record in kinds["metric"]}
    assert steps == {"round": "", "*": "round"}


def test_axes_are_config_columns_the_sweep_is_the_group_and_the_experiment_the_job_type(logged):
    for seed in (0, 1):
        folder, kinds = of_seed(logged, seed)
        run, described = kinds["run"][0].run, about(folder)
        config = fields(run.config.update)
        assert {axis: config[axis] for axis in described["axes"]} == described["axes"]
        assert (config["seed"], config["density"], config["parameters"]) == (seed, 0.3, 50_610)
        assert config["config"]["local"]["optimizer"]["lr"] == 0.05
        assert (run.run_id, run.display_name, run.project) == (described["id"], folder.name, "fedprune")
        assert (run.run_group, run.job_type) == (described["sweep"], described["name"])
        assert {"magnitude", "digits"} <= set(run.tags) and all(len(tag) <= 64 for tag in run.tags)
    assert len({about(of_seed(logged, seed)[0])["sweep"] for seed in (0, 1)}) == 1


def test_the_final_masks_and_weights_are_an_artifact_and_layer_densities_a_chart(logged):
    folder, kinds = of_seed(logged, 0)
    (ticket,) = (record.artifact for record in kinds["artifact"] if record.artifact.type == "ticket")
    assert {entry.path for entry in ticket.manifest.contents} == {"ticket.safetensors", "state.safetensors"}
    assert json.loads(ticket.metadata)["axes"] == about(folder)["axes"]
    (chart,) = folder.rglob("*_table_*.table.json")
    layers = dict(json.loads(chart.read_text())["data"])
    assert layers == {layer: read_metrics(folder)[-1][f"density/layer/{layer}"] for layer in ("fc1", "fc2", "fc3")}


def test_a_run_that_ends_well_says_so(logged):
    _, kinds = of_seed(logged, 0)
    assert kinds["exit"][0].exit.exit_code == 0
    summary = {}
    for record in kinds["summary"]:
        summary |= fields(record.summary.update)
    assert summary["test/accuracy"] == pytest.approx(read_metrics(of_seed(logged, 0)[0])[-1]["test/accuracy"])


# --- a run that goes on ----------------------------------------------------------------------------------------------------


def stopped_in(number: int, command, *arguments: str) -> None:
    """Interrupt the run as its `number`-th round is written down."""
    with raised_in(number):
        assert command(*arguments).rc == 130


def test_a_run_that_goes_on_is_whole_in_its_last_wandb_run_and_one_that_is_forced_is_another(command, folder):
    """wandb sync replaces what the server has of an id by what the file has (issues 3841 and 5865 of wandb/wandb): so each file
    has to have all rounds until its end, each once, and the last one all of the run."""
    stopped_in(2, command, *TINY, "logger=wandb", "checkpoint_every=0")
    assert command(*TINY, "logger=wandb").rc == 0
    (one, before), (same, after) = offline_runs(folder())
    written = read_metrics(folder())
    assert one == same == about(folder())["id"]
    assert ([row["round"] for row in before], [row["round"] for row in after]) == ([0, 1], [0, 1, 2])
    assert [row["_step"] for row in after] == [0, 1, 2]
    for row, metrics in zip(after, written, strict=True):
        assert {key: row[key] for key in metrics} == pytest.approx(metrics)

    stopped_in(1, command, *TINY, "logger=wandb", "checkpoint_every=0", "force=true")
    assert command(*TINY, "logger=wandb").rc == 0  # goes on with the forced one
    forced = offline_runs(folder())[2:]
    assert [name for name, _ in forced] == [f"{one}-1"] * 2
    assert [[row["round"] for row in rows] for _, rows in forced] == [[0], [0, 1, 2]]


def test_csv_of_a_run_that_goes_on_has_every_round_once_and_a_forced_one_has_nothing_of_before(command, folder):
    stopped_in(2, command, *TINY, "logger=csv", "checkpoint_every=0")
    assert command(*TINY, "logger=csv").rc == 0
    table = folder() / "metrics.csv"
    assert [int(row["round"]) for row in csv.DictReader(table.read_text().splitlines())] == [0, 1, 2]
    stopped_in(0, command, *TINY, "logger=none", "force=true")
    assert not table.exists()


# --- W&B fails -------------------------------------------------------------------------------------------------------------


class Broken:
    """A W&B run in which one thing does not work."""

    id = "broken"

    def __init__(self, what: str):
        self.what, self.calls, self.summary = what, [], {}

    def __getattr__(self, name: str) -> Any:
        def call(*args: object, **kwargs: object) -> None:
            self.calls.append(name)
            if name == self.what:
                raise ConnectionError("the server is on fire")

        return call


@pytest.mark.parametrize("what", ["init", "define_metric", "log", "log_artifact", "finish"])
def test_a_wandb_failure_is_told_once_and_the_run_goes_on(what, command, folder, monkeypatch):
    import wandb

    run = Broken(what)

    def init(**kwargs: object) -> Broken:
        if what == "init":
            raise ConnectionError("the server is on fire")
        return run

    monkeypatch.setattr(wandb, "init", init)
    result = command(*TINY, "logger=wandb")
    assert result.rc == 0
    assert result.err.count("the server is on fire") == 1
    assert "the run goes on without it" in result.err and "logger=none" in result.err
    assert "Traceback" not in result.text
    assert (folder() / "summary.json").exists()
    assert [row["round"] for row in read_metrics(folder())] == [0, 1, 2]
    if what == "log":
        assert run.calls.count("log") == 1  # and is not asked again


def test_a_run_that_fails_is_closed_as_failed(command, monkeypatch):
    import wandb

    ended = []
    run = Broken("nothing")
    run.finish = lambda exit_code: ended.append(exit_code)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    assert command(*TINY, "logger=wandb", "local.optimizer.lr=1e30").rc == 1
    assert ended == [1]


MINE = """
import contextlib

class Mine:
    def round(self, metrics):
        if where == "round": raise ValueError("mine is broken")
    def finish(self, summary, files):
        if where == "finish": raise ValueError("mine is broken")

@contextlib.contextmanager
def mine(folder, about):
    if where == "start": raise ValueError("mine is broken")
    yield Mine()
    if where == "end": raise ValueError("mine is broken")
"""


@pytest.mark.parametrize("where", ["start", "round", "finish", "end"])
def test_a_logger_of_ones_own_cannot_end_a_run_either(where, command, folder, monkeypatch, outputs):
    (outputs.parent / f"mine_{where}.py").write_text(f"where = '{where}'\n{MINE}")
    monkeypatch.syspath_prepend(outputs.parent)
    result = command(*TINY, "logger=none", f"logger._target_=mine_{where}.mine")
    assert (result.rc, result.err.count("mine is broken")) == (0, 1)
    assert (folder() / "summary.json").exists() and not (folder() / "failed.json").exists()


@pytest.mark.parametrize(
    ("asked", "environment", "logged_in", "mode"),
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("auto", "offline", True, "offline"),
        ("auto", "disabled", True, "disabled"),
        ("online", "offline", False, "online"),
        ("offline", None, True, "offline"),
    ],
)
def test_it_is_online_only_for_who_is_logged_in_and_did_not_say_otherwise(asked, environment, logged_in, mode, monkeypatch):
    import wandb

    asked_for = {}

    def init(**kwargs: object) -> Broken:
        asked_for.update(kwargs)
        return Broken("nothing")

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "login", lambda **_: logged_in)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    facts = dict.fromkeys(("id", "sweep", "name", "seed", "density", "parameters", "prunable", "clients", "config"), "x")
    about = {**facts, "attempt": 0, "axes": {"criterion": "c" * 100, "data": "d"}, "made_with": {"commit": None}}
    with loggers.Wandb(mode=asked)(Path("run"), about):
        pass
    assert asked_for["mode"] == mode
    assert max(map(len, asked_for["tags"])) == 64
    assert asked_for["settings"].init_timeout == 20  # no network delays a run by that at most


# --- csv and metrics.jsonl -------------------------------------------------------------------------------------------------


def test_csv_has_a_row_per_round_and_a_column_per_metric(command, folder):
    assert command(*TINY, "logger=csv").rc == 0
    with open(folder() / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    written = read_metrics(folder())
    assert [int(row["round"]) for row in rows] == [0, 1, 2]
    assert set(rows[0]) == {key for row in written for key in row}
    for row, metrics in zip(rows, written, strict=True):
        assert {key: float(value) for key, value in row.items() if value} == pytest.approx(metrics)


def test_csv_has_what_there_is_of_a_run_that_failed(command, folder):
    with raised_in(2, ZeroDivisionError):
        assert command(*TINY, "logger=csv").rc == 1
    assert len((folder() / "metrics.csv").read_text().splitlines()) == 1 + 2


def test_a_csv_that_cannot_be_written_does_not_end_a_run(command, folder):
    assert command(*TINY, "logger=none", "rounds=2").rc == 0
    blocked = folder()
    (blocked / "metrics.csv").mkdir()
    result = command(*TINY, "rounds=2", "logger=csv", "force=true")
    assert result.rc == 0
    assert (blocked / "summary.json").exists()
    assert not (blocked / "failed.json").exists()
    assert "metrics.csv" in result.err


def test_lines_come_back_as_they_were(tmp_path):
    rows = [{"round": 0, "test/accuracy": 0.1 + 0.2, "steps": 2**53}, {"round": 1, "loss": 1e-300}]
    for row in rows:
        append(tmp_path, row)
    assert read_metrics(tmp_path) == rows


def test_a_line_is_there_as_soon_as_its_round_is_done(tmp_path):
    append(tmp_path, {"round": 0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"round": 0}\n'


@pytest.mark.parametrize("torn", ['{"round": 2, "los', '{"round": 2', "{", '"'])
def test_a_torn_last_line_is_left_out(torn, tmp_path, caplog):
    append(tmp_path, {"round": 0})
    append(tmp_path, {"round": 1})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert [row["round"] for row in read_metrics(tmp_path)] == [0, 1]
    assert caplog.text == ""


def test_a_run_that_has_no_lines_yet_has_no_rounds(tmp_path):
    assert read_metrics(tmp_path) == []
