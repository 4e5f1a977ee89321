"""The numbers of a home are those of the runs of its sweep, as its yaml is now."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedprune.analysis.home.evidence import collect, loaded, retold
from fedprune.analysis.home.sweep import load_sweep
from fedprune.errors import ConfigError, FedpruneError
from fedprune.run_id import METHOD

YAML = """\
# @package _global_
# LotteryFL at home: 2 classes a client,
# and the digits.
name: home_mine
home:
  claim: Tickets are more accurate (A 2021).
  method: {run: lotteryfl, metric: client/accuracy_tuned_mean}
  baseline: {run: slow, metric: client/accuracy_mean}
  theirs: {data: MNIST}
hydra:
  sweeper:
    params:
      +experiment@_global_: lotteryfl,home/runs/slow
      name: home_mine
      seed: 0,1
      rounds: "60"
      executor: serial
"""

CONFIG = OmegaConf.create(
    """
rounds: 60
federated: {clients: 20, cohort: 5}
partition: {_target_: x, classes: 2, min_examples: 20, test: 0.3}
local: {epochs: 10, steps: null, batch_size: 10, lr_decay: 1.0, optimizer: {_target_: torch.optim.SGD, lr: 0.05, momentum: 0.5}}
"""
)


def run(
    folder: Path, method: str, seed: int, value: float, *, status: str = "done", more: tuple[str, ...] = (), at: int = 0
) -> None:
    path = folder / f"{method.replace('/', '_')}{seed}{value}"
    path.mkdir(parents=True)
    overrides = [f"+{METHOD}={method}", "name=home_mine", f"seed={seed}", "rounds=60", "executor=processes", *more]
    about = {"name": "home_mine", "seed": seed, "density": 0.1, "axes": {"data": "digits", "model": "lenet_300_100"}}
    about["axes"] |= {"partition": "shards"}
    facts = {"plan": {"rounds": 60}, "parameters": 50610, "examples": 878, "shape": [1, 8, 8]}
    described = about | facts | {"overrides": overrides, "config": OmegaConf.to_container(CONFIG)}
    (path / "run.json").write_text(json.dumps(described))
    os.utime(path / "run.json", (at, at))
    row = {"client/accuracy_mean": value, "client/accuracy_tuned_mean": value + 0.1, "density/weights": 1.0}
    row |= {"client/density_mean": 0.2} if method == "lotteryfl" else {}
    (path / "metrics.jsonl").write_text(json.dumps({"round": 0, "time/round_s": 1.0, "wire/up_bytes": 4e6, **row}) + "\n")
    outcome = {"done": ("summary.json", {"metrics": row}), "failed": ("failed.json", {"status": "failed", "reason": "a fault"})}
    name, content = outcome[status]
    (path / name).write_text(json.dumps(content))


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "experiment" / "home" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(YAML)
    return path


def test_numbers_come_from_the_runs_of_the_sweep(yaml, tmp_path):
    runs = tmp_path / "outputs"
    for seed in (0, 1):
        run(runs, "lotteryfl", seed, 0.5 + seed / 10)
    run(runs, "home/runs/slow", 0, 0.4)
    run(runs, "home/runs/slow", 1, 0.4, status="failed")
    run(runs, "lotteryfl", 0, 0.9, more=("rounds=2",))  # of the sweep before its yaml was changed
    run(runs, "lotteryfl", 1, 0.9, more=("local.clip_norm=1",))  # and one by hand
    run(runs, "lotteryfl", 0, 0.7, at=10)  # its file of settings was changed after the first was run
    found = collect(load_sweep(str(yaml)), runs)
    assert found.runs["lotteryfl"].values["client/accuracy_mean"] == {0: 0.7, 1: 0.6}
    assert found.runs["lotteryfl"].values["client/accuracy_tuned_mean"] == {0: pytest.approx(0.8), 1: pytest.approx(0.7)}
    assert found.runs["lotteryfl"].values["alive"] == {0: 0.2, 1: 0.2}
    assert found.runs["lotteryfl"].lacking == ""
    assert found.of(found.home.baseline).values["total/up_bytes"] == {0: 4e6}
    assert found.of(found.home.baseline).lacking == "1 of 2 runs are done; failed: a fault"


def test_our_protocol_is_read_from_the_configuration(yaml, tmp_path):
    run(tmp_path / "outputs", "lotteryfl", 0, 0.5)
    found = collect(load_sweep(str(yaml)), tmp_path / "outputs")
    assert found.ours == {
        "data": "digits, 1x8x8, 878 training examples",
        "network": "lenet_300_100, 50,610 parameters",
        "clients": "20 (shards, classes=2); 5 in a round",
        "participations": "15 (60 rounds)",  # 60 * 5 / 20
        "local work": "10 epochs, batches of 10",
        "rate": "SGD 0.05, momentum 0.5",
    }


def test_a_yaml_says_its_title_and_its_command(yaml):
    sweep = load_sweep(str(yaml))
    assert (sweep.title, sweep.about) == ("LotteryFL at home", "2 classes a client, and the digits.")
    folder = yaml.parents[2]
    assert sweep.command == f"python -m fedprune --config-dir {folder} +experiment=home/mine hydra/launcher=joblib -m"
    assert load_sweep("lotteryfl").command == "python -m fedprune +experiment=home/lotteryfl hydra/launcher=joblib -m"


def test_a_claim_may_be_said_anew_and_a_sweep_may_not(yaml, tmp_path):
    run(tmp_path / "outputs", "lotteryfl", 0, 0.5)
    found = collect(load_sweep(str(yaml)), tmp_path / "outputs")
    yaml.write_text(YAML.replace("more accurate", "as accurate").replace("serial", "processes"))
    assert retold(found, load_sweep(str(yaml))).home.claim == "Tickets are as accurate (A 2021)."
    yaml.write_text(YAML.replace("60", "61"))
    with pytest.raises(FedpruneError, match="the sweep of mine has changed since its page was written: run `python"):
        retold(found, load_sweep(str(yaml)))


def test_a_sweep_whose_experiments_beside_it_have_changed_is_another(yaml, tmp_path):
    beside = yaml.parent / "runs" / "slow.yaml"
    beside.parent.mkdir()
    beside.write_text("# @package _global_\ndefaults: [/experiment/lotteryfl]\nrounds: 60\n")
    before = load_sweep(str(yaml)).results_depend_on
    beside.write_text("# @package _global_\n# A word about it.\ndefaults: [/experiment/lotteryfl]\nrounds: 60\n")
    assert load_sweep(str(yaml)).results_depend_on == before
    beside.write_text("# @package _global_\ndefaults: [/experiment/lotteryfl]\nrounds: 61\n")
    assert load_sweep(str(yaml)).results_depend_on != before


def test_evidence_in_another_form_is_named(tmp_path):
    (tmp_path / "mine.json").write_text('{"runs": {}}')
    with pytest.raises(FedpruneError, match=r"mine.json is no evidence in the form of this version \(KeyError: 'home'\)"):
        loaded(tmp_path / "mine.json")


def test_what_is_no_home_is_refused(yaml, tmp_path):
    with pytest.raises(ConfigError, match="lottery is no home: choose one of .*lotteryfl"):
        load_sweep("lottery")
    run(tmp_path / "outputs", "lotteryfl", 0, 0.5, more=("rounds=2",))
    with pytest.raises(FedpruneError, match="is of mine as its yaml is now: run `python -m fedprune"):
        collect(load_sweep(str(yaml)), tmp_path / "outputs")
    yaml.write_text("name: x\n")
    with pytest.raises(ConfigError, match="has no section home and no hydra.sweeper.params"):
        load_sweep(str(yaml))
    yaml.write_text("home: [\n")
    with pytest.raises(ConfigError, match="is no yaml file"):
        load_sweep(str(yaml))
