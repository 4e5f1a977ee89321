"""Claims are read from a yaml, and what is wrong with one is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedprune.analysis.claims import METRICS, Claim, Measured, load_claims
from fedprune.errors import FedpruneError

CLIENT, TUNED, _ = METRICS
LEAST = {"claim": "a beats b", "source": "A 2020", "method": "a", "baselines": ["b"], "metric": CLIENT, "equal": []}


def written(folder: Path, entry: object) -> Path:
    path = folder / "claims.yaml"
    path.write_text(yaml.safe_dump([entry]))
    return path


def test_a_claim_has_defaults(tmp_path):
    assert load_claims(written(tmp_path, LEAST)) == [
        Claim("a beats b", "A 2020", Measured("a", CLIENT), (Measured("b", CLIENT),), densities=(0.1, 0.05))
    ]


def test_each_method_may_have_a_metric_of_its_own(tmp_path):
    controls = ["c", {"method": "b", "metric": TUNED}]
    full = {
        **LEAST,
        "controls": controls,
        "margin": 0.01,
        "equal": ["bytes", "flops"],
        "densities": [1],
        "home": "a",
        "note": "n",
    }
    (claim,) = load_claims(written(tmp_path, full))
    assert claim.controls == (Measured("c", CLIENT), Measured("b", TUNED))
    assert (claim.margin, claim.equal, claim.densities, claim.home, claim.note) == (0.01, ("bytes", "flops"), (1.0,), "a", "n")
    assert [str(each) for each in claim.measured] == ["a", "b", "c", "b"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metrik": CLIENT}, "no claim has the key metrik; the keys are baselines, claim, controls"),
        ({"metric": "client/f1"}, f"b is measured by 'client/f1'; choose one of {CLIENT}, {TUNED}"),
        ({"equal": ["width"]}, r"equal has 'width'; choose from density, bytes, flops, or write `equal: \[\]`"),
        ({"baselines": []}, r"baselines is empty; name at least one method, as in `baselines: \[fedavg\]`"),
    ],
)
def test_an_error_names_the_claim_and_the_value(tmp_path, change, said):
    with pytest.raises(FedpruneError, match=f"claim 'a beats b': {said}"):
        load_claims(written(tmp_path, {**LEAST, **change}))


def test_a_missing_key_and_a_file_that_is_no_list_are_said(tmp_path):
    with pytest.raises(FedpruneError, match="the key metric is missing; add `metric: ...`"):
        load_claims(written(tmp_path, {key: value for key, value in LEAST.items() if key != "metric"}))
    path = tmp_path / "other.yaml"
    path.write_text("claim: x")
    with pytest.raises(FedpruneError, match="begin each with `- claim: ...`"):
        load_claims(path)
