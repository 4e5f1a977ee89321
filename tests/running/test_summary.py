"""How a run ends: done or failed, never both, with the reason kept; and the same for a sweep."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import open_dict

from fedprune import analysis
from fedprune.analysis import profile
from fedprune.running import members, sweep

TINY = (
    *("rounds=2", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "executor=serial", "density=0.3", "logger=none", "how_often=one_shot"),
)


def broken(*args: object, **kwargs: object) -> None:
    raise ImportError("matplotlib is broken")


def state_of(folder: Path) -> tuple[str, str]:
    """(status, reason) as tables have it, of a run of which not both files are there."""
    assert not ((folder / "summary.json").exists() and (folder / "failed.json").exists())
    row = analysis.load_runs([folder]).iloc[0]
    return row["status"], row["reason"]


def test_what_breaks_at_the_very_end_is_a_failure_and_is_made_good_by_the_same_command(command, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(profile, "write", broken)
        assert command(*TINY, "profile=true").rc == 1
    assert state_of(folder()) == ("failed", "ImportError: matplotlib is broken")
    assert (folder() / "error.log").exists()
    lines = (folder() / "metrics.jsonl").read_text()
    assert len(lines.splitlines()) == 2  # nothing that was trained is lost
    assert command(*TINY, "profile=true").rc == 0
    assert state_of(folder()) == ("done", "")
    assert not (folder() / "error.log").exists()
    assert (folder() / "metrics.jsonl").read_text() == lines  # nor trained again


def test_ctrl_c_in_the_last_second_leaves_a_run_that_is_not_done_yet(command, folder, monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedprune.running.run.conclude", interrupted)
        assert command(*TINY).rc == 130
    assert state_of(folder()) == ("unfinished", "2 of 2 rounds done")
    assert command(*TINY).rc == 0
    assert state_of(folder()) == ("done", "")


def test_a_run_that_is_done_stays_done_whatever_is_asked_of_its_folder(command, folder, monkeypatch):
    assert command(*TINY).rc == 0
    monkeypatch.setattr("fedprune.running.run.build", broken)
    assert command(*TINY, "dry_run=true").rc == 1
    assert state_of(folder()) == ("done", "")


def test_a_forced_run_that_fails_has_nothing_left_of_the_one_before(command, folder, monkeypatch):
    assert command(*TINY, "logger=csv", "profile=true").rc == 0
    monkeypatch.setattr("fedprune.running.run.build", broken)
    assert command(*TINY, "force=true").rc == 1
    assert state_of(folder()) == ("failed", "ImportError: matplotlib is broken")
    assert {path.name for path in folder().rglob("*") if path.is_file()} == {
        *(".lock", "config.yaml", "run.json", "failed.json", "error.log"),
    }


def test_a_sweep_whose_table_cannot_be_made_says_so_and_fails_and_its_runs_are_done(command, outputs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(analysis, "report", broken)
        result = command(*TINY, "seed=0,1", "-m")
    assert result.rc == 1
    assert "ImportError: matplotlib is broken" in result.err
    assert "python -m fedprune.analysis outputs/fedprune" in result.err
    assert [state_of(path.parent)[0] for path in sorted(outputs.glob("*/*/run.json"))] == ["done", "done"]
    again = command(*TINY, "seed=0,1", "-m")
    assert (again.rc, again.out.count("already done")) == (0, 2)


def test_a_sweep_over_other_data_is_another_sweep(outputs, compose, monkeypatch):
    """Both may run at the same time, and each notes down in a file of its name which jobs are its own."""
    config, names = compose()[0], []
    with open_dict(config):
        config.hydra = {
            "overrides": {"task": ["seed=0,1"]},
            "sweeper": {"_target_": "", "params": None},
            "sweep": {"dir": "outputs/x"},
        }
    for root in ("A", "B", "A"):
        monkeypatch.setenv("FEDPRUNE_DATA", root)
        sweep.Report().on_multirun_start(config)
        names.append(os.environ[members.SWEEP])
    assert names[0] == names[2] != names[1]
