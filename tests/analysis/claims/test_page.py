"""The table of claims and its place in a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedprune.analysis.claims import METRICS, Claim, Measured
from fedprune.analysis.claims.__main__ import main
from fedprune.analysis.claims.judge import Judgement
from fedprune.analysis.claims.page import between, claims_markdown, filled
from fedprune.analysis.verdict import BEATEN, HELD, NOT_COMPARABLE, NOT_TESTABLE, SIMPLER, UNDECIDED, Interval, Verdict
from fedprune.errors import FedpruneError

CLIENT, TUNED, _ = METRICS
NOTHING = Interval(float("nan"), float("nan"), float("nan"), 0)
CLAIM = Claim("A beats B", "A 2020", Measured("a", TUNED), (Measured("b", CLIENT),), home="a", note="Read this.")


def judged() -> list[Judgement]:
    base, close = (
        CLAIM.baselines[0],
        Claim("C is close", "C 2021", Measured("c", CLIENT), (Measured("b", CLIENT),), margin=0.01),
    )
    return [
        Judgement(CLAIM, base, 0.1, Verdict(SIMPLER, Interval(3.11, 2.67, 3.53, 3), "standalone")),
        Judgement(CLAIM, base, 0.05, Verdict(UNDECIDED, Interval(3.33, -2.92, 9.58, 3))),
        Judgement(close, base, 1.0, Verdict(HELD, Interval(-0.5, -0.75, -0.25, 3)), not_run=("d",)),
        Judgement(close, base, 0.1, Verdict(NOT_TESTABLE, NOTHING), reason="c was not run"),
        Judgement(close, base, 0.2, Verdict(BEATEN, Interval(1, -1, 3, 3), "d")),
        Judgement(close, base, 0.3, Verdict(NOT_COMPARABLE, Interval(1, -1, 3, 3)), reason="bytes 39 against 24 MB"),
    ]


def test_the_table_has_a_row_per_comparison_and_counts_above_it():
    text = claims_markdown(judged(), homes=["a"])
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| A beats B (A 2020); [at home](home/a.md) | `a` after local training - `b` | 0.1 | +3.1 (+2.7 to +3.5) | "
        "held, but so does a simpler control: standalone |",
        "|  | `a` after local training - `b` | 0.05 | +3.3 (-2.9 to +9.6) | undecided |",
        "| C is close (C 2021), by at most 1 point below | `c` - `b` | none | -0.5 (-0.8 to -0.2) | held; not run: d |",
        "|  | `c` - `b` | 0.1 |  | not testable here: c was not run |",
        "|  | `c` - `b` | 0.2 | +1.0 (-1.0 to +3.0) | beaten by a simpler control: d |",
        "|  | `c` - `b` | 0.3 | +1.0 (-1.0 to +3.0) | not comparable: bytes 39 against 24 MB |",
    ]
    counts = "1 *held*, 1 *held, but so does a simpler control*, 1 *beaten by a simpler control*, 0 *reversed*, 1 *undecided*."
    assert text.startswith(f"2 claims, 6 comparisons, of which 4 can be judged here: {counts} 1 is *not comparable*.")
    # Of 3.11 (2.67 to 3.53): error 0.43 / 4.302653 = 0.099938, t = 31.1193, p = 1 - t / sqrt(2 + t^2) = 0.00103. It is below
    # 0.05 / 4 = 0.0125. The next: -0.5 and a margin of 1 point (-0.75 to -0.25), error 0.058104, t = 8.6053: p = 0.01323 is
    # below 0.05 / 3 = 0.01667. Then 3.33 (-2.92 to 9.58): error 1.452593, t = 2.2925: p = 0.149 is above 0.025.
    assert "2 of 4 comparisons are decided (the smallest p-value is 0.001; the first would have to be at most 0.013)" in text
    # 2.5 % of 4 comparisons is 0.1.
    assert "So 4 comparisons have about 0.1 *held* and 0.1 *reversed* by chance" in text
    assert "- *A beats B*: Read this." in text
    assert "](home/a.md)" not in claims_markdown(judged(), homes=[])


def test_a_page_is_filled_between_its_markers():
    page = "before\n<!-- claims -->\nold\n<!-- /claims -->\nafter\n"
    assert filled(page, "claims", "new\n") == "before\n<!-- claims -->\n\nnew\n\n<!-- /claims -->\nafter\n"
    assert between(filled(page, "claims", "new\n"), "claims") == "new"
    with pytest.raises(FedpruneError, match="put the lines <!-- methods --> and <!-- /methods --> into it, once"):
        filled(page, "methods", "new")


def test_the_command_judges_again_from_the_values_beside_the_page(tmp_path: Path, capsys):
    page = tmp_path / "bench.md"
    page.write_text("<!-- claims -->\n<!-- /claims -->\n")
    entry = {
        "claim": "a beats b",
        "source": "A",
        "method": "a",
        "baselines": ["b"],
        "metric": CLIENT,
        "densities": [0.1],
        "equal": [],
    }
    (tmp_path / "bench_claims.yaml").write_text(yaml.safe_dump([entry]))
    with pytest.raises(SystemExit):
        main([str(page)])
    assert "bench_runs.csv does not exist; name the folder of the runs" in capsys.readouterr().err
    rows = [f"0.1,{method},{seed},{value + seed / 10}" for method, value in (("a", 0.53), ("b", 0.5)) for seed in range(3)]
    (tmp_path / "bench_runs.csv").write_text("\n".join([f"density,method,seed,{CLIENT}", *rows]))
    main([str(page)])
    assert "+3.0 (+3.0 to +3.0) | held |" in page.read_text()
