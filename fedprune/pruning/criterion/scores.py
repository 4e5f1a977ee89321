"""The call of a formula, which may be anybody's: what it returns must be a score for each entry, and what it raises is told."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedprune.capabilities import named
from fedprune.errors import RunError, in_user_code
from fedprune.pruning.criterion import Formula
from fedprune.tensors import unlike
from fedprune.types import Mask, Params, Scores


def scored(formula: Formula, evidence: Mapping[str, object], mask: Mask) -> Scores:
    """Return the scores of a formula. Raises RunError, in one line, for what it raises, and for a layer without scores, or with
    scores of another shape than the mask's or of no floating type."""
    with in_user_code(f"criterion, {named(formula)}"):
        scores: object = formula(**evidence)
    wrong = unlike(scores, mask, exactly=False) or _not_floats(scores)
    if wrong is not None:
        raise RunError(f"criterion, {named(formula)}: it {wrong}: return one score, a float, for each entry of every layer")
    return scores  # type: ignore[return-value]  # it has just been looked at


def compensated(formula: Formula, evidence: Mapping[str, object], params: Params) -> Params:
    """Return the steps of survivors that a formula gives. Raises RunError as `scored` does; a layer may have none."""
    with in_user_code(f"criterion, {named(formula)}"):
        steps: object = formula(**evidence)
    known = {name: params[name] for name in steps if name in params} if isinstance(steps, Mapping) else params
    wrong = unlike(steps, known)
    if wrong is not None:
        raise RunError(f"criterion, {named(formula)}: it {wrong}: return the step of each weight, by layer")
    return steps  # type: ignore[return-value]  # it has just been looked at


def _not_floats(scores: object) -> str | None:
    assert isinstance(scores, Mapping), "its shapes have been looked at"
    others = {
        name: value.dtype for name, value in scores.items() if isinstance(value, Tensor) and not value.is_floating_point()
    }
    return next((f"gives {str(kind).removeprefix('torch.')} numbers for {name}" for name, kind in others.items()), None)
