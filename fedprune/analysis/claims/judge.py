"""The verdict on a claim, from the values of its methods by seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from fedprune.analysis.claims.claim import Claim, Measured
from fedprune.analysis.claims.equal import unequal
from fedprune.analysis.claims.outcomes import WORDS, by_seed
from fedprune.analysis.verdict import NOT_COMPARABLE, NOT_TESTABLE, Verdict, verdict

POINTS = 100
"""Points (of a hundred) in a fraction."""


@dataclass(frozen=True)
class Judgement:
    """The verdict on one claim against one baseline at one density.

    reason: why it is not testable or not comparable, else empty. not_run: the controls without a value, which could not change
    the verdict.
    """

    claim: Claim
    baseline: Measured
    density: float
    verdict: Verdict
    reason: str = ""
    not_run: tuple[str, ...] = ()

    @property
    def testable(self) -> bool:
        """Return whether the runs say anything of it."""
        return self.verdict.words not in (NOT_TESTABLE, NOT_COMPARABLE)


def judge(claim: Claim, values: pd.DataFrame) -> list[Judgement]:
    """Return a judgement per baseline and density, with gains in points. values: from `outcomes`."""
    return [_judge(claim, baseline, density, values) for baseline in claim.baselines for density in claim.densities]


def _judge(claim: Claim, baseline: Measured, density: float, values: pd.DataFrame) -> Judgement:
    method, base = points(values, claim.method, density), points(values, baseline, density)
    controls = {_name(control, claim): points(values, control, density) for control in claim.controls}
    found = verdict(method, base, controls, claim.margin * POINTS)
    reason = "" if found.words != NOT_TESTABLE else _why(values, (claim.method, method), (baseline, base))
    if not reason and (reason := unequal(values, (claim.method.method, baseline.method), density, claim.equal)):
        found = replace(found, words=NOT_COMPARABLE, control=None)
    return Judgement(claim, baseline, density, found, reason, tuple(name for name, found in controls.items() if found.empty))


def points(values: pd.DataFrame, measured: Measured, density: float) -> pd.Series:
    """Return {seed: points of a hundred}."""
    return by_seed(values, measured.method, measured.metric, density) * POINTS


def _name(control: Measured, claim: Claim) -> str:
    """Return a control's name, with its metric where that is not the one that the claim's baselines have."""
    others = {baseline.metric for baseline in claim.baselines}
    return control.method + ("" if control.metric in others else WORDS[control.metric])


def _why(values: pd.DataFrame, *pair: tuple[Measured, pd.Series]) -> str:
    for measured, found in pair:
        if measured.method not in set(values["method"]):
            return f"{measured.method} was not run"
        if found.empty:
            return f"the runs of {measured.method} have no {measured.metric} at this density"
    (_, method), (_, base) = pair
    return f"{len(method.index.intersection(base.index))} seeds have both; an interval needs 2"
