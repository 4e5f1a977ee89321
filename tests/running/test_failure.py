"""A run that fails leaves why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedprune.api.result import Result
from fedprune.running.failure import noted
from fedprune.running.sweep import has_failed


def test_a_name_that_is_no_text_does_not_hide_the_error(tmp_path: Path):
    """Python has a byte of a file's name that is not UTF-8 as half of a surrogate pair, which no encoding takes."""
    with pytest.raises(ValueError, match="is no table"), noted(tmp_path):
        raise ValueError("caf\udce9.csv is no table")
    assert r"ValueError: caf\udce9.csv is no table" in (tmp_path / "error.log").read_text(encoding="utf-8")
    failed = json.loads((tmp_path / "failed.json").read_text(encoding="utf-8"))
    assert failed == {"status": "failed", "reason": "ValueError: caf\udce9.csv is no table"}


@pytest.mark.parametrize("content", ["", "[1]", '{"status": "sk'])
def test_a_reason_that_is_damaged_counts_as_a_failure_and_ends_no_sweep(content: str, tmp_path: Path):
    (tmp_path / "failed.json").write_text(content, encoding="utf-8")
    assert has_failed(tmp_path)
    result = Result(tmp_path, {})
    assert result.status == "failed" and "failed.json is damaged" in result.reason


def test_a_cell_that_makes_no_sense_has_not_failed(tmp_path: Path):
    (tmp_path / "failed.json").write_text('{"status": "skipped", "reason": "no"}', encoding="utf-8")
    assert not has_failed(tmp_path)
