"""What the parts of the campaign share: the environment that they heed, and the row in which they report.

A row is `| part | seed 0 | 1,000 cases | 990 refused | 10 sane | ...`: after the seed, numbers with what they count.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """What to do: one case, so many, or as many as come before a moment."""

    seed: int
    only: int | None
    most: int | None
    ends: float

    def numbers(self) -> Iterator[int]:
        """Yield the numbers of the cases to do, for as long as there is time."""
        if self.only is not None:
            yield self.only
            return
        number = 0
        while number < self.most if self.most is not None else time.monotonic() < self.ends:
            yield number
            number += 1


def asked() -> Asked:
    """Read SEED, CASE, CASES and MINUTES from the environment."""
    only, most = (int(os.environ[name]) if name in os.environ else None for name in ("CASE", "CASES"))
    return Asked(int(os.environ.get("SEED", "0")), only, most, time.monotonic() + 60 * float(os.environ.get("MINUTES", "1")))


def again(part: str, seed: int, number: int) -> str:
    """Return the command that repeats a case."""
    return f"CASE={number} SEED={seed} python tests/campaign/{part}.py"


def row(part: str, seed: int, cases: int, counts: Mapping[str, int]) -> str:
    """Return the row of a part."""
    return (
        " | ".join(
            [f"| {part}", f"seed {seed}", f"{cases:,} cases", *(f"{number:,} {name}" for name, number in counts.items())]
        )
        + " |"
    )


def counted(row: str) -> dict[str, int]:
    """Return the numbers of a row by what they count; other cells, such as `slowest 0.1 s`, are left out."""
    found = (re.fullmatch(r"([\d,]+) (\D+)", cell.strip()) for cell in row.split("|"))
    return {each[2]: int(each[1].replace(",", "")) for each in found if each}
