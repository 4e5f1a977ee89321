"""metrics.jsonl: a line for each round that was done. What is wrong with it is named, and never cut away with what follows.

A last line without its end is none of it: the process was killed while it wrote, and the round is done again.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedprune.storage import digest
from fedprune.storage.origin import another_run

log = logging.getLogger(__name__)

METRICS, SUMMARY = "metrics.jsonl", "summary.json"

Row = dict[str, float]


@dataclass(frozen=True)
class History:
    """The rounds in a metrics.jsonl, in order and each once. problems: what is missing or cannot be read, as clauses."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]


def line(metrics: Mapping[str, float]) -> bytes:
    """Return a round as its line."""
    return json.dumps(dict(metrics)).encode() + b"\n"


def read(content: bytes | bytearray) -> History:
    """Return the rounds in some lines, and what is wrong with them."""
    *lines, torn = bytes(content).split(b"\n")
    with suppress(ValueError):  # only its end is lost
        _row(torn)
        lines.append(torn)
    rows, problems = dict[int, Row](), list[str]()
    for number, text in enumerate(lines, start=1):
        try:
            row = _row(text)
        except ValueError as error:
            problems.append(f"line {number} cannot be read ({error})")
            continue
        if row["round"] in rows:
            problems.append(f"line {number} is round {row['round']} again")
        rows.setdefault(int(row["round"]), row)
    missing = [str(number) for number in range(max(rows, default=-1)) if number not in rows]
    problems += [f"there is no round {', '.join(missing[:5])}{', ...' * (len(missing) > 5)}"] if missing else []
    return History(tuple(rows[number] for number in sorted(rows)), tuple(problems))


def _row(text: bytes) -> Row:
    """Return the round in a line. Raises ValueError."""
    try:
        row = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("round"), int) or row["round"] < 0:
        raise ValueError("it says no round")
    return row


def read_history(folder: Path) -> History:
    """Return the rounds of a run's folder. If the run has ended, its summary says whether they are as they were written."""
    path = folder / METRICS
    content = path.read_bytes() if path.exists() else b""
    found = read(content)
    with suppress(OSError, ValueError):
        summary = digest.from_json((folder / SUMMARY).read_bytes())
        if problem := another_run(folder, summary.get("id")):
            return History(found.rows, (*found.problems, f"{SUMMARY} belongs elsewhere: {problem}"))
        if summary.get(METRICS) not in (None, digest.of_bytes(content)) and not found.problems:
            return History(found.rows, ("it is not what the run wrote",))
    return found


def read_metrics(folder: Path) -> list[Row]:
    """Return the rounds of a run's folder. What is wrong with them is logged, once."""
    found = read_history(folder)
    for problem in found.problems:
        _tell(f"{folder / METRICS}: {problem}")
    return [*found.rows]


@functools.cache
def _tell(problem: str) -> None:
    log.warning("%s", problem)
