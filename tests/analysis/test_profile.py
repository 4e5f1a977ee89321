"""The profile of a run: a table that adds up, a few lines, and a figure whose bars are the table."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from fedprune.analysis import profile
from fedprune.phase_clock import PHASES, PREFIX


def row(number: int, **seconds: float) -> dict[str, float]:
    """The metrics of a round, of which half a second is for what is not named."""
    phases = dict.fromkeys(PHASES, 0.0) | seconds | {"other": 0.5}
    profiled = {f"{PREFIX}{name}_s": value for name, value in phases.items()}
    return {"round": number, "time/round_s": sum(phases.values()), **profiled, "test/accuracy": 0.5}


ROWS = [{"round": 0, "time/round_s": 3.0}, row(1, train=2.0, evaluate=1.0), row(2, train=4.0)]
"""The first round was done without a profile."""


def test_the_table_has_a_row_per_profiled_round(tmp_path):
    said = profile.write(ROWS, tmp_path)
    table = pd.read_csv(tmp_path / "profile.csv")
    assert list(table) == ["round", *(f"{name}_s" for name in PHASES), "round_s"]
    assert table[["round", "train_s", "evaluate_s", "other_s", "round_s"]].values.tolist() == [
        [1, 2.0, 1.0, 0.5, 3.5],
        [2, 4.0, 0.0, 0.5, 4.5],
    ]
    # Of 8 s in all, 6 are training: 75 %, 3 s a round; 1 s each evaluation and the rest: 12.5 %, 0.5 s.
    assert said == "\n".join(
        [
            "where the time went: 8 s in 2 rounds, each on average",
            "  train      75.0 %  3000.00 ms",
            "  evaluate   12.5 %   500.00 ms",
            "  other      12.5 %   500.00 ms",
        ]
    )
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["profile.pdf", "profile.png", "profile.svg"]


def test_without_a_profile_nothing_is_written(tmp_path):
    assert profile.write(ROWS[:1], tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rounds", "bars", "width"), [(3, 3, 1), (60, 60, 1), (61, 31, 2), (601, 55, 11)])
def test_the_bars_stack_up_to_the_mean_round_of_those_that_share_them(rounds, bars, width):
    rows = [row(number, train=float(number), evaluate=float(number % 5 == 0)) for number in range(rounds)]
    (axes,) = profile.seconds_rounds(profile.by_round(rows)).axes
    drawn = [list(container) for container in axes.containers]
    assert [len(container) for container in drawn] == [bars] * len(PHASES)
    for place in range(bars):
        together = rows[place * width : (place + 1) * width]
        mean = sum(each["time/round_s"] for each in together) / len(together)
        top = drawn[-1][place].get_y() + drawn[-1][place].get_height()
        assert top == pytest.approx(mean) == pytest.approx(sum(container[place].get_height() for container in drawn))
        assert drawn[0][place].get_y() == 0


def test_on_the_command_line_it_is_asked_for_and_does_not_make_another_run_of_it(command, outputs, folder):
    tiny = ("rounds=2", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=1")
    words = (*tiny, "local.batch_size=16", "logger=csv", "executor=serial", "how_often=one_shot")
    result = command(*words, "profile=true")
    assert result.rc == 0, result.text
    assert "where the time went" in result.out
    rows = [json.loads(line) for line in (folder() / "metrics.jsonl").read_text().splitlines()]
    table = pd.read_csv(folder() / "profile.csv")
    assert table["train_s"].tolist() == [row[f"{PREFIX}train_s"] for row in rows]
    assert (folder() / "figures" / "profile.png").exists()
    assert f"{PREFIX}merge_s" in pd.read_csv(folder() / "metrics.csv")
    again = command(*words)
    assert "already done" in again.out and Path(outputs / "fedprune").exists()
