"""The workspace is built offline, and shows metrics that runs really report."""

from __future__ import annotations

import json
import re
import sys

import pytest

from fedprune.dashboard.__main__ import main
from fedprune.dashboard.panels import PHASES, Curves, metrics_of, sections
from fedprune.running.loggers import read_metrics

TINY = (
    *("rounds=2", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=1"),
    *("local.batch_size=16", "executor=serial", "eval_every=1", "how_often=one_shot", "profile=true", "logger=none"),
)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    """Do the command in this process, and return its status."""
    monkeypatch.setattr(sys, "argv", ["dashboard", *words])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


def test_every_panel_shows_metrics_that_a_run_reports(command, folder):
    assert command(*TINY).rc == 0
    reported = {key for row in read_metrics(folder()) for key in row}
    panels = [panel for of_section in sections("accuracy").values() for panel in of_section]
    assert {name for panel in panels for name in metrics_of(panel)} <= reported
    patterns = [panel.regex for panel in panels if isinstance(panel, Curves) and panel.regex]
    assert patterns and all(any(re.search(pattern, key) for key in reported) for pattern in patterns)
    assert {f"profile/{phase}_s" for phase in PHASES} == {key for key in reported if key.startswith("profile/")}


def test_the_workspace_is_built_and_saved_without_a_network(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces", reason="extra dashboard")
    file = tmp_path / "workspace.json"
    assert run(monkeypatch, "--save", str(file), "--entity", "team", "--project", "mine") == 0
    assert capsys.readouterr().out == f"{file}\n"
    text = file.read_text()
    json.loads(text)
    for of_section in sections("accuracy").values():
        for panel in of_section:
            assert json.dumps(panel.title) in text
            assert all(name in text for name in metrics_of(panel))


def test_without_an_entity_it_is_printed_and_has_the_metric_of_the_task(monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces", reason="extra dashboard")
    assert run(monkeypatch, "--metric", "r2") == 0
    printed = capsys.readouterr().out
    json.loads(printed)
    assert "test/r2" in printed and "client/r2_mean" in printed and "accuracy" not in printed


def test_who_is_not_logged_in_is_told_what_to_type(monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces", reason="extra dashboard")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("wandb.login", lambda prompt: False)
    assert run(monkeypatch, "--entity", "team") == 1
    assert "type `wandb login` first, or --save FILE" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run(monkeypatch, "--entity", "team") == 1
    assert "WANDB_MODE=offline: unset it to push" in capsys.readouterr().err


def test_what_the_server_refuses_is_one_line_and_what_it_takes_an_address(monkeypatch, capsys):
    workspaces = pytest.importorskip("wandb_workspaces.workspaces", reason="extra dashboard")

    def refuse(self: object) -> None:
        raise ValueError("no such\nproject")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("wandb.login", lambda prompt: True)
    monkeypatch.setattr(workspaces.Workspace, "save", refuse)
    assert run(monkeypatch, "--entity", "team") == 1
    assert capsys.readouterr().err == "W&B did not take the workspace for team/fedprune: no such project\n"


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert run(monkeypatch) == 1
    assert "pip install 'fedprune[dashboard]'" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_line(monkeypatch, capsys, tmp_path):
    pytest.importorskip("wandb_workspaces", reason="extra dashboard")
    assert run(monkeypatch, "--save", str(tmp_path / "no" / "file.json")) == 1
    assert "file.json: No such file" in capsys.readouterr().err
