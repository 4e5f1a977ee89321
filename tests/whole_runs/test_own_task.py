"""A task of one's own, as docs/howto/own_method.md has it: its metrics have their names from metrics.jsonl to the table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from helpers.composed import TINY

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "own_method.md"


def block(language: str, containing: str) -> str:
    """The one code block of the page that has this in it."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL) if containing in text]
    return found


def test_the_example_of_the_page_runs_and_its_metrics_reach_the_table(command, outputs, monkeypatch):
    (outputs.parent / "my_metrics.py").write_text(block("python", "class Top2"))
    monkeypatch.syspath_prepend(outputs.parent)
    (words,) = [line for line in block("sh", "my_metrics.Top2").splitlines() if "my_metrics.Top2" in line]
    overrides = words.split("#")[0].partition("-m fedprune ")[2].split()
    result = command(*TINY, *overrides, "seed=0,1", "eval_every=1", "federated.tuned=2", "partition.test=0.3", "-m")
    assert result.rc == 0, result.text
    (table,) = outputs.rglob("table.md")
    assert "test f1 (↑)" in table.read_text() and "client p10 (↑)" in table.read_text() and "accuracy" not in table.read_text()
    assert "client f1 after one local training (↑)" in table.read_text()
    for folder in (path.parent for path in outputs.rglob("run.json")):
        assert json.loads((folder / "run.json").read_text())["metric"] == {"name": "f1", "larger_is_better": True}
        metrics = json.loads((folder / "summary.json").read_text())["metrics"]
        names = {
            "test/loss",
            "test/top2",
            "test/f1",
            "val/top2",
            "val/f1",
            "client/top2_mean",
            "client/f1_mean",
            "client/f1_min",
            "client/top2_tuned_mean",
            "client/f1_tuned_mean",
            "client/f1_tuned_min",
        }
        assert names <= set(metrics) and 0 < metrics["test/f1"] < metrics["test/top2"] < 1
    assert re.search(r"f1 0\.\d+  density", result.out)


@pytest.mark.parametrize("advice", [("local=regression", "data=diabetes", "partition=iid", "federated.clients=10")])
def test_a_regression_from_the_command_line(advice, command, outputs, folder):
    result = command(*TINY, *advice, "eval_every=1", "logger=csv")
    assert result.rc == 0, result.text
    assert re.search(r"mse \d\.\d+  density", result.out) and "accuracy" not in result.text
    assert "client/mse_p90" in (folder() / "metrics.csv").read_text()
