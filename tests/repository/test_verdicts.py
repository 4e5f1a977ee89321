"""The verdicts of the pages' tables of claims are those that follow from the numbers beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"

with pytest.MonkeyPatch.context() as patched_path:
    patched_path.syspath_prepend(DOCS)
    import verdicts

HEAD = "| claim | measured | gain (95 %) | verdict |\n| --- | --- | ---: | --- |\n"


@pytest.mark.parametrize("page", verdicts.PAGES, ids=lambda page: page.name)
def test_the_columns_of_a_page_are_up_to_date(page: Path):
    text = page.read_text()
    assert verdicts.filled(text) == text, "type make verdicts"


@pytest.mark.parametrize(
    ("measured", "gain", "words"),
    [
        # Mean 2, s = 1, t(0.975, 2) / sqrt(3) = 2.484138.
        ("+1.00 +2.00 +3.00", "+2.00 (-0.48 to +4.48)", "undecided"),
        ("+1.00 +2.00 +3.00, margin 0.5", "+2.00 (-0.48 to +4.48)", "held"),
        ("-11.0 -12.0 -13.0", "-12.00 (-14.48 to -9.52)", "reversed"),
        ("-11.0 -12.0 -13.0, less is better", "+12.00 (+9.52 to +14.48)", "held"),
        # 0.1 + 2.484138 (0.2 + 0.3 + 0.1) = 1.590483 on either side of 1.7.
        ("89.0 ± 0.2 against 87.3 ± 0.3", "+1.7 (+0.1 to +3.3)", "held"),
        # Tens: 10 + 2.484138 (610 + 310 + 10) = 2320.2 on either side of 2600.
        ("1,470 ± 610 against 4,070 ± 310, less is better", "+2600 (+280 to +4920)", "held"),
    ],
)
def test_the_columns_by_hand(measured: str, gain: str, words: str):
    assert verdicts.columns(measured) == (gain, words)
    row = f"| a claim | {measured} |"
    assert verdicts.filled(f"{HEAD}{row} ? | ? |\n") == f"{HEAD}{row} {gain} | {words} |\n"


def test_other_tables_and_rows_without_numbers_stay_as_they_are():
    text = f"| a | b |\n|---|---|\n| 1 ± 1 against 2 ± 1 | x |\n\n{HEAD}| a claim | not measured here | | not testable here |\n"
    assert verdicts.filled(text) == text
