"""From made-up runs to verdicts, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from fedprune.analysis.claims import METRICS, Claim, Measured, by_seed, judge, outcomes
from fedprune.analysis.read import METHOD
from fedprune.analysis.verdict import BEATEN, HELD, NOT_COMPARABLE, NOT_TESTABLE, REVERSED, UNDECIDED

CLIENT, TUNED, TEST = METRICS

# method: {density: client accuracies (%) of seeds 0, 1, 2}
RUNS = {
    "base": {0.1: (60, 70, 80), 0.05: (50, 60, 70)},
    "good": {0.1: (63, 73, 83.3), 0.05: (51, 66, 73)},
    "near": {0.1: (59.5, 69.4, 79.6), 0.05: (48, 58, 68.1)},
    "dense": {1.0: (64, 74, 84)},
}


def runs() -> pd.DataFrame:
    rows = [
        {"run": f"{method}{density}{seed}", "status": "done", METHOD: f"benchmark/{method}", "density": density, "seed": seed}
        | {CLIENT: value / 100, TEST: 0.5}
        for method, cells in RUNS.items()
        for density, values in cells.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def claim(method: str = "good", baseline: str = "base", metric: str = CLIENT, **options: object) -> Claim:
    return replace(Claim("c", "s", Measured(method, metric), (Measured(baseline, metric),)), **options)


def words(of: Claim) -> list[str]:
    return [judgement.verdict.words for judgement in judge(of, outcomes(runs()))]


def test_a_difference_is_in_points_between_runs_of_a_seed():
    # At 0.1: 3, 3, 3.3: mean 3.1, s = sqrt((0.01 + 0.01 + 0.04) / 2) = 0.173205, s / sqrt(3) = 0.1, t(0.975, 2) = 4.302653.
    # At 0.05: 1, 6, 3: mean 10 / 3, s = sqrt((5.4444 + 7.1111 + 0.1111) / 2) = 2.516611, / sqrt(3) = 1.452966: +-6.25161.
    dense, sparse = judge(claim(), outcomes(runs()))
    assert (dense.density, sparse.density) == (0.1, 0.05)
    gain = dense.verdict.gain
    assert (gain.mean, gain.low, gain.high, gain.n) == pytest.approx((3.1, 2.6697347, 3.5302653, 3))
    gain = sparse.verdict.gain
    assert (gain.mean, gain.low, gain.high) == pytest.approx((3.333333, -2.918276, 9.584943), abs=1e-5)
    assert [dense.verdict.words, sparse.verdict.words] == [HELD, UNDECIDED]


def test_to_come_close_is_within_the_margin_in_points():
    # At 0.1: -0.5, -0.6, -0.4: mean -0.5, s = 0.1: +-0.2484, above -1. At 0.05: -2, -2, -1.9: -1.9667 +-0.1434, below -1.
    assert words(claim("near")) == [REVERSED, REVERSED]
    assert words(claim("near", margin=0.01)) == [HELD, REVERSED]


def test_a_method_without_a_density_stands_at_every_density_and_controls_count():
    # At 0.1 `dense` is 4 points above the base in each seed, and `good` 1, 1, 0.7 below it (mean 0.9 +- 0.43): it is beaten.
    first, second = judge(claim(controls=(Measured("dense", CLIENT),)), outcomes(runs()))
    assert (first.verdict.words, first.verdict.control) == (BEATEN, "dense")
    # At 0.05 it is 13, 8, 11 above `good`: mean 10.67 +- 6.25.
    assert second.verdict.words == BEATEN
    (alone,) = judge(claim("dense", "dense", densities=(1.0,)), outcomes(runs()))
    assert (alone.verdict.gain.mean, alone.verdict.words) == (0, UNDECIDED)


def test_what_was_not_run_or_not_measured_is_not_testable_and_why_is_said():
    values = outcomes(runs())

    def reasons(of: Claim) -> list[str]:
        judgements = judge(of, values)
        assert {judgement.verdict.words for judgement in judgements} == {NOT_TESTABLE}
        return [judgement.reason for judgement in judgements]

    assert reasons(claim("absent")) == ["absent was not run"] * 2
    assert reasons(claim(metric=TUNED)) == [f"the runs of good have no {TUNED} at this density"] * 2
    assert reasons(claim("dense", densities=(1.0,))) == ["the runs of base have no client/accuracy_mean at this density"]
    values = values[(values["method"] != "good") | (values["seed"] == 2)]
    assert reasons(claim()) == ["1 seeds have both; an interval needs 2"] * 2


def test_a_control_that_was_not_run_is_named_and_cannot_weaken_the_claim():
    first, _ = judge(claim(controls=(Measured("absent", CLIENT), Measured("dense", TUNED))), outcomes(runs()))
    assert first.verdict.words == HELD
    assert first.not_run == ("absent", "dense after local training")


def test_values_are_of_runs_that_are_done_by_method_and_seed():
    frame = runs()
    frame.loc[frame["run"] == "good0.11", "status"] = "failed"
    values = outcomes(frame)
    assert by_seed(values, "good", CLIENT, 0.1).to_dict() == pytest.approx({0: 0.63, 2: 0.833})
    assert list(values["density"].unique()) == [1.0, 0.1, 0.05]
    assert math.isnan(values[TUNED].max())


def with_costs(**of_method: tuple[float, float, float]) -> pd.DataFrame:
    """Return the values with megabytes up, megabytes down and GFLOPs of every run of a method."""
    columns = {"total/up_bytes": 1e6, "total/down_bytes": 1e6, "total/flops": 1e9}
    values = outcomes(runs()).drop(columns=list(columns))
    costs = {name: values["method"].map({method: of[i] for method, of in of_method.items()}) for i, name in enumerate(columns)}
    return values.assign(**{name: cost * columns[name] for name, cost in costs.items()})


def test_a_pair_that_is_unequal_in_what_the_claim_needs_equal_is_not_comparable():
    # 4 + 7 = 11 MB are 10 % more than 5 + 5, which is the most that is allowed; 605 GFLOPs are 62 % more than 373.
    values = with_costs(good=(4, 7, 605), base=(5, 5, 373), near=(5, 6.01, 373))
    assert [each.verdict.words for each in judge(claim(equal=("bytes",)), values)] == [HELD, UNDECIDED]
    first, second = judge(claim(equal=("bytes", "flops")), values)
    assert (first.verdict.words, second.verdict.words) == (NOT_COMPARABLE, NOT_COMPARABLE)
    assert (first.reason, first.testable) == ("flops 605 against 373 GFLOPs", False)
    assert first.verdict.gain.mean == pytest.approx(3.1)  # the difference is shown all the same
    (near, _) = judge(claim("near", equal=("bytes",)), values)  # also where the other sends less
    assert near.reason == "bytes 11 against 10 MB" and near.verdict.words == NOT_COMPARABLE


def test_equal_density_is_the_density_of_the_comparison_and_unknown_costs_are_not_equal():
    values = with_costs(good=(4, 6, 1), base=(4, 6, 1))
    assert {each.verdict.words for each in judge(claim(equal=("density",)), values)} == {HELD, UNDECIDED}
    (first, _) = judge(claim("good", "dense", equal=("density",)), values)
    assert (first.verdict.words, first.reason) == (NOT_COMPARABLE, "dense without this density")
    (first, _) = judge(claim("good", "dense", equal=("bytes",)), values)
    assert (first.verdict.words, first.reason) == (NOT_COMPARABLE, "bytes 10 against nan MB")
