"""The whole campaign: each part has its share of the time, and docs/reliability.md says what came out.

    MINUTES=10 SEED=0 python tests/campaign            all parts (`make campaign MINUTES=10 SEED=0`)
    MINUTES=10 SEED=0 python tests/campaign kills      only these
    MINUTES=0 python tests/campaign                    none: the page is written anew from docs/reliability.json

docs/reliability.json keeps the outcomes of every run, by part, seed and commit. A run of the same three takes the place of the
earlier one if it has more cases.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from campaign import table  # noqa: E402

PAGE, RECORD = ROOT / "docs" / "reliability.md", ROOT / "docs" / "reliability.json"

MARK = "<!-- tables: written by make campaign -->"

SHOWN = 25
"""Kinds of cases of a run that the record names; of more it has the number."""


@dataclass(frozen=True)
class Part:
    """A part of the campaign: its title, its share of the time, what is counted and how many are aimed at, and what must not
    be."""

    title: str
    share: float
    unit: str
    target: int
    bad: tuple[str, ...]


OF_KILLS = ("different", "gap", "failed", "traceback", "hang", "survivor", "leftover")
OF_PAYLOADS = ("wrong accept", "traceback", "memory", "over one second")
OF_FILES = ("silent", "traceback", "hang")
OF_CONFIGURATIONS = ("long", "late", "traceback", "hang", "memory", "silent", "crash")

PARTS = {
    "kills": Part("runs that are killed", 0.55, "kills", 1_000, OF_KILLS),
    "payloads": Part("changed payloads", 0.2, "cases", 1_000_000, OF_PAYLOADS),
    "files": Part("damaged files", 0.1, "cases", 1_000, OF_FILES),
    "configurations": Part("random configurations", 0.15, "cases", 10_000, OF_CONFIGURATIONS),
}


@dataclass(frozen=True)
class Ended:
    """A run of a part. outcomes: numbers by name, as in its row; left: cases that ended as none must, each with its command."""

    part: str
    seed: int
    commit: str
    date: str
    minutes: float
    outcomes: dict[str, int]
    left: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Return how many cases ended as none must."""
        return sum(self.outcomes.get(name, 0) for name in PARTS[self.part].bad)


def commit() -> str:
    """Return the last commit that changed what is tested; with a plus if there are changes since."""
    what = ("--", "fedprune", "conf")
    last = _git("log", "-1", "--format=%h", *what)
    return last + "+" * bool(_git("status", "--porcelain", *what))


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def perform(part: str, seed: int, minutes: float) -> Ended:
    """Run a part in a process of its own, show what it prints, and return how it ended."""
    started, before, lines = time.monotonic(), commit(), []
    environment = {key: value for key, value in os.environ.items() if key not in ("CASE", "CASES")}
    environment |= {"MINUTES": str(minutes), "SEED": str(seed), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "campaign" / f"{part}.py")]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip().replace(f"{ROOT}/", ""))
    outcomes = table.counted(lines[-1]) if lines else {}
    if "cases" not in outcomes:
        raise RuntimeError(f"{part} ended with status {process.returncode} and without a row")
    minutes = round((time.monotonic() - started) / 60, 1)
    return Ended(part, seed, before, time.strftime("%Y-%m-%d"), minutes, outcomes, left(part, seed, lines))


def left(part: str, seed: int, lines: Iterable[str]) -> list[str]:
    """Return the cases that a part has printed, each with the command that repeats it: one of those that end alike, and how
    many there are."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for command, told in _printed(part, seed, lines):
        kinds.setdefault((told.partition(":")[0], told.rpartition(": ")[2]), []).append(f"`{command}`: {told[:300]}")
    return [alike[0] + f" ({len(alike)} such)" * (len(alike) > 1) for alike in kinds.values()][:SHOWN]


def _printed(part: str, seed: int, lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        if line.startswith("CASE="):
            number, told = re.split(r"^CASE=(\d+) SEED=\d+(?: python \S+)?: ", line)[1:]
        elif line.startswith("case "):
            number, told = re.split(r"^case (\d+) ", line)[1:]
        else:
            continue
        yield table.again(part, seed, int(number)), told


# --- the record and the page -----------------------------------------------------------------------------------------------


def record(ended: Ended | None) -> list[Ended]:
    """Add a run to the record, and return all."""
    runs = [Ended(**each) for each in json.loads(RECORD.read_text())] if RECORD.exists() else []
    if ended is not None:
        same = [each for each in runs if (each.part, each.seed, each.commit) == (ended.part, ended.seed, ended.commit)]
        if all(each.outcomes["cases"] <= ended.outcomes["cases"] for each in same):
            runs = [each for each in runs if each not in same] + [ended]
        RECORD.write_text(json.dumps([asdict(each) for each in runs], indent=1) + "\n")
    return runs


def tables(runs: list[Ended]) -> str:
    """Return what the page says of all runs."""
    rows = ["| part | target | counted | of it, as none must be | outcomes | missing |", "|---|--:|--:|--:|---|--:|"]
    for name, part in PARTS.items():
        ours = [each for each in runs if each.part == name]
        sums = Counter[str]()
        for each in ours:
            sums.update(each.outcomes)
        done = sums[part.unit]
        told = ", ".join(f"{number:,} {key}" for key, number in sums.items() if number and key not in (part.unit, "cases"))
        numbers = f"{part.target:,} {part.unit} | {done:,} | {sum(each.bad for each in ours):,}"
        rows.append(f"| {part.title} | {numbers} | {told} | {max(0, part.target - done):,} |")
    newest = {(each.part, each.seed): each for each in runs}
    rows += ["", "Each run by itself. `commit` is the last one that changed `fedprune/` or `conf/`:", ""]
    rows += ["| date | commit | part | seed | minutes | counted | as none must be |", "|---|---|---|--:|--:|--:|--:|"]
    for each in runs:
        part = PARTS[each.part]
        number = f"{each.outcomes[part.unit]:,} {part.unit}"
        rows.append(
            f"| {each.date} | `{each.commit}` | {part.title} | {each.seed} | {each.minutes:g} | {number} | {each.bad:,} |"
        )
    rows += ["", "## Left", ""]
    cases = [case for each in newest.values() for case in each.left]
    rows += [f"- {_safe(case)}" for case in cases] or ["Nothing, of the newest run of each part and seed."]
    return "\n".join(rows) + "\n"


def _safe(case: str) -> str:
    """Return a case as it can stand on a page: its command, and what was seen, as they are."""
    command, _, told = case.partition("`: ")
    return f"{command}`: `" + told.replace("`", "'") + "`"


def write(runs: list[Ended]) -> None:
    """Write the tables of the page below its mark."""
    head = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(f"{head}{MARK}\n\n{tables(runs)}")


def main() -> int:
    """Run the parts, write record and page; return 1 if a case ended as none must."""
    seed, minutes = int(os.environ.get("SEED", "0")), float(os.environ.get("MINUTES", "10"))
    parts = sys.argv[1:] or list(PARTS)
    whole = sum(PARTS[part].share for part in parts)
    runs, bad = record(None), 0
    for part in parts if minutes else ():
        print(f"{PARTS[part].title}: {minutes * PARTS[part].share / whole:.1f} minutes", flush=True)
        ended = perform(part, seed, minutes * PARTS[part].share / whole)
        runs, bad = record(ended), bad + ended.bad
        write(runs)
    write(runs)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
