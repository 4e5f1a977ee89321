"""The contract of `training_step`: the arguments that it is given, and what it may return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from torch import Tensor

from fedprune.errors import RunError


def takes_number(training_step: Callable[..., object]) -> bool:
    """Return whether a training step takes the number of the batch as its second argument, as Lightning decides it."""
    kinds = [parameter.kind for parameter in inspect.signature(training_step).parameters.values()]
    return len(kinds) >= 2 or inspect.Parameter.VAR_POSITIONAL in kinds


def loss_and_more(module: object, returned: object) -> tuple[Tensor | None, Mapping[str, object]]:
    """Return the loss that training_step returned, and the other entries of its dictionary, if it returned one.

    Raises RunError for what a training step must not return.
    """
    loss, more = returned, dict[str, object]()
    if isinstance(returned, Mapping):
        loss, more = returned.get("loss"), {key: value for key, value in returned.items() if key != "loss"}
        if loss is None:
            raise RunError(f"{type(module).__name__}.training_step returned a dictionary without a 'loss'")
    if loss is None or (isinstance(loss, Tensor) and loss.numel() == 1):
        return loss, more
    kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise RunError(f"{type(module).__name__}.training_step returned {kind}: return the mean loss of the batch, or None")
