"""Outcomes of evaluations: numbers by name, one per example, and torchmetrics objects, which add up their own states.

A module's `outcome` returns both for a batch. The metrics do not depend on which worker evaluated what: numbers are put in the
order of the examples, and the states of a torchmetrics object are merged in that order, as its `dist_reduce_fx` says.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_mean

from fedprune.errors import RunError

Outcome = Mapping[str, Tensor | Metric]
"""The outcome of a batch, by name: tensors [B], and torchmetrics objects that were updated with the batch."""

State = Mapping[str, np.ndarray | list[np.ndarray]]
"""The state of a torchmetrics object, by name."""

EVERYBODY = -1
"""The place of examples that belong to no client."""


class Measured(Protocol):
    """The part of a LocalModule that evaluation uses."""

    def outcome(self, batch: tuple[Tensor, ...]) -> Outcome | tuple[Tensor, Tensor]: ...

    def modules(self) -> Iterator[nn.Module]: ...


class Counted(NamedTuple):
    """The states of torchmetrics objects, by metric, over `examples` examples of the client at `place`."""

    place: int
    examples: int
    states: Mapping[str, State]


class Outcomes(NamedTuple):
    """The outcomes of some examples. values: by metric, a number per example, in their order. counted: states of torchmetrics
    objects."""

    values: Mapping[str, np.ndarray]
    counted: tuple[Counted, ...] = ()


def by_name(outcome: Outcome | tuple[Tensor, Tensor]) -> Outcome:
    """Return an outcome as a mapping; a pair is (loss, accuracy)."""
    if isinstance(outcome, Mapping):
        return outcome
    loss, correct = outcome
    return {"loss": loss, "accuracy": correct}


def metrics_in(module: Measured) -> list[Metric]:
    """Return the torchmetrics objects of a module."""
    return [child for child in module.modules() if isinstance(child, Metric)]


@torch.no_grad()
def measured(module: Measured, batches: Iterable[tuple[Tensor, ...]], place: int = EVERYBODY) -> Outcomes:
    """Return the outcomes of a module, in its current mode, on these batches of the client at `place`."""
    metrics = metrics_in(module)
    for metric in metrics:
        metric.reset()
    arrays: dict[str, list[np.ndarray]] = {}
    updated: dict[str, Metric] = {}
    for batch in batches:
        for name, value in by_name(module.outcome(batch)).items():
            if isinstance(value, Metric):
                updated[name] = value
            else:
                arrays.setdefault(name, []).append(_array(value, single=name == "loss"))
    values = {name: np.concatenate(of_batches) for name, of_batches in arrays.items()}
    states = {name: _state(metric) for name, metric in updated.items()}
    for metric in metrics:
        metric.reset()
    return Outcomes(values, (Counted(place, len(values["loss"]), states),) if states else ())


def _array(values: Tensor, single: bool = False) -> np.ndarray:
    half = values.dtype in (torch.float16, torch.bfloat16)
    array: np.ndarray = (values.float() if single or half else values).detach().cpu().numpy()
    return array


def _state(metric: Metric) -> State:
    return {name: _arrays(value) for name, value in metric.metric_state.items()}


def _arrays(state: Tensor | list[Tensor]) -> np.ndarray | list[np.ndarray]:
    return [_array(tensor) for tensor in state] if isinstance(state, list) else _array(state).copy()


def concatenated(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Return several outcomes, at least one, as one outcome in their order."""
    values = {name: np.concatenate([outcome.values[name] for outcome in outcomes]) for name in outcomes[0].values}
    return Outcomes(values, tuple(counted for outcome in outcomes for counted in outcome.counted))


