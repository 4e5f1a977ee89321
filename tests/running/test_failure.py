"""A run that fails leaves why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedprune.running.failure import noted


def test_a_name_that_is_no_text_does_not_hide_the_error(tmp_path: Path):
    """Python has a byte of a file's name that is not UTF-8 as half of a surrogate pair, which no encoding takes."""
    with pytest.raises(ValueError, match="is no table"), noted(tmp_path):
        raise ValueError("caf\udce9.csv is no table")
    assert r"ValueError: caf\udce9.csv is no table" in (tmp_path / "error.log").read_text(encoding="utf-8")
    failed = json.loads((tmp_path / "failed.json").read_text(encoding="utf-8"))
    assert failed == {"status": "failed", "reason": "ValueError: caf\udce9.csv is no table"}
