"""Loggers of Lightning, one and several: what they are told, where they write, and that they cannot end a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning.loggers import CSVLogger

from fedprune.errors import ConfigError
from fedprune.running.loggers import lightning_logger, lightning_loggers, read_metrics
from helpers.interrupting import raised_in

TINY = (
    *("rounds=3", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "executor=serial", "density=0.3", "eval_every=2", "how_often=one_shot", "federated.tuned=0"),
)
CSV = "pytorch_lightning.loggers.CSVLogger"


class Recorder(CSVLogger):
    """A logger of Lightning that notes its calls; in one of them it fails."""

    calls: list[tuple[Any, ...]] = []  # noqa: RUF012  # of the class, because the run makes the object
    fails_in = ""

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self.fails_in:
            raise ConnectionError("the server\nis on fire")

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self._note("log_hyperparams", params)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._note("log_metrics", metrics, step)

    def save(self) -> None:
        self._note("save")

    def finalize(self, status: str) -> None:
        self._note("finalize", status)


NODE = f"logger.loggers=[{{_target_: recorder.Recorder}}, {{_target_: {CSV}, name: '', version: ''}}]"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """The class Recorder, in a module `recorder` that Hydra finds, with no calls yet."""
    import sys
    from types import ModuleType

    module = ModuleType("recorder")
    module.Recorder = Recorder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recorder", module)
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setattr(Recorder, "fails_in", "")
    return Recorder


def rows(path: Path) -> list[dict[str, float]]:
    """The rows of a csv file, without the cells that are empty."""
    with open(path, newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def by_round(path: Path) -> list[dict[str, float]]:
    """The rounds in a csv file; Lightning writes what it is told after a row was written into a row of its own."""
    merged: dict[float, dict[str, float]] = {}
    for row in rows(path):
        merged.setdefault(row["step"], {}).update(row)
    return list(merged.values())


def test_a_logger_is_told_of_hyper_parameters_rounds_the_summary_and_the_status(command, folder, recorder):
    assert command(*TINY, "logger=lightning", NODE).rc == 0
    about = json.loads((folder() / "run.json").read_text())
    written = read_metrics(folder())
    (hyper,) = (call[1] for call in recorder.calls if call[0] == "log_hyperparams")
    assert (hyper["criterion"], hyper["seed"], hyper["density"], hyper["id"]) == ("magnitude", 0, 0.3, about["id"])
    assert hyper["config"]["local"]["optimizer"]["lr"] == 0.05 and hyper["made_with"] == about["made_with"]
    *told, last = [call[1:] for call in recorder.calls if call[0] == "log_metrics"]
    assert [step for _, step in told] == [0, 1, 2]
    for (metrics, _), row in zip(told, written, strict=True):
        assert metrics == pytest.approx(row)
    assert last == ({"time/total_s": pytest.approx(sum(row["time/round_s"] for row in written))}, 2)
    assert recorder.calls[-2:] == [("save",), ("finalize", "success")]


def test_several_loggers_write_in_folders_of_the_run_each_of_its_own(command, folder, recorder):
    nodes = f"logger.loggers=[{{_target_: {CSV}, name: '', version: ''}}, {{_target_: {CSV}, name: '', version: ''}}]"
    assert command(*TINY, "logger=lightning", nodes).rc == 0
    for name in ("csv", "csv-2"):
        told = by_round(folder() / "lightning" / name / "metrics.csv")
        for row, metrics in zip(told, read_metrics(folder()), strict=True):
            assert {key: row[key] for key in metrics} == pytest.approx(metrics)
        hyper = yaml.safe_load((folder() / "lightning" / name / "hparams.yaml").read_text())
        assert hyper["criterion"] == "magnitude"


def test_a_run_that_goes_on_has_every_round_once(command, folder):
    with raised_in(2):
        assert command(*TINY, "logger=lightning", "checkpoint_every=0").rc == 130
    path = folder() / "lightning" / "csv" / "metrics.csv"
    assert [row["step"] for row in rows(path)] == [0, 1]
    assert command(*TINY, "logger=lightning").rc == 0
    assert [row["step"] for row in by_round(path)] == [0, 1, 2]
    assert [row["round"] for row in rows(path) if "round" in row] == [0, 1, 2]


def test_a_run_that_fails_is_finalised_as_failed(command, recorder):
    assert command(*TINY, "logger=lightning", NODE, "local.optimizer.lr=1e30").rc == 1
    assert recorder.calls[-1] == ("finalize", "failed")


@pytest.mark.parametrize("call", ["log_hyperparams", "log_metrics", "save", "finalize"])
def test_a_failure_is_one_line_the_run_goes_on_and_so_does_the_other_logger(call, command, folder, recorder, monkeypatch):
    monkeypatch.setattr(recorder, "fails_in", call)
    result = command(*TINY, "logger=lightning", NODE)
    assert result.rc == 0
    assert result.err.count("logger=recorder: the server is on fire; the run goes on without it") == 1
    assert "Traceback" not in result.text and (folder() / "summary.json").exists()
    assert [row["step"] for row in by_round(folder() / "lightning" / "csv" / "metrics.csv")] == [0, 1, 2]
    assert sum(each[0] == "log_metrics" for each in recorder.calls) == {"log_hyperparams": 0, "log_metrics": 1}.get(call, 4)


def test_tensorboard_has_the_rounds_and_the_metric_by_which_it_compares_runs(command, folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="extra tensorboard")
    assert command(*TINY, "logger=[tensorboard,csv]").rc == 0
    events = accumulator.EventAccumulator(str(folder() / "lightning" / "tensorboard"))
    events.Reload()
    written = read_metrics(folder())
    curve = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert curve == [(row["round"], pytest.approx(row["train/loss"])) for row in written]
    assert [event.step for event in events.Scalars("test/accuracy")] == [1, 2]  # those that were evaluated
    (judged,) = events.Scalars("hp_metric")
    assert (judged.step, judged.value) == (2, pytest.approx(written[-1]["val/accuracy"]))
    assert (folder() / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({"_target_": "pytorch_lightning.loggers.TensorBordLogger"}, "TensorBordLogger"),
        ({"_target_": "nowhere.Logger"}, "there is no module nowhere"),
        ({"save_dir": "x"}, r"node with a _target_.*type 'logger.loggers=\["),
        ("csv", "node with a _target_, and csv is none"),
        ({"_target_": CSV, "folder": 1}, "'folder'"),
    ],
)
def test_what_is_no_logger_is_refused_before_the_run(node, reason):
    with pytest.raises(ConfigError, match=reason):
        lightning_loggers([node])


def test_two_loggers_of_one_folder_are_refused():
    node = {"_target_": CSV, "save_dir": "logs", "version": "mine"}
    with pytest.raises(ConfigError, match="csv and csv-2 both write to logs/mine as CSVLogger: leave one out"):
        lightning_loggers([node, node])
    lightning_loggers([node, {**node, "version": "other"}])
    lightning_loggers({"one": {"_target_": CSV}, "two": {"_target_": CSV}})  # each has a folder of its own


def test_no_logger_at_all_is_refused():
    with pytest.raises(ConfigError, match="name a logger"):
        lightning_loggers([])


def test_a_package_that_is_missing_is_one_line_with_what_to_install(monkeypatch):
    from fedprune.running.loggers import from_lightning

    monkeypatch.setattr(from_lightning, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match="logger=mlflow: .*needs .*: type pip install 'fedprune.mlflow.', or"):
        lightning_logger("pytorch_lightning.loggers.MLFlowLogger", experiment_name="x")
