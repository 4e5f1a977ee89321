"""The claims of docs/benchmark.md: each names methods that the benchmark runs, and the page is up to date with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedprune.analysis.by_method import WITHOUT
from fedprune.analysis.claims import Claim, load_claims
from fedprune.analysis.claims.__main__ import judged, values_of
from fedprune.analysis.claims.page import between
from fedprune.config import CONF

PAGE = Path(__file__).parents[2] / "docs" / "benchmark.md"
CLAIMS = load_claims(PAGE.with_name("benchmark_claims.yaml"))


def densities() -> dict[str, set[float]]:
    """Return the densities at which the two sweeps of the benchmark run each method."""
    found: dict[str, set[float]] = {}
    for name in ("benchmark_without_density", "benchmark"):
        swept = OmegaConf.load(CONF / "experiment" / f"{name}.yaml").hydra.sweeper.params
        for method in swept["+experiment@_global_"].split(","):
            found.setdefault(method.strip().removeprefix("benchmark/"), set()).update(map(float, swept.density.split(",")))
    return found


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.claim)
def test_every_method_of_a_claim_is_run_at_its_densities(claim: Claim):
    run = densities()
    for measured in claim.measured:
        assert (PAGE.parents[1] / "conf" / "experiment" / "benchmark" / f"{measured.method}.yaml").exists()
        assert run[measured.method] == {WITHOUT} or set(claim.densities) <= run[measured.method]
    alone = run[claim.method.method] == {WITHOUT} and all(run[each.method] == {WITHOUT} for each in claim.baselines)
    assert (claim.densities == (WITHOUT,)) == alone  # the same difference is published once


def test_no_claim_is_there_twice():
    assert len({claim.claim for claim in CLAIMS}) == len(CLAIMS)


def test_the_page_is_up_to_date_with_its_claims():
    """With the values by seed its table is what they say; the first edition, without them, says that it was judged by means."""
    text = between(PAGE.read_text(), "claims")
    if values_of(PAGE).exists():
        assert text == judged(PAGE).strip()
    else:
        assert text.startswith("**Judged from the means")
        words = re.sub(r"\W+", " ", text)
        assert [method for method in METHODS if method not in words] == []


METHODS = ("FedDST", "SynFlow", "SalientGrads", "GraSP", "LTH", "FedMap", "FedDIP", "PruneFL", "FedTiny", "FLASH", "LotteryFL")
METHODS += ("Sub FedAvg", "Hermes", "DisPFL", "FjORD", "HeteroFL", "FedProx", "SCAFFOLD", "ZeroFL", "FedPM")
"""The methods of the claims, in words."""
