"""Verdicts on published relations, computed from paired differences."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from fedprune.analysis.verdict import (
    BEATEN,
    HELD,
    NOT_TESTABLE,
    REVERSED,
    SIMPLER,
    UNDECIDED,
    Interval,
    Spread,
    gain_over,
    holm,
    holm_sentence,
    judged,
    p_value,
    resolution_of,
    verdict,
    widest_gain,
)

BASELINE = pd.Series([60.0, 70.0, 80.0, 90.0, 50.0], index=[0, 1, 2, 3, 4])


def above(*gains: float) -> pd.Series:
    return BASELINE + pd.Series(gains, index=BASELINE.index)


METHOD = above(1, 2, 3, 4, 5)


def test_the_interval_is_students_of_the_differences_of_equal_seeds():
    # Differences 1 2 3 4 5: mean 3, s = sqrt(10 / 4) = 1.58114, s / sqrt(5) = 0.70711, t(0.975, 4) = 2.776445:
    # 3 +- 1.96324.
    found = gain_over(METHOD, BASELINE)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((3, 1.036757, 4.963243, 5), abs=1e-5)
    assert gain_over(METHOD.sample(frac=1, random_state=1), BASELINE) == found  # seeds are matched by number, not by place
    assert str(found) == "+3 (+1.04 to +4.96, n = 5)"


def test_the_spread_between_seeds_does_not_matter_only_that_of_the_differences():
    # The baseline's standard deviation is 15.8 points, and yet a gain of 1.9 to 2.1 is certain.
    assert verdict(above(2.0, 2.1, 1.9, 2.0, 2.0), BASELINE).words == HELD


def test_a_seed_that_one_of_them_has_not_does_not_count():
    method = METHOD.drop(4).rename({3: 7})
    method[0] = math.nan
    assert gain_over(method, BASELINE).n == 2  # seeds 1 and 2


def test_where_less_is_better_the_gain_is_how_much_less():
    assert gain_over(BASELINE, METHOD, larger_is_better=False).mean == pytest.approx(3)
    assert verdict(BASELINE, METHOD, larger_is_better=False).words == HELD


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (METHOD, HELD),
        (above(-1, -2, -3, -4, -5), REVERSED),
        (above(1, 1, 1, 1, -2), UNDECIDED),  # mean 0.4, s = 1.342: +-1.67
        (above(0, 0, 0, 0, 0), UNDECIDED),  # exactly as good is not better
        (METHOD[:1], NOT_TESTABLE),
        (METHOD.rename(lambda seed: seed + 10), NOT_TESTABLE),
    ],
)
def test_the_verdict_follows_from_the_interval(method, words):
    assert verdict(method, BASELINE).words == words


def test_three_seeds_that_agree_are_no_evidence_by_themselves():
    # 0.5, 3 and 6 points better: mean 3.17, s = 2.754, t(0.975, 2) = 4.3027: +-6.84.
    assert verdict(above(0.5, 3, 6, math.nan, math.nan), BASELINE).words == UNDECIDED


def test_a_control_that_does_as_well_is_named():
    as_well, weak, worse = above(2, 1, 4, 3, 6), above(1, 1, 1, 1, -2), above(0.1, 0.2, 0.1, 0.2, 0.1)
    judged = verdict(METHOD, BASELINE, {"weak": weak, "standalone": as_well})
    assert (judged.words, judged.control) == (SIMPLER, "standalone")
    assert verdict(METHOD, BASELINE, {"weak": weak}).words == HELD  # it is not shown to beat the baseline
    assert verdict(METHOD, BASELINE, {"worse": worse}).words == HELD  # it does, and the method beats it by 0.9 to 4.9


def test_a_control_whose_interval_over_the_method_is_above_0_beats_it():
    # Method - control is -1 -2 -3 -4 -5: mean -3 +- 1.96324, so the control beats it, whether it is held over the baseline
    # (control 2 4 6 8 10 above it), undecided (1 1 1 1 -2) or as good. The control that is further above is the one named.
    better = above(2, 4, 6, 8, 10)
    found = verdict(METHOD, BASELINE, {"as well": above(2, 1, 4, 3, 6), "better": better})
    assert (found.words, found.control, found.gain.mean) == (BEATEN, "better", pytest.approx(3))
    assert verdict(METHOD, BASELINE, {"better": better, "best": better + 1}).control == "best"
    undecided = above(1, 1, 1, 1, -2)
    assert verdict(undecided, BASELINE, {"better": undecided + pd.Series([1, 2, 3, 4, 5])}).words == BEATEN
    # A method that is below its baseline stays reversed; a control that covers it (0 +- 1.96 around -1) beats nothing.
    assert verdict(above(-1, -2, -3, -4, -5), BASELINE, {"better": better}).words == REVERSED
    assert verdict(undecided, BASELINE, {"near": undecided + pd.Series([-1, 0, 1, 2, 3])}).words == UNDECIDED
    assert verdict(METHOD[:1], BASELINE, {"better": better}).words == NOT_TESTABLE


def test_a_difference_of_few_examples_of_a_shared_test_set_is_undecided():
    # Lottery tickets at home: 348/349, 350/352, 353/354, 347/349 and 352/353 of 359. Differences: -1 -2 -1 -2 -1 examples:
    # mean -1.4, s = 0.547723, 2.776445 s / sqrt(5) = 0.680087: -2.08 to -0.72 examples, or -0.58 to -0.20 points.
    tickets, dense = (pd.Series(right) / 359 for right in ((348, 350, 353, 347, 352), (349, 352, 354, 349, 353)))
    found = verdict(tickets, dense)
    assert found.words == REVERSED
    assert (359 * found.gain.low, 359 * found.gain.high) == pytest.approx((-2.080087, -0.719913))
    assert resolution_of(359) == pytest.approx(0.016713, abs=1e-6) and resolution_of(None) == 0
    assert verdict(tickets, dense, resolution=resolution_of(359)).words == UNDECIDED
    # 2 * (1/2)^6 = 0.03125 is at most 0.05 and 2 * (1/2)^5 = 0.0625 is not: six examples are enough, five are not.
    for examples, words in ((5, UNDECIDED), (6, HELD)):
        ahead = dense + examples / 359
        assert verdict(ahead, dense, resolution=resolution_of(359)).words == words
        beaten = verdict(dense, dense - 0.5, {"ahead": ahead}, resolution=resolution_of(359)).words
        assert beaten == (BEATEN if words == HELD else SIMPLER)
    # With a margin it is the distance to the margin that counts: 10 examples below, of which 5 are allowed.
    assert verdict(dense - 10 / 359, dense, margin=5 / 359, resolution=resolution_of(359)).words == UNDECIDED
    assert verdict(dense - 11 / 359, dense, margin=5 / 359, resolution=resolution_of(359)).words == REVERSED


def test_the_p_value_is_that_of_students_paired_test():
    # Differences 1 2 3 (s = 1, error 1 / sqrt(3)): t = 2 sqrt(3) = 3.464102 with 2 degrees of freedom, whose distribution is
    # F(t) = 1/2 + t / (2 sqrt(2 + t^2)): p = 1 - 3.464102 / sqrt(14) = 0.074180. Against a margin of 1: t = 3 sqrt(3).
    found = gain_over(pd.Series([1.0, 2, 3]), pd.Series([0.0, 0, 0]))
    assert p_value(found) == pytest.approx(0.074180, abs=1e-6)
    assert p_value(found, margin=1) == pytest.approx(1 - math.sqrt(27 / 29), abs=1e-6)
    assert (p_value(Interval(1, 1, 1, 3)), p_value(Interval(0, 0, 0, 3))) == (0, 1)
    assert math.isnan(p_value(Interval(math.nan, math.nan, math.nan, 1)))


def test_holm_by_hand():
    # Of four: 0.01 <= 0.05 / 4 = 0.0125; 0.015 <= 0.05 / 3 = 0.0167; 0.03 > 0.05 / 2 = 0.025, which ends it, also for 0.04.
    assert holm([0.04, 0.015, 0.03, 0.01]) == 2
    assert holm([0.02, 0.001, 0.025]) == 3  # 0.0167, 0.025, 0.05
    assert (holm([0.02, 0.02, 0.02]), holm([])) == (0, 0)
    said = "at 5 %, 2 of 4 comparisons are decided (the smallest p-value is 0.01; the first would have to be at most 0.013)."
    assert holm_sentence([0.04, 0.015, 0.03, 0.01]).endswith(said)
    assert "1 of 2 comparisons is decided" in holm_sentence([0.01, 0.9]) and holm_sentence([]) == ""


def test_to_come_close_can_fail():
    close, far = above(-0.5, -0.4, -0.6, -0.5, -0.5), above(-3, -2.9, -3.1, -3, -3)
    assert verdict(close, BASELINE).words == REVERSED
    assert verdict(close, BASELINE, margin=1.0).words == HELD
    assert verdict(far, BASELINE, margin=1.0).words == REVERSED
    assert verdict(above(-1, -2, 0, -1, -1), BASELINE, margin=1.0).words == UNDECIDED


def test_the_interval_covers_the_truth_in_95_of_100_cases():
    """An independent check: of 1,000 fives of normal numbers around 0, the number whose interval misses 0 is binomial with
    p = 0.05: 50 +- 4 standard deviations of 6.9."""
    numbers = np.random.default_rng(0).normal(size=(1000, 5))
    zero = pd.Series(np.zeros(5))
    misses = sum(not found.low <= 0 <= found.high for found in (gain_over(pd.Series(row), zero) for row in numbers))
    assert 22 <= misses <= 78


# --- from means and standard deviations ---


def test_the_widest_interval_by_hand():
    # 89.0 +- 0.2 against 87.3 +- 0.3 of 3 seeds: t(0.975, 2) / sqrt(3) = 4.302653 / 1.732051 = 2.484138, times 0.2 + 0.3 is
    # 1.242069. Rounded to 0.1 each mean and deviation may be off by 0.05: half is 0.1 + 2.484138 (0.5 + 0.1) = 1.590483.
    exact = widest_gain(Spread(89.0, 0.2, 3), Spread(87.3, 0.3, 3))
    assert (exact.mean, exact.low, exact.high) == pytest.approx((1.7, 0.457931, 2.942069), abs=1e-5)
    rounded = widest_gain(Spread(89.0, 0.2, 3, 0.05), Spread(87.3, 0.3, 3, 0.05))
    assert (rounded.low, rounded.high) == pytest.approx((0.109517, 3.290483), abs=1e-5)
    assert widest_gain(Spread(89.0, 0.2, 3), Spread(87.3, 0.3, 3), larger_is_better=False).high == pytest.approx(-0.457931)


def test_the_widest_interval_covers_that_of_every_pairing_and_the_worst_pairing_has_it():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = pd.Series(rng.normal(80, 3, 5)), pd.Series(rng.normal(78, 1, 5))
        widest = widest_gain(*(Spread(of.mean(), of.std(ddof=1), 5) for of in values))
        found = gain_over(*values)
        assert widest.low <= found.low <= found.high <= widest.high
    rising, falling = pd.Series([1.0, 2, 3]), pd.Series([6.0, 4, 2])
    worst = widest_gain(*(Spread(of.mean(), of.std(ddof=1), 3) for of in (rising, falling)))
    assert gain_over(rising, falling).low == pytest.approx(worst.low)


def test_other_numbers_of_seeds_are_no_pairs():
    with pytest.raises(ValueError, match="3 and 5 seeds are no pairs"):
        widest_gain(Spread(1, 1, 3), Spread(1, 1, 5))


@pytest.mark.parametrize(
    ("low", "high", "margin", "words"),
    [(0.1, 2, 0, HELD), (-0.1, 2, 0, UNDECIDED), (-0.1, 2, 0.2, HELD), (-2, -0.1, 0, REVERSED), (-2, -0.1, 0.2, UNDECIDED)],
)
def test_words_follow_from_the_interval_alone(low: float, high: float, margin: float, words: str):
    assert judged(Interval((low + high) / 2, low, high, 3), margin) == words
