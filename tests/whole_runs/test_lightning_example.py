"""The module of one's own in docs/howto/own_method.md runs as it is printed, and what it logs is where everything else is."""

import re
from pathlib import Path

import pytest

from fedprune.running.loggers import read_metrics
from helpers.composed import TINY
from helpers.wandb_files import offline_runs

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "own_method.md"


def test_the_readmes_module_logs_and_warms_up(command, outputs, folder, monkeypatch):
    code = re.search(r"```python\n(# my_task.py\n.*?)```\n```sh\n.*?(local\.module\S+)\n```", PAGE.read_text(), re.DOTALL)
    (outputs.parent / "my_task.py").write_text(code[1])
    monkeypatch.syspath_prepend(outputs.parent)
    result = command(*TINY, "logger=wandb", "executor=processes", "executor.workers=2", code[2])
    assert result.rc == 0, result.text
    rows = read_metrics(folder())
    assert len(rows) == 3 and all(row["train/gradient_norm"] > 0 for row in rows)
    ((_, drawn),) = offline_runs(folder())
    assert [row["train/gradient_norm"] for row in drawn] == pytest.approx([row["train/gradient_norm"] for row in rows])
