"""Values that a module logs with `self.log` while it trains become metrics of the round.

A value is reduced over the client's batches by its `reduce_fx`: "mean" (each batch is weighted by its examples, or by
`batch_size`), "sum", "min" or "max". Over the cohort it is reduced in the same way, and the mean weights each client by the
examples that it trained on. A torchmetrics object is computed once per client, at the end of its round.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchmetrics import Metric

from fedprune.errors import RunError

Logged = Mapping[str, tuple[str, float]]
"""The values that a client logged in a round, by name: (how it is reduced over the cohort, the client's value)."""

LOSS = "train/loss"
"""The metric that every round reports anyway: the mean of the losses that training_step returns."""

OURS = ("round", "train/examples", "train/steps")
OURS_BELOW = (
    *("test/", "val/", "client/", "clients/", "density/", "prune/", "gate/", "wire/", "flops/", "time/", "evidence/"),
    *("profile/", "total/", "early/", "_"),
)
"""Names of metrics, and beginnings of names, that have a meaning in a run or in the analysis of runs (`_`: in W&B)."""

REDUCTIONS: dict[object, str] = {
    **{name: name for name in ("mean", "sum", "min", "max")},
    **{torch.mean: "mean", torch.sum: "sum", sum: "sum", torch.min: "min", min: "min", torch.max: "max", max: "max"},
}


Value = Tensor | float | Metric
"""A value that can be logged: a copy of a tensor of one entry, a number, or a torchmetrics object."""


@dataclass
class Recorder:
    """Records the values that one client logs in one round. size: the number of examples of the current batch."""

    size: int = 1
    _values: dict[str, _Values] = field(default_factory=dict)
    _loss: object = None
    _unlike: tuple[Value, Tensor] | None = None

    def log(self, name: str, value: object, reduce_fx: object = "mean", batch_size: int | None = None) -> None:
        """Record a value. Raises RunError for names, values and reductions that cannot be reported."""
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
        """Compare the value that was logged as train/loss, if any, with the loss of the batch, for `logged` to report."""
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
            theirs, ours = _computed(self._unlike[0]), float(self._unlike[1])
            if abs(theirs - ours) > 1e-4 * abs(ours) + 1e-8:
                raise RunError(
                    f"self.log({LOSS!r}, {theirs:.6g}): {LOSS!r} is the name of the loss that training_step returns "
                    f"({ours:.6g}), which is reported anyway; log another value under another name: 'train/my_loss'"
                )
        return {name: (values.reduction, values.reduced()) for name, values in self._values.items()}


@dataclass
class _Values:
    """The values of one name, one per batch, and their weights."""

    name: str
    reduction: str
    values: list[Value] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)

    def add(self, value: Value, weight: int) -> None:
        self.values.append(value)
        self.weights.append(weight)

    def reduced(self) -> float:
        last = self.values[-1]
        if isinstance(last, Metric):
            return _computed(last)
        values = _stacked(self.values)
        if self.reduction == "mean":
            weights = torch.tensor(self.weights, dtype=torch.float64)
            return float(values @ weights / weights.sum())
        return float(OF_TENSORS[self.reduction](values))


def _stacked(values: list[Value]) -> Tensor:
    """Return these numbers as a tensor of float64 on the CPU."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) == len(values) and len({tensor.dtype for tensor in tensors}) == 1:
        return torch.stack(tensors).cpu().double()
    return torch.tensor([_computed(value) for value in values], dtype=torch.float64)


def _computed(value: Value) -> float:
    return float(value.compute()) if isinstance(value, Metric) else float(value)


OF_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "min": torch.min, "max": torch.max}


def _free(name: object) -> str:
    """Return the name. Raises RunError if it is no text, or if a metric of the run has it or could have it."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise RunError(f"self.log({name!r}): the name of a metric is a printable text")
    if theirs := _taken(name):
        own = f"train/my_{name.lstrip('_').rpartition('/')[2] or 'value'}"
        raise RunError(f"self.log({name!r}): {theirs} of the run itself; log it under another name, such as {own!r}")
    return name


def _taken(name: str) -> str | None:
    """Return which metrics of a run have this name, or could have it; None if it is free."""
    below = next((start for start in OURS_BELOW if name.startswith(start)), None)
    if name in (*OURS, LOSS) or below:
        return f"{below}* are names of metrics" if below else f"{name!r} is the name of a metric"
    return None


def unloggable(name: str, reduction: str) -> str | None:
    """Return why no module can have logged a value under this name, reduced like this; None if one can."""
    if not name or not name.isprintable():
        return "the name of a metric is a printable text"
    if theirs := _taken(name):
        return f"{theirs} of the run itself"
    return None if reduction in OF_TENSORS or reduction == "mean" else "values are reduced by mean, sum, min or max"


def _reduction(name: str, reduce_fx: object) -> str:
    try:
        return REDUCTIONS[reduce_fx]
    except (KeyError, TypeError):
        raise RunError(f"self.log({name!r}, reduce_fx={reduce_fx}): choose mean, sum, min or max") from None


def _number(name: str, value: object) -> Value:
    """Return a copy of the number, detached from any graph; or the torchmetrics object. Raises RunError for other values."""
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
    """The values that clients logged under one name, reduced as they arrive."""

    reduction: str
    value: float = 0.0
    weight: float = 0.0

    def add(self, value: float, examples: int) -> None:
        """Add a client's value. examples: how many the client trained on."""
        first, self.weight = not self.weight, self.weight + max(examples, 1)
        if self.reduction in ("mean", "sum"):
            self.value += value * (max(examples, 1) if self.reduction == "mean" else 1)
        else:
            both = torch.tensor([value if first else self.value, value], dtype=torch.float64)
            self.value = float(OF_TENSORS[self.reduction](both))  # NaN, unlike in Python's own min and max, stays

    def reduced(self) -> float:
        """Return the value of the round."""
        return self.value / self.weight if self.reduction == "mean" else self.value
