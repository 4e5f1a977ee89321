"""Fill the last two columns, `gain (95 %)` and `verdict`, of the tables of claims: `make verdicts`.

A table of claims is one whose header ends with MEASURED, GAIN, VERDICT. In the column `measured` stands one of

    +1.25 +0.90 +1.41                  the differences of equal seeds: the interval is Student's of them
    89.0 ± 0.2 against 87.3 ± 0.2      two cells of a table of 3 seeds: the widest interval that their runs can have, with
                                       rounding (fedprune.analysis.verdict.widest_gain)

each with `less is better` or `margin 0.5` behind it where that is so. The words follow from the interval alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from fedprune.analysis.verdict import Interval, Spread, gain_over, judged, widest_gain

MEASURED, GAIN, VERDICT = "measured", "gain (95 %)", "verdict"

SEEDS = 3
"""The seeds of tables that give means and standard deviations."""

DOCS = Path(__file__).parent
PAGES = [
    DOCS / "tickets_in_fedavg.md",
    DOCS / "founding_papers_federated.md",
    DOCS / "reproductions.md",
    DOCS / "taxonomy_grid.md",
]

NUMBER = r"[\d,]+(?:\.\d+)?"
CELLS = re.compile(rf"({NUMBER}) ± ({NUMBER}) against ({NUMBER}) ± ({NUMBER})")
PAIRED = re.compile(r"(?<![\w.])[+-]\d+(?:\.\d+)?")
MARGIN = re.compile(rf"margin ({NUMBER})")


def filled(page: str) -> str:
    """Return the text of a page with both columns of each table of claims computed anew."""
    lines, inside = page.split("\n"), False
    for i, line in enumerate(lines):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells[-3:] == [MEASURED, GAIN, VERDICT])
        if inside and (CELLS.search(cells[-3]) or PAIRED.search(cells[-3])):
            lines[i] = f"| {' | '.join([*cells[:-2], *columns(cells[-3])])} |"
    return "\n".join(lines)


def columns(measured: str) -> tuple[str, str]:
    """Return the gain and the verdict of what was measured, as texts."""
    margin = MARGIN.search(measured)
    gain, digits = _gain(measured)
    text = f"{gain.mean:+.{digits}f} ({gain.low:+.{digits}f} to {gain.high:+.{digits}f})"
    return text, judged(gain, _number(margin[1]) if margin else 0.0)


def _gain(measured: str) -> tuple[Interval, int]:
    """Return the interval, and the digits after the point to show."""
    larger_is_better = "less is better" not in measured
    if cells := CELLS.search(measured):
        method, other = (_spread(*cells.group(i, i + 1)) for i in (1, 3))
        return widest_gain(method, other, larger_is_better), _decimals(cells[1])
    differences = pd.Series([float(number) for number in PAIRED.findall(measured)])
    return gain_over(differences, differences * 0, larger_is_better), 2


def _spread(mean: str, sd: str) -> Spread:
    return Spread(_number(mean), _number(sd), SEEDS, rounding=_unit(mean) / 2)


def _unit(text: str) -> float:
    """Return the unit of the last digit; of large whole numbers ending in 0, which are rounded to tens, 10."""
    return 10.0 if "." not in text and text.endswith("0") else 10.0 ** -_decimals(text)


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def main() -> None:
    """Write the pages whose columns have changed, and print their names."""
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        if (after := filled(before)) != before:
            page.write_text(after, encoding="utf-8")
            sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main()
