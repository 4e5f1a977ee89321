"""metrics.jsonl: a line per round, written as soon as the round is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedprune.errors import RunError
from fedprune.storage.checkpoint import write_text


def append(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write one more line of metrics.jsonl, at once."""
    path = folder / "metrics.jsonl"
    try:
        with open(path, "a") as file:
            file.write(json.dumps(dict(metrics)) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}. Make room, and the same command resumes") from error


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the rounds in metrics.jsonl, without a last line that was torn when the process died."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_until(folder: Path, round: int) -> None:
    """Drop the rounds from `round` on: a resumed run does them again."""
    rows = [row for row in read_metrics(folder) if row["round"] < round]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
