"""The comparisons of a home: the method with its baseline and with each control, by the seeds that both have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedprune.analysis.home.evidence import Evidence
from fedprune.analysis.home.units import larger_is_better
from fedprune.analysis.verdict import DISCORDANT, UNDECIDED, Interval, Verdict, gain_over, verdict
from fedprune.analysis.verdict import judged as interval_says
from fedprune.config.home import Compared

TOO_FEW = 2
"""Seeds that an interval needs, at least."""


@dataclass(frozen=True)
class Judgement:
    """A verdict, and what it follows from.

    reason: why there is no verdict; "" if there is one. over: how much better the method is than each control, by its words.
    controls: how much better each control is than the baseline. untested: why a control cannot be compared.
    """

    verdict: Verdict
    reason: str
    over: Mapping[str, Interval]
    controls: Mapping[str, Interval]
    untested: Mapping[str, str]


def judge(evidence: Evidence) -> Judgement:
    """Return the verdict on a home's claim."""
    home = evidence.home
    larger = larger_is_better(home.method.metric, evidence.metric)
    method, baseline = (evidence.of(each).series(each.metric) for each in (home.method, home.baseline))
    controls = {words: evidence.of(each).series(each.metric) for words, each in home.controls.items()}
    return Judgement(
        verdict=verdict(method, baseline, controls, home.margin, larger, evidence.resolution),
        reason=_reason(evidence, home.method) or _reason(evidence, home.baseline) or _apart(evidence),
        over={words: gain_over(method, control, larger) for words, control in controls.items()},
        controls={words: gain_over(control, baseline, larger) for words, control in controls.items()},
        untested={words: why for words, each in home.controls.items() if (why := _reason(evidence, each))},
    )


def too_fine(evidence: Evidence, judged: Verdict) -> str:
    """Return how many test examples the difference is worth, if it is undecided for that alone; else ""."""
    margin, resolution = evidence.home.margin, evidence.resolution
    if judged.words != UNDECIDED or not resolution or interval_says(judged.gain, margin) == UNDECIDED:
        return ""
    worth = abs(judged.gain.mean + margin) * (evidence.test_examples or 0)
    beyond = " beyond the margin" if margin else ""
    return f"{worth:.1f} of {evidence.test_examples} test examples{beyond}; fewer than {DISCORDANT} decide nothing"


def _reason(evidence: Evidence, compared: Compared) -> str:
    """Return why a side of a comparison has no numbers; "" if it has."""
    measured = evidence.of(compared)
    seeds = measured.values.get(compared.metric, {})
    if len(seeds) >= TOO_FEW:
        return ""
    if measured.lacking:
        return f"of {compared.run} {measured.lacking}"
    if not seeds:
        return f"runs of {compared.run} have no {compared.metric}"
    return f"{compared.run} was run with {len(seeds)} seed, and an interval needs {TOO_FEW}"


def _apart(evidence: Evidence) -> str:
    """Return that the method and the baseline share too few seeds, if that is so."""
    home = evidence.home
    method, baseline = (set(evidence.of(each).values[each.metric]) for each in (home.method, home.baseline))
    if len(method & baseline) >= TOO_FEW:
        return ""
    return f"{home.method.run} and {home.baseline.run} share fewer than {TOO_FEW} seeds"
