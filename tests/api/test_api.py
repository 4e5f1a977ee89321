"""Runs from Python are those of the command line: same folders, same bits, and errors as exceptions."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import fedprune
from fedprune.errors import ConfigError, FedpruneError, Incompatible
from helpers.composed import TINY

PRUNED = (*TINY, "how_often=one_shot", "when=before_training")

pytestmark = pytest.mark.slow


@pytest.fixture
def criterion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a criterion of a user's own, in a working directory that has the module."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_squares.py").write_text("def squared(params):\n    return {n: w.square() for n, w in params.items()}\n")
    folder = tmp_path / "mine" / "criterion"
    folder.mkdir(parents=True)
    (folder / "squared.yaml").write_text(
        "_target_: fedprune.pruning.criterion.Criterion\ndrop: {_target_: my_squares.squared, _partial_: true}\ngrow: null\n"
    )
    return folder.parent


def test_a_key_that_only_an_option_of_ones_own_takes_is_told_with_its_plus():
    with pytest.raises(ConfigError, match=r"model.breadth: there is no such key; .* takes it, type \+model.breadth=VALUE;"):
        fedprune.compose(["model.breadth=8"])


def test_a_run_is_that_of_the_command_and_is_not_done_twice(command, outputs, monkeypatch):
    assert command(*PRUNED, "eval_every=1").rc == 0
    (folder,) = outputs.glob("fedprune/*/summary.json")
    monkeypatch.setattr("fedprune.running.run.build", None)  # nothing is built, because everything is there
    result = fedprune.run([*PRUNED, "eval_every=1"])
    assert result.folder.absolute() == folder.parent.absolute()
    assert result.status == "done" and result.reason == ""
    assert result.options["how_often"] == "one_shot" and result.config.rounds == 3
    assert list(result.rounds["round"]) == [0, 1, 2]
    assert result.rounds["test/accuracy"].iloc[-1] == result.summary["test/accuracy"]
    assert fedprune.load(result.folder) == result


def test_the_network_is_the_one_that_was_evaluated(outputs):
    result = fedprune.run(PRUNED)
    net, ticket = result.net(), result.ticket
    for name, alive in ticket.mask.items():
        assert torch.equal(dict(net.named_parameters())[name] != 0, alive), name
    kept = sum(int(alive.sum()) for alive in ticket.mask.values())
    assert kept == round(0.3 * sum(alive.numel() for alive in ticket.mask.values()))
    assert not net.training


def test_a_composition_is_what_a_run_takes(outputs, criterion):
    composed = fedprune.compose([*PRUNED, "criterion=squared"], config_dir=criterion)
    assert composed.options["criterion"] == "squared" and composed.overrides[-1] == "criterion=squared"
    assert composed.config.criterion.drop._target_ == "my_squares.squared" and "hydra" not in composed.config
    mine = fedprune.run(composed)
    assert mine.folder == composed.folder
    assert mine.ticket.mask.keys() == (theirs := fedprune.run(PRUNED).ticket.mask).keys()
    assert all(torch.equal(alive, theirs[name]) for name, alive in mine.ticket.mask.items())  # w^2 orders as |w| does


def test_a_sweep_has_its_runs_in_order_its_table_and_its_failures(outputs):
    done = fedprune.sweep([*PRUNED, "density=0.5,0.2", "seed=0,1", "+federated.capacity.levels=[1]"])
    assert done.folder == Path("outputs/fedprune") and (done.folder / "table.csv").exists()
    assert [(run.config.density, run.config.seed) for run in done.runs] == [(0.5, 0), (0.5, 1), (0.2, 0), (0.2, 1)]
    assert {run.status for run in done.runs} == {"failed"} == {run.status for run in done.failed}
    again = fedprune.sweep([*PRUNED, "density=0.5,0.2", "seed=0,1"])
    assert {run.status for run in again.runs} == {"done"} and again.failed == ()
    assert sorted(again.table["density"].unique()) == [0.2, 0.5] and len(again.table) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fedprune.run(["rounds=many"]), "rounds=many.*Integer"),
        (lambda: fedprune.compose(["criterion=snpi"]), "criterion=snpi: there is no such option; the nearest are snip"),
        (lambda: fedprune.compose(["+lr=1"]), r"\+lr: there is no such key here; type local.optimizer.lr=0.1"),
        (lambda: fedprune.run("rounds=2"), "is a list of words"),
        (lambda: fedprune.run([*TINY, "-m"]), "-m is a flag of the command: use fedprune.sweep"),
        (lambda: fedprune.run([*TINY, "--config-dir"]), "--config-dir is a flag of the command: use config_dir=FOLDER"),
        (
            lambda: fedprune.run([*TINY, "seed=0,1"]),
            "several values are a grid: .* use fedprune.sweep",
        ),
        (lambda: fedprune.compose(["experiment=feddst"]), r"experiment: there is no such key here; type \+experiment=NAME"),
        (lambda: fedprune.compose([], config_dir="nowhere"), "config_dir=nowhere is not a folder"),
        (lambda: fedprune.run([*TINY, "dry_run=true"]), "dry_run=true has no result"),
        (lambda: fedprune.sweep([*TINY, "dry_run=true", "seed=0,1"]), "dry_run=true has no result"),
    ],
)
def test_what_is_wrong_is_an_exception_and_leaves_nothing(call, message, outputs):
    with pytest.raises(ConfigError, match=message):
        call()
    assert not Path("outputs").exists()


def test_a_grid_over_a_key_that_does_not_exist_is_refused(outputs):
    with pytest.raises(ConfigError, match="federated.cohrt: there is no such key; the nearest are federated.cohort"):
        fedprune.sweep(["federated.cohrt=1,2"])


def test_a_run_that_fails_leaves_the_reason_and_raises_it(outputs):
    composed = fedprune.compose([*TINY, "when=before_training", "how_often=gradual"])
    with pytest.raises(Incompatible):
        fedprune.run(composed)
    result = fedprune.load(composed.folder)
    assert len(result.rounds) == 0 and repr(result) == f"<run {result.folder}: skipped>"
    assert result.status == "skipped" and "when=during_training" in result.reason
    with pytest.raises(FedpruneError, match="the run is skipped"):
        _ = result.summary
    with pytest.raises(FedpruneError, match="is not the folder of a run"):
        fedprune.load("nowhere")


@pytest.mark.parametrize(
    ("words", "metric"),
    [
        ((), "val/accuracy"),
        (("objective=test/loss",), "test/loss"),
        (("partition.val=0",), None),
    ],
)
def test_a_job_returns_its_objective(words, metric, outputs, tmp_path):
    """A sweeper that searches sees it: this one writes down what each job returns."""
    from fedprune.api.launch import attempt

    composed = fedprune.compose([*TINY, *words])
    returned = attempt(composed, "alone")
    if metric is None:
        assert returned is None
    else:
        assert returned == fedprune.load(composed.folder).summary[metric] and math.isfinite(returned)
    assert "objective" not in OmegaConf.to_container(composed.config)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["objective=test/f2"], "there are val/loss, val/accuracy, test/loss, test/accuracy and"),
        (["objective=val/acuracy"], "type objective=val/accuracy"),
        (["objective=accuracy"], "val/accuracy"),
        (["objective=val/accuracy", "partition.val=0"], "type partition.val=0.1 for some, or objective=test/accuracy"),
    ],
)
def test_an_objective_that_no_run_has_is_refused_before_the_first_round(words, says, outputs):
    from fedprune.api.launch import attempt

    composed = fedprune.compose([*TINY, *words])
    with pytest.raises(ConfigError, match="is no metric of this run") as error:
        attempt(composed, "alone")
    assert says in str(error.value) and not (composed.folder / "metrics.jsonl").exists()


def test_an_objective_that_shows_to_be_none_at_the_end_is_an_error(outputs):
    from fedprune.api.launch import attempt

    composed = fedprune.compose([*TINY, "objective=client/acuracy_mean"])
    with pytest.raises(FedpruneError, match="objective=client/acuracy_mean is no metric of this run: choose one of client/"):
        attempt(composed, "alone")


def test_a_summary_that_is_damaged_gives_a_search_no_objective(outputs):
    from fedprune.api.launch import attempt

    composed = fedprune.compose(TINY)
    attempt(composed, "alone")
    path = composed.folder / "summary.json"
    path.write_text(path.read_text().replace('"val/accuracy": 0.', '"val/accuracy": 1.'))
    with pytest.raises(FedpruneError, match=r"summary\.json is damaged \(its content is not what was written.*force=true"):
        attempt(composed, "alone")


def test_the_import_takes_no_time_and_the_names_are_there():
    code = (
        "import sys, fedprune; print([n for n in ('torch', 'hydra', 'pandas', 'omegaconf') if n in sys.modules], dir(fedprune))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("[]") and all(f"'{name}'" in shown for name in ("compose", "run", "sweep", "load"))
    with pytest.raises(AttributeError, match="it has Composition"):
        _ = fedprune.composed
