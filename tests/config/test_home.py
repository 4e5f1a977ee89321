"""The section `home` of a sweep that tests a published claim: what is wrong with it is said before the first run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fedprune.config.home import Compared, experiments, read_home, sought
from fedprune.errors import ConfigError
from fedprune.identity import identity
from fedprune.run_id import METHOD

SWEPT = ("lotteryfl", "home/runs/fedavg_slow", "standalone")

SECTION: dict[str, Any] = {
    "claim": "It is more accurate (A 2021).",
    "method": {"run": "lotteryfl", "metric": "client/accuracy_tuned_mean"},
    "baseline": {"run": "fedavg_slow", "metric": "client/accuracy_mean"},
    "controls": {"local training alone": {"run": "standalone", "metric": "client/accuracy_tuned_mean"}},
    "theirs": {"data": "MNIST", "local work": "60 epochs"},
}


def test_a_section_is_read():
    home = read_home(SECTION, SWEPT)
    assert home.method == Compared("lotteryfl", "client/accuracy_tuned_mean")
    assert list(home.controls) == ["local training alone"]
    assert (home.margin, home.theirs["local work"]) == (0.0, "60 epochs")


def test_a_run_is_named_in_full_or_without_its_folder():
    assert sought("fedavg_slow", SWEPT) == sought("home/runs/fedavg_slow", SWEPT) == "home/runs/fedavg_slow"
    assert sought("fedavg", SWEPT) is None
    assert sought("fedavg_slow", (*SWEPT, "benchmark/fedavg_slow")) is None  # which of two?
    assert experiments({f"+{METHOD}": "lotteryfl, \n home/runs/fedavg_slow", "seed": "0,1"}, METHOD) == SWEPT[:2]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("clam", "x", "home.clam: there is no such key: choose one of claim, method,"),
        ("claim", None, "home.claim is missing"),
        ("method", {"rum": "a", "metric": "b"}, "home.method.rum: there is no such key: choose one of run, metric"),
        ("method", "lotteryfl", "home.method=lotteryfl has keys of its own: run, metric"),
        ("baseline", {"run": "fedavg", "metric": "b"}, "home.baseline.run=fedavg is not one run of the sweep: choose one of"),
        ("controls", {"x": {"run": "standalone"}}, "home.controls.x.metric is missing"),
        ("controls", ["standalone"], "home.controls"),
        ("theirs", {"date": "MNIST"}, "home.theirs.date: there is no such key: choose one of data, network,"),
        ("margin", "wide", "home.margin=wide is in the metric's unit: 0 or more"),
        ("margin", 2, "home.margin=2 of an accuracy is a fraction: 0.02 is 2 points"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_type(key, value, said):
    with pytest.raises(ConfigError) as caught:
        read_home({**copy.deepcopy(SECTION), key: value}, SWEPT)
    assert said in str(caught.value)


def test_it_is_no_part_of_a_runs_identity(assemble):
    config, _ = assemble()
    described = copy.deepcopy(config)
    OmegaConf.update(described, "home", SECTION)
    assert identity(described) == identity(config)


def user_sweep(folder: Path, section: dict[str, Any], seeds: str = "0,1") -> None:
    """A yaml of a user's own, two runs of one round each."""
    tiny = {"federated.clients": "3", "federated.cohort": "2", "local.steps": "2", "rounds": "1", "logger": "none"}
    tiny |= {"local.epochs": "null", "executor": "serial", "data": "digits", "model": "lenet_300_100"}
    params = {f"+{METHOD}": "fedavg,fedprox", "name": "home_mine", "seed": seeds, **tiny}
    content = {"name": "home_mine", "home": section, "hydra": {"sweeper": {"params": params}}}
    path = folder / "mine" / "experiment" / "home" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        f"# @package _global_\n# FedProx at home: as small as can be.\n{OmegaConf.to_yaml(OmegaConf.create(content))}"
    )


MINE = ("--config-dir", "mine", "+experiment=home/mine")


def test_a_sweep_whose_section_is_wrong_does_not_begin(command, outputs):
    user_sweep(outputs.parent, SECTION)
    result = command(*MINE, "-m")
    assert result.rc == 1
    assert "home.method.run=lotteryfl is not one run of the sweep: choose one of fedavg, fedprox" in result.text
    assert not list(outputs.rglob("run.json"))


def test_without_m_it_is_refused(command, outputs):
    user_sweep(outputs.parent, SECTION)
    result = command(*MINE)
    assert result.rc == 1
    assert "add -m" in result.text
