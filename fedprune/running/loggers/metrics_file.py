"""metrics.jsonl is written: a line per round, at once. storage/history.py reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedprune.errors import RunError
from fedprune.storage.history import METRICS, line
from fedprune.storage.replace import remedy


def append(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write one more line of metrics.jsonl, at once."""
    path = folder / METRICS
    try:
        with open(path, "ab") as file:
            file.write(line(metrics))
    except OSError as error:
        what_to_do = f"{remedy(error).capitalize()}, and the same command resumes"
        raise RunError(f"cannot write {path}: {error.strerror}. {what_to_do}") from error
