"""What an evaluation measures: numbers by name, one per example, and torchmetrics objects, which add up what they need.

A module's `outcome` gives both for a batch. What becomes of them does not depend on who evaluated what: numbers are put in the
order of the examples, and the states of a torchmetrics object are merged in that order, as its own `dist_reduce_fx` says.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_mean

from fedprune.errors import RunError

Outcome = Mapping[str, Any]
"""Of a batch, by name: a tensor [B], or a torchmetrics object that was updated with the batch."""

State = Mapping[str, Any]
"""Of a torchmetrics object: arrays, or lists of arrays, by name."""

EVERYBODY = -1
"""The place of examples that are no client's own."""


class Counted(NamedTuple):
    """The states of torchmetrics objects, by metric, over `examples` examples of the client at `place`."""

    place: int
    examples: int
    states: Mapping[str, State]


class Outcomes(NamedTuple):
    """What was measured on some examples, in their order. values: by metric, a number per example."""

    values: Mapping[str, np.ndarray]
    counted: tuple[Counted, ...] = ()


def by_name(outcome: Outcome | tuple[Tensor, Tensor]) -> Outcome:
    """Return an outcome as a mapping; a pair is (loss, accuracy)."""
    if isinstance(outcome, Mapping):
        return outcome
    loss, correct = outcome
    return {"loss": loss, "accuracy": correct}


def metrics_in(module: nn.Module) -> list[Metric]:
    """Return the torchmetrics objects that a module holds."""
    return [part for part in module.modules() if isinstance(part, Metric)]


@torch.no_grad()
def measured(module: Any, batches: Iterable[tuple[Tensor, ...]], place: int = EVERYBODY) -> Outcomes:
    """Return the outcomes of a module, in the mode that it is in, on these batches of the client at `place`."""
    counting = metrics_in(module)
    for metric in counting:
        metric.reset()
    outcomes = [_taken(module.outcome(batch)) for batch in batches]
    names = [name for name, value in outcomes[0].items() if not isinstance(value, Metric)]
    values = {name: np.concatenate([outcome[name] for outcome in outcomes]) for name in names}
    states = {name: _state(value) for name, value in outcomes[-1].items() if isinstance(value, Metric)}
    for metric in counting:
        metric.reset()
    return Outcomes(values, (Counted(place, len(values["loss"]), states),) if states else ())


def _taken(outcome: Outcome | tuple[Tensor, Tensor]) -> dict[str, Any]:
    return {n: value if isinstance(value, Metric) else _array(value, n == "loss") for n, value in by_name(outcome).items()}


def _array(values: Tensor, single: bool = False) -> np.ndarray:
    half = values.dtype in (torch.float16, torch.bfloat16)
    return (values.float() if single or half else values).detach().cpu().numpy()


def _state(metric: Metric) -> State:
    return {
        name: [_array(part) for part in value] if isinstance(value, list) else _array(value).copy()
        for name, value in metric.metric_state.items()
    }


def concatenated(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Return several outcomes as one, in their order. There has to be one at least."""
    values = {name: np.concatenate([one.values[name] for one in outcomes]) for name in outcomes[0].values}
    return Outcomes(values, tuple(counted for one in outcomes for counted in one.counted))


def averaged(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Return what several networks measure on the same examples: means of numbers; states, of all of them."""
    values = {name: np.stack([one.values[name] for one in outcomes]).mean(0) for name in outcomes[0].values}
    return Outcomes(values, tuple(counted for one in outcomes for counted in one.counted))


@dataclass(frozen=True)
class TaskMetrics:
    """What a module measures. metric: the one that the task is judged by; names: of all. templates: the torchmetrics objects
    among them, without a state. no_classes: why labels are not classes that the network's outputs stand for (None: they are).
    """

    metric: str = "accuracy"
    larger_is_better: bool = True
    names: tuple[str, ...] = ("loss", "accuracy")
    templates: Mapping[str, Metric] = field(default_factory=dict)
    no_classes: str | None = None

    def means(self, outcomes: Outcomes) -> dict[str, float]:
        """Return each metric over all examples."""
        found = {name: float(values.mean()) for name, values in outcomes.values.items()}
        return found | {name: self._merged(name, outcomes.counted) for name in self.templates}

    def validated(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return what gates may ask for, of metrics on validation data: val_accuracy, and val_metric, the task's own."""
        accuracy = {"val_accuracy": means["accuracy"]} if "accuracy" in means else {}
        return accuracy | {"val_metric": means[self.metric]}

    def by_client(self, outcomes: Outcomes, sizes: Sequence[int]) -> dict[str, float]:
        """Return the mean over clients of each metric but the loss, and of the task's own metric the bad tail too: the 10th
        percentile and the minimum, or the 90th and the maximum where smaller is better.

        sizes: how many examples each client has; outcomes are in the order of the clients. Clients without examples, or for
        whom a metric is not defined (not a number), are left out.
        """
        found: dict[str, float] = {}
        for name in self.names:
            if name == "loss" != self.metric:
                continue
            each = self._each(name, outcomes, sizes)
            if each:
                found[f"client/{name}_mean"] = float(np.mean(each))
            if each and name == self.metric:
                found |= self._tail(each)
        return found

    def _each(self, name: str, outcomes: Outcomes, sizes: Sequence[int]) -> list[Any]:
        if name in self.templates:
            of_client: dict[int, list[Counted]] = {}
            for counted in outcomes.counted:
                of_client.setdefault(counted.place, []).append(counted)
            each = [self._of_one(name, parts) for parts in of_client.values()]
        else:
            ends = np.cumsum(sizes)
            each = [part.mean() for part in np.split(outcomes.values[name], ends[:-1]) if len(part)]
        return [value for value in each if not np.isnan(value)]

    def _tail(self, each: Sequence[float]) -> dict[str, float]:
        percent, worst, last = (10, "min", min) if self.larger_is_better else (90, "max", max)
        return {
            f"client/{self.metric}_p{percent}": float(np.percentile(each, percent)),
            f"client/{self.metric}_{worst}": float(last(each)),
        }

    def _of_one(self, name: str, parts: Sequence[Counted]) -> float:
        """Return a metric of one client; not a number where it cannot be computed of so few examples."""
        try:
            return self._merged(name, parts)
        except RunError:
            return float("nan")

    def _merged(self, name: str, parts: Sequence[Counted]) -> float:
        metric = self.templates[name].clone()
        metric.reset()
        try:
            for state in metric.metric_state:
                setattr(metric, state, _reduced(metric, state, [part.states[name][state] for part in parts], parts))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes that a client has no example of, and that nothing was updated here
                return float(metric.compute())
        except (ValueError, RuntimeError, IndexError) as error:
            raise RunError(f"{name} ({type(metric).__name__}) cannot be computed: {error}") from error


def _reduced(metric: Metric, state: str, values: list[Any], parts: Sequence[Counted]) -> Any:
    """Return one state of several, in their order, as torchmetrics has it between processes; means are weighted by examples."""
    reduction: Any = metric._reductions[state]
    if isinstance(values[0], list):
        together: Any = [torch.from_numpy(part) for value in values for part in value]
        return [reduction(together)] if reduction and together else together
    stacked = torch.stack([torch.from_numpy(value) for value in values])
    if reduction is dim_zero_mean:
        weights = torch.tensor([float(part.examples) for part in parts])
        return (stacked * (weights / weights.sum()).view(-1, *[1] * (stacked.dim() - 1))).sum(0)
    return reduction(stacked) if reduction else stacked
