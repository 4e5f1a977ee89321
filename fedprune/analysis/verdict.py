"""Judge a published relation, "the method beats its baseline", by runs that share their seeds.

    d_s    = (the method's metric - the baseline's) of seed s; both have the same split, initial weights and cohorts
    margin = how far below the baseline the claim lets the method be: 0 for "beats", say 0.01 for "within one point of"

The verdict follows from the 95 % interval of the mean of d_s + margin, and from nothing else:

    not testable here                    fewer than two seeds have both
    held                                 the interval lies above 0
    held, but so does a simpler control  it does, a control's does, too, and the method is not shown to beat the control
    reversed                             it lies below 0
    undecided                            it covers 0, or the difference is below the resolution of the test set
    beaten by a simpler control          not reversed, and a control's paired interval over the method lies above 0
    not comparable                       the two differ in what the claim needs to be equal (`fedprune.analysis.claims`)

The interval is Student's (1908): mean +- t(0.975, n - 1) s / sqrt(n), with s their sample standard deviation.
A bootstrap over seeds would be too sure of itself: of normal differences the percentile interval covers the mean in 74 % of
cases at n = 3, in 83 % at 5 and in 89 % at 10, Student's in 95 % at each (4,000 simulations, 1,000 resamples each).

Student's interval is about other seeds. Where all seeds share one test set, it leaves out that the set is a sample, too, and
a difference of one image can look certain. So such a difference has to be worth DISCORDANT test examples (`resolution_of`):
by McNemar's (1947) exact test, even if all b examples on which two networks differ favour one of them, p = 2 / 2^b, which is
0.0625 at 5 and 0.031 at 6. It is the least that can be asked without the predictions; a difference that passes is not yet
shown to hold on another test set. Where each seed draws the test examples anew, as those of clients are, the interval
has this in it.

Of a table that gives means and standard deviations only, `widest_gain` returns the widest interval that the runs can have, and
`judged` the verdict on it: "held" and "reversed" are then as sure as from the runs, and "undecided" says less than they would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

HELD, SIMPLER, REVERSED = "held", "held, but so does a simpler control", "reversed"
UNDECIDED, NOT_TESTABLE = "undecided", "not testable here"
BEATEN, NOT_COMPARABLE = "beaten by a simpler control", "not comparable"

LEVEL = 0.95

DISCORDANT = 6
"""The fewest test examples, all in favour of one of two networks, by which McNemar's exact test tells them apart at 5 %."""


@dataclass(frozen=True)
class Spread:
    """A mean over n seeds and its sample standard deviation, each rounded to a multiple of 2 `rounding`."""

    mean: float
    sd: float
    n: int
    rounding: float = 0.0


@dataclass(frozen=True)
class Interval:
    """The mean of n paired differences, and its confidence interval from `low` to `high`; all NaN if n < 2."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.3g} ({self.low:+.3g} to {self.high:+.3g}, n = {self.n})"


@dataclass(frozen=True)
class Verdict:
    """A verdict in words, the interval of the method's gain over the baseline, and the control that does as well or better."""

    words: str
    gain: Interval
    control: str | None = None


def gain_over(method: pd.Series, other: pd.Series, larger_is_better: bool = True, level: float = LEVEL) -> Interval:
    """Return the interval of how much better the method is than another, by the seeds that both have.

    Both map seeds to a metric; NaN is no value. Gains are positive where the method is better, in the metric's own unit.
    """
    from scipy.stats import t as student  # takes half a second to import

    paired = (method.astype(float) - other.astype(float)).dropna()
    gains, n = paired if larger_is_better else -paired, len(paired)
    if n < 2:
        return Interval(math.nan, math.nan, math.nan, n)
    half = float(student.ppf((1 + level) / 2, n - 1)) * float(gains.std(ddof=1)) / math.sqrt(n)
    mean = float(gains.mean())
    return Interval(mean, mean - half, mean + half, n)


