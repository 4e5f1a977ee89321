"""The campaign sees what it is there to see: a result that is not the same, a refusal that is none, and its own rows."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import pytest

from campaign import __main__ as whole
from campaign import configurations, kills, table
from helpers.run_folders import row, write_run


def test_a_row_is_read_as_it_was_written():
    counts = {"kills": 12_345, "came after the end": 0, "identical": 7}
    assert table.counted(table.row("kills", 3, 1_000, counts)) == {"cases": 1_000, **counts}
    assert table.counted("| payloads | seed 0 | 2 cases | slowest 0.1 s | speed 3 a second |") == {"cases": 2}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "outputs" / "fedprune" / "run", [row(number, 0, 0.5) for number in range(4)])
    (run / "plan.txt").write_text("no event\n")
    return tmp_path / "outputs"


def test_a_result_is_compared_bit_by_bit_but_for_times_and_by_all_rounds(outputs):
    expected = kills.results(outputs)
    lines = outputs / "fedprune" / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    rows[2]["time/round_s"] = 7.0
    lines.write_text("".join(json.dumps(each) + "\n" for each in rows))
    kills.compare(kills.results(outputs), expected)
    rows[2]["test/accuracy"] = 0.5000000000000001
    lines.write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(kills.Fault, match="different.*test/accuracy: 0.5000000000000001 instead of 0.5"):
        kills.compare(kills.results(outputs), expected)
    lines.write_text("".join(json.dumps(each) + "\n" for each in (rows[0], *rows[2:])))
    with pytest.raises(kills.Fault, match="gap"):
        kills.results(outputs)


def test_a_blow_falls_on_the_nth_file_of_the_outputs(monkeypatch):
    import mmap
    import os

    dealt: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *arguments: dealt.append(arguments))
    counter = mmap.mmap(-1, 8)
    hook = kills._counting(counter, os.getpid(), kills.Blow("at operation", 2, signal.SIGKILL, "process"))
    for event, path in [("open", "outputs/a"), ("open", "/elsewhere"), ("import", "outputs"), ("os.rename", "outputs/a")]:
        assert dealt == []
        hook(event, (path,))
    assert dealt == [(os.getpid(), signal.SIGKILL)] and counter[0] == 2


@pytest.mark.parametrize(
    ("found", "typed", "same"),
    [
        (1.0, 1, True),
        (True, 1, True),
        (True, 7, False),
        ("7", 7, True),
        (2, 2.5, False),
        (1.0, "1", True),
        (math.inf, "inf", True),
        (None, 0, False),
    ],
)
def test_a_value_is_what_was_typed_or_not(found, typed, same):
    assert configurations._same(found, typed) is same


def test_a_case_of_a_seed_is_always_the_same_composition():
    assert configurations.case(5, 1) == configurations.case(5, 1) != configurations.case(6, 1)


def test_of_cases_that_end_alike_one_is_named_with_the_command_that_repeats_it():
    lines = [f"CASE={number} SEED=4 python tests/campaign/kills.py: gap: {number}, serial: rounds" for number in (3, 5)]
    lines += ["{", "case 8 (dense, up: header): traceback: KeyError (0.00 s)", "| kills | seed 4 | 9 cases |"]
    first, second = whole.left("kills", 4, lines)
    assert first == "`CASE=3 SEED=4 python tests/campaign/kills.py`: gap: 3, serial: rounds (2 such)"
    assert second.startswith("`CASE=8 SEED=4 python tests/campaign/kills.py`: (dense, up: header): traceback")


def test_runs_add_up_and_the_same_one_counts_once(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "RECORD", tmp_path / "reliability.json")
    for commit, cases in (("a", 10), ("a", 30), ("a", 20), ("b", 5)):
        whole.record(whole.Ended("files", 0, commit, "2026-01-01", 1.0, {"cases": cases, "same": cases - 1, "silent": 1}))
    text = whole.tables(whole.record(None))
    assert "| damaged files | 1,000 cases | 35 | 2 | 33 same, 2 silent | 965 |" in text
    assert "| 2026-01-01 | `a` | damaged files | 0 | 1 | 30 cases | 1 |" in text
    assert "20 cases" not in text