def averaged(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Return the outcome of several networks on the same examples: the means of numbers, and the states of all networks."""
    values = {name: np.stack([outcome.values[name] for outcome in outcomes]).mean(0) for name in outcomes[0].values}
    return Outcomes(values, tuple(counted for outcome in outcomes for counted in outcome.counted))


@dataclass(frozen=True)
class TaskMetrics:
    """The metrics of a task. metric: the one that the task is judged by. names: of all metrics. templates: the torchmetrics
    objects among them, without a state. no_classes: why labels are not classes to which the network's outputs belong (None:
    they are).
    """

    metric: str = "accuracy"
    larger_is_better: bool = True
    names: tuple[str, ...] = ("loss", "accuracy")
    templates: Mapping[str, Metric] = field(default_factory=dict)
    no_classes: str | None = None

    def means(self, outcomes: Outcomes) -> dict[str, float]:
        """Return each metric over all examples."""
        means = {name: float(values.mean()) for name, values in outcomes.values.items()}
        return means | {name: self._merged(name, outcomes.counted) for name in self.templates}

    def validated(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics on validation data that a gate can ask for: val_accuracy, and val_metric, the task's own."""
        accuracy = {"val_accuracy": means["accuracy"]} if "accuracy" in means else {}
        return accuracy | {"val_metric": means[self.metric]}

    def by_client(self, outcomes: Outcomes, sizes: Sequence[int], moment: str = "") -> dict[str, float]:
        """Return the mean over clients of each metric but the loss; and the bad tail of the task's own metric, which is the
        10th percentile and the minimum, or the 90th percentile and the maximum where smaller is better.

        sizes: how many examples each client has; outcomes are in the order of the clients. moment: what follows the metric in a
        name, as in client/accuracy_tuned_mean. Clients without examples, or for whom a metric is not defined (not a number),
        are left out.
        """
        metrics: dict[str, float] = {}
        for name in self.names:
            if name == "loss" != self.metric:
                continue
            each = self._each(name, outcomes, sizes)
            if each:
                metrics[f"client/{name}{moment}_mean"] = float(np.mean(each))
            if each and name == self.metric:
                metrics |= self._tail(each, f"client/{name}{moment}")
        return metrics

    def _each(self, name: str, outcomes: Outcomes, sizes: Sequence[int]) -> list[float]:
        if name in self.templates:
            of_client: dict[int, list[Counted]] = {}
            for counted in outcomes.counted:
                of_client.setdefault(counted.place, []).append(counted)
            each = [self._of_client(name, states) for states in of_client.values()]
        else:
            ends = np.cumsum(sizes)
            each = [values.mean() for values in np.split(outcomes.values[name], ends[:-1]) if len(values)]
        return [value for value in each if not np.isnan(value)]

    def _tail(self, each: Sequence[float], name: str) -> dict[str, float]:
        percent, worst, last = (10, "min", min) if self.larger_is_better else (90, "max", max)
        return {
            f"{name}_p{percent}": float(np.percentile(each, percent)),
            f"{name}_{worst}": float(last(each)),
        }

    def _of_client(self, name: str, counted: Sequence[Counted]) -> float:
        """Return a metric of one client; not a number where it cannot be computed from so few examples."""
        try:
            return self._merged(name, counted)
        except RunError:
            return float("nan")

    def _merged(self, name: str, counted: Sequence[Counted]) -> float:
        metric = self.templates[name].clone()
        metric.reset()
        try:
            for state in metric.metric_state:
                values = [each.states[name][state] for each in counted]
                setattr(metric, state, _reduced(metric, state, values, [each.examples for each in counted]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes that a client has no example of, and that nothing was updated here
                return float(metric.compute())
        except (ValueError, RuntimeError, IndexError) as error:
            raise RunError(f"{name} ({type(metric).__name__}) cannot be computed: {error}") from error


def _reduced(metric: Metric, state: str, values: list[Any], examples: Sequence[int]) -> object:
    """Merge values of a state, in their order, as torchmetrics does between processes; means are weighted by examples."""
    reduction: Any = metric._reductions[state]  # torchmetrics: a function, or None
    if isinstance(values[0], list):
        tensors = [torch.from_numpy(array) for value in values for array in value]
        return [reduction(tensors)] if reduction and tensors else tensors
    stacked = torch.stack([torch.from_numpy(value) for value in values])
    if reduction is dim_zero_mean:
        weights = torch.tensor([float(number) for number in examples])
        return (stacked * (weights / weights.sum()).view(-1, *[1] * (stacked.dim() - 1))).sum(0)
    return reduction(stacked) if reduction else stacked
