"""What a training step is given, and what it may return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fedprune.errors import RunError


def takes_number(training_step: Callable[..., Any]) -> bool:
    """Return whether a training step takes the number of the batch as its second argument, as Lightning decides it."""
    kinds = [parameter.kind for parameter in inspect.signature(training_step).parameters.values()]
    return len(kinds) >= 2 or inspect.Parameter.VAR_POSITIONAL in kinds


def read(module: object, answer: Any) -> tuple[Tensor | None, Mapping[str, Any]]:
    """Return (the loss, what else training_step returned). Raises RunError if that is not what a training step may return."""
    more: Mapping[str, Any] = {}
    if isinstance(answer, Mapping):
        answer, more = answer.get("loss"), {key: value for key, value in answer.items() if key != "loss"}
        if answer is None:
            raise RunError(f"{type(module).__name__}.training_step returned a dictionary without a 'loss'")
    if answer is None or (isinstance(answer, Tensor) and answer.numel() == 1):
        return answer, more
    kind = f"a tensor of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
    raise RunError(f"{type(module).__name__}.training_step returned {kind}: return the mean loss of the batch, or None")
