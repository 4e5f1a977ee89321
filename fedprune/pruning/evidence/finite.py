"""The explanation of a NaN: training has diverged, or a piece of evidence, or a formula, has no value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeGuard

from torch import Tensor

from fedprune.errors import NotANumber, RunError
from fedprune.precision import finite
from fedprune.types import Params

DIVERGED = "Lower local.optimizer.lr or set local.clip_norm=1"
INSTEAD = "choose criterion=magnitude (criterion=set where units are exchanged)"


def unmeasured(evidence: Mapping[str, Params]) -> str | None:
    """Return the message about the first piece of evidence that is not finite at finite weights; None if all are finite."""
    for name, values in evidence.items():
        astray = [layer for layer, tensor in values.items() if not finite(tensor)]
        if astray:
            return (
                f"the evidence {name} of {_told(astray)} is not finite, and the weights are: what the network or the loss does "
                f"there has no derivative (a root, norm or logarithm of 0) or overflows; {_instead(astray, values)}"
            )
    return None


@contextmanager
def explained(evidence: Mapping[str, object]) -> Iterator[None]:
    """Explain a NaN among the scores of a formula by the evidence that the formula was given. Raises RunError."""
    try:
        yield
    except NotANumber as error:
        raise RunError(f"{error}: {_reason(error.layer, evidence)}") from error


def _reason(layer: str, evidence: Mapping[str, object]) -> str:
    pieces = {name: values for name, values in evidence.items() if _is_measured(values)}
    weights = [tensor for name in ("params", "init_params") for tensor in pieces.get(name, {}).values()]
    if not all(map(finite, weights)):
        return f"the training has diverged. {DIVERGED}"
    problem = unmeasured(pieces)
    if problem is not None:
        return problem
    return f"its formula has no value there (0 / 0, for one), though all of its evidence is finite: mend it, or {INSTEAD}"


def _is_measured(values: object) -> TypeGuard[Params]:
    return isinstance(values, Mapping) and all(isinstance(value, Tensor) for value in values.values())


def _instead(astray: list[str], values: Params) -> str:
    if len(astray) == len(values):
        return INSTEAD
    return f"leave it out with what.skip=[{','.join(layer.removesuffix('.weight') for layer in astray)}], or {INSTEAD}"


def _told(names: Iterable[str]) -> str:
    listed = [name.removesuffix(".weight") for name in names]
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more layers" if len(listed) > 3 else "")
