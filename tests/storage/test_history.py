"""The rounds in metrics.jsonl: what cannot be read is named, and what follows it stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedprune.analysis.read import load_runs
from fedprune.storage import digest
from fedprune.storage.history import line, read, read_metrics
from helpers.run_folders import TICKET, write_run

LINES = [line({"round": number, "loss": 0.5}) for number in range(5)]


def rounds(*lines: bytes) -> tuple[list[float], tuple[str, ...]]:
    found = read(b"".join(lines))
    return [row["round"] for row in found.rows], found.problems


def test_lines_come_back_as_rounds():
    assert rounds() == ([], ())
    assert rounds(*LINES) == ([0, 1, 2, 3, 4], ())


def test_a_last_line_without_its_end_is_none_unless_only_the_end_is_lost():
    assert rounds(*LINES[:2], LINES[2][:10]) == ([0, 1], ())
    assert rounds(*LINES[:2], LINES[2].rstrip()) == ([0, 1, 2], ())
    assert rounds(*LINES[:2], b"\0" * 30) == ([0, 1], ())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"round": 2, "lo\n', "Unterminated string"),
        (b"\xff\n", "invalid start byte"),
        (b"[2]\n", "says no round"),
        (b"\n", "Expec"),
    ],
)
def test_a_damaged_line_is_named_and_those_that_follow_stay(content, why):
    found, (unreadable, missing) = rounds(*LINES[:2], content, *LINES[3:])
    assert found == [0, 1, 3, 4]
    assert unreadable.startswith("line 3 cannot be read (") and why in unreadable
    assert missing == "there is no round 2"


def test_a_line_that_was_taken_out_or_is_there_twice_is_named():
    assert rounds(*LINES[:1], *LINES[3:]) == ([0, 3, 4], ("there is no round 1, 2",))
    assert rounds(*LINES[:2], LINES[1], LINES[2]) == ([0, 1, 2], ("line 3 is round 1 again",))


def test_it_is_told_once_and_a_finished_run_knows_its_lines(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(LINES))
    (tmp_path / "summary.json").write_text(digest.to_json({"metrics.jsonl": digest.of_bytes(b"".join(LINES))}))
    assert len(read_metrics(tmp_path)) == 5 and caplog.text == ""
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(LINES).replace(b"0.5", b"0.7", 1))
    for _ in range(2):
        assert len(read_metrics(tmp_path)) == 5
    assert caplog.text.count("metrics.jsonl: it is not what the run wrote") == 1


def test_a_table_says_which_run_has_gaps_and_gives_no_sums_of_it(tmp_path):
    """Six rounds of 2 MB up: 12 MB, where all are there."""
    whole, gaps = (write_run(tmp_path / name, TICKET, seed) for seed, name in enumerate(("whole", "gaps")))
    lines = (gaps / "metrics.jsonl").read_text().splitlines(keepends=True)
    (gaps / "metrics.jsonl").write_text("".join(lines[:2] + lines[3:]))
    table = load_runs([whole, gaps])
    assert table["reason"].tolist() == ["", "metrics.jsonl: there is no round 2"]
    assert table["total/up_bytes"].fillna(-1).tolist() == [12_000_000, -1]


def test_a_folder_without_its_description_is_named(tmp_path, caplog):
    (write_run(tmp_path / "run", TICKET) / "run.json").unlink()
    assert load_runs([tmp_path / "run"]).empty
    assert f"{tmp_path / 'run'} is left out" in caplog.text


def test_values_of_json_that_have_changed_are_told(tmp_path):
    path: Path = tmp_path / "summary.json"
    content = {"metrics": {"test/accuracy": 0.91, "time": 1e-9, "nan": float("nan")}, "list": (1, 2)}
    path.write_text(digest.to_json(content))
    assert str(digest.from_json(path.read_bytes())) == str(json.loads(json.dumps(content)))
    path.write_text(path.read_text().replace("0.91", "0.97"))
    with pytest.raises(ValueError, match="not what was written; if you have changed it, remove its last key, digest"):
        digest.from_json(path.read_bytes())