def widest_gain(method: Spread, other: Spread, larger_is_better: bool = True, level: float = LEVEL) -> Interval:
    """Return the widest interval that the paired differences of two cells of a table can have.

    The standard deviation of differences is at most the sum of the two (it is, if one rises by just as the other falls); means
    and deviations may be off by their rounding. Raises ValueError if the two have other numbers of seeds.
    """
    from scipy.stats import t as student  # takes half a second to import

    if method.n != other.n:
        raise ValueError(f"{method.n} and {other.n} seeds are no pairs")
    off = method.rounding + other.rounding
    mean = (method.mean - other.mean) * (1 if larger_is_better else -1)
    half = float(student.ppf((1 + level) / 2, method.n - 1)) * (method.sd + other.sd + off) / math.sqrt(method.n) + off
    return Interval(mean, mean - half, mean + half, method.n)


def resolution_of(test_examples: int | None) -> float:
    """Return the smallest difference of accuracies (a fraction) that counts on a test set that all seeds share; None: 0."""
    return DISCORDANT / test_examples if test_examples else 0.0


def judged(gain: Interval, margin: float = 0.0, resolution: float = 0.0) -> str:
    """Return the verdict that follows from an interval, without a look at controls.

    resolution: how far from `-margin` the mean has to be, in the metric's unit (`resolution_of`).
    """
    if gain.n < 2:
        return NOT_TESTABLE
    if abs(gain.mean + margin) < resolution * (1 - 1e-9):  # six examples are enough, also after rounding
        return UNDECIDED
    if gain.high < -margin:
        return REVERSED
    return HELD if gain.low > -margin else UNDECIDED


def verdict(
    method: pd.Series,
    baseline: pd.Series,
    controls: Mapping[str, pd.Series] | None = None,
    margin: float = 0.0,
    larger_is_better: bool = True,
    resolution: float = 0.0,
) -> Verdict:
    """Return the verdict on "the method beats the baseline" (see above).

    method, baseline, controls: seed -> metric. controls: simpler methods, by name. margin, resolution: in the metric's unit.
    """
    gain = gain_over(method, baseline, larger_is_better)
    words = judged(gain, margin, resolution)
    if words in (NOT_TESTABLE, REVERSED):
        return Verdict(words, gain)
    over = {name: gain_over(method, control, larger_is_better) for name, control in (controls or {}).items()}
    lost = [name for name, found in over.items() if judged(found, resolution=resolution) == REVERSED]
    if lost:
        return Verdict(BEATEN, gain, min(lost, key=lambda name: over[name].mean))
    if words == HELD:
        for name, control in (controls or {}).items():
            as_good = gain_over(control, baseline, larger_is_better).low > -margin
            if as_good and not over[name].low > 0:
                return Verdict(SIMPLER, gain, name)
    return Verdict(words, gain)


def p_value(gain: Interval, margin: float = 0.0, level: float = LEVEL) -> float:
    """Return the two-sided p-value of Student's paired test that the mean is `-margin`; NaN if n < 2. level: the interval's."""
    from scipy.stats import t as student  # takes half a second to import

    if gain.n < 2:
        return math.nan
    error = (gain.high - gain.low) / (2 * float(student.ppf((1 + level) / 2, gain.n - 1)))
    if error == 0:
        return 0.0 if gain.mean != -margin else 1.0
    return 2 * float(student.sf(abs(gain.mean + margin) / error, gain.n - 1))


def holm(p_values: Sequence[float], alpha: float = 1 - LEVEL) -> int:
    """Return how many hypotheses Holm (1979) rejects, so that the chance of a single false rejection is at most alpha.

    Ascending, the i-th of m p-values (from 0) is compared with alpha / (m - i); the first that is larger ends it.
    """
    count = len(p_values)
    fits = [p <= alpha / (count - i) for i, p in enumerate(sorted(p_values))]
    return fits.index(False) if False in fits else count


def holm_sentence(p_values: Sequence[float]) -> str:
    """Return what Holm's correction leaves of many comparisons, as a sentence; "" if there are none."""
    if not p_values:
        return ""
    left, count, alpha = holm(p_values), len(p_values), 1 - LEVEL
    kept = f"{left} of {count} comparisons {'is' if left == 1 else 'are'}"
    return (
        f"Corrected for all of them by Holm's method at {100 * alpha:.2g} %, {kept} decided "
        f"(the smallest p-value is {min(p_values):.2g}; the first would have to be at most {alpha / count:.2g})."
    )
