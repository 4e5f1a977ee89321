"""What a module logs with `self.log` while it trains, from its batches to the metrics of the round.

A value is reduced over the client's batches by its `reduce_fx`: "mean" weighs each batch by its examples (or by `batch_size`);
"sum", "min" and "max" are what they say. Over the cohort the reduction is the same; the mean weighs each client by the examples
that it trained on. A torchmetrics object is computed once per client, at the end of its round.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fedprune.errors import RunError

Logged = Mapping[str, tuple[str, float]]
"""What a client logged in a round: by name, how it is reduced over the cohort, and the client's value."""

LOSS = "train/loss"
"""The metric that is reported of every round anyway: the mean of what training_step returns."""

OURS = ("round", "train/examples", "train/steps")
OURS_BELOW = (
    *("test/", "val/", "client/", "clients/", "density/", "prune/", "gate/", "wire/", "flops/", "time/", "evidence/"),
    *("profile/", "total/", "early/", "_"),
)
"""Names of metrics, and beginnings of names, that a run or the analysis of runs gives a meaning (`_`: W&B)."""

REDUCTIONS: dict[Any, str] = {
    **{name: name for name in ("mean", "sum", "min", "max")},
    **{torch.mean: "mean", torch.sum: "sum", sum: "sum", torch.min: "min", min: "min", torch.max: "max", max: "max"},
}


@dataclass
class Recorder:
    """What one client logs in one round. size: the number of examples of the batch that is trained on now."""

    size: int = 1
    _values: dict[str, _Values] = field(default_factory=dict)
    _loss: Any = None
    _unlike: tuple[Any, Tensor] | None = None

    def log(self, name: str, value: Any, reduce_fx: Any = "mean", batch_size: int | None = None) -> None:
        """Take up a value. Raises RunError for names, values and reductions that cannot be reported."""
        if name == LOSS:
            self._loss = value
            return
        values = self._values.get(name)
        if values is None:
            values = self._values[name] = _Values(_free(name), _reduction(name, reduce_fx))
        elif REDUCTIONS.get(reduce_fx) != values.reduction:
            raise RunError(f"self.log({name!r}) is reduced by {values.reduction} and by {reduce_fx}: choose one of them")
        values.add(_number(name, value), self.size if batch_size is None else batch_size)

    def batch_ends(self, loss: Tensor | None) -> None:
        """Remember whether what was logged as train/loss may be something else than the loss of the batch."""
        if self._loss is not None:
            if loss is not None and self._loss is not loss:
                self._unlike = (_number(LOSS, self._loss), loss.detach())
            self._loss = None

    def logged(self) -> Logged:
        """Return the client's values. Raises RunError if train/loss was logged with another value than the loss."""
        if self._loss is not None:
            raise RunError(
                f"self.log({LOSS!r}) outside of a batch: it is the name of the loss that training_step returns, which is "
                "reported anyway; log another value under another name: 'train/my_loss'"
            )
        if self._unlike is not None:
            theirs, ours = float(self._unlike[0]), float(self._unlike[1])
            if abs(theirs - ours) > 1e-4 * abs(ours) + 1e-8:
                raise RunError(
                    f"self.log({LOSS!r}, {theirs:.6g}): {LOSS!r} is the name of the loss that training_step returns "
                    f"({ours:.6g}), which is reported anyway; log another value under another name: 'train/my_loss'"
                )
        return {name: (values.reduction, values.reduced()) for name, values in self._values.items()}


@dataclass
class _Values:
    """The values of one name, batch by batch."""

    name: str
    reduction: str
    values: list[Any] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)

    def add(self, value: Any, weight: int) -> None:
        self.values.append(value)
        self.weights.append(weight)

    def reduced(self) -> float:
        last = self.values[-1]
        if isinstance(last, Metric):
            return float(last.compute())
        values = _stacked(self.values)
        if self.reduction == "mean":
            weights = torch.tensor(self.weights, dtype=torch.float64)
            return float(values @ weights / weights.sum())
        return float(OF_TENSORS[self.reduction](values))


def _stacked(values: list[Any]) -> Tensor:
    """Return these numbers as a tensor of float64 on the CPU."""
    if all(isinstance(value, Tensor) and value.dtype == values[0].dtype for value in values):
        return torch.stack(values).cpu().double()
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


OF_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "min": torch.min, "max": torch.max}


def _free(name: object) -> str:
    """Return the name. Raises RunError if it is no text, or if a metric of the run has it or could have it."""
    if not isinstance(name, str) or not name:
        raise RunError(f"self.log({name!r}): the name of a metric is a text")
    below = next((start for start in OURS_BELOW if name.startswith(start)), None)
    if name in OURS or below:
        theirs = f"{below}* are names of metrics" if below else f"{name!r} is the name of a metric"
        own = f"train/my_{name.lstrip('_').rpartition('/')[2] or 'value'}"
        raise RunError(f"self.log({name!r}): {theirs} of the run itself; log it under another name, such as {own!r}")
    return name


def _reduction(name: str, reduce_fx: Any) -> str:
    try:
        return REDUCTIONS[reduce_fx]
    except (KeyError, TypeError):
        raise RunError(f"self.log({name!r}, reduce_fx={reduce_fx}): choose mean, sum, min or max") from None


def _number(name: str, value: Any) -> Any:
    """Return a copy of the number, outside of any graph; or the torchmetrics object. Raises RunError for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        copied = value.detach().clone()
        return copied if copied.dim() == 0 else copied.reshape(())
    if isinstance(value, numbers.Real):  # bool, int, float, and numpy's numbers
        return float(value)
    if isinstance(value, Metric):
        return value
    kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise RunError(f"self.log({name!r}) was given {kind}: log one real number, such as value.mean()")


@dataclass
class OverCohort:
    """The values that clients logged under one name, reduced while they arrive."""

    reduction: str
    value: float = 0.0
    weight: float = 0.0

    def add(self, value: float, examples: int) -> None:
        """Take up a client's value, and on how many examples it trained."""
        first, self.weight = not self.weight, self.weight + max(examples, 1)
        if self.reduction in ("mean", "sum"):
            self.value += value * (max(examples, 1) if self.reduction == "mean" else 1)
        else:
            both = torch.tensor([value if first else self.value, value], dtype=torch.float64)
            self.value = float(OF_TENSORS[self.reduction](both))  # NaN, unlike in Python's own min and max, stays

    def reduced(self) -> float:
        """Return the value of the round."""
        return self.value / self.weight if self.reduction == "mean" else self.value
