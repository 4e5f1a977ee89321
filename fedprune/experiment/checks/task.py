"""Checks that the data set and the task fit: labels, outputs and metrics, tried on two examples. Each says what to type
instead."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric

from fedprune.data.batches import first_examples
from fedprune.data.datasets import Dataset
from fedprune.errors import ConfigError
from fedprune.experiment.checks.axes import evidence_of
from fedprune.experiment.checks.problems import Names
from fedprune.federated.masks import Whose
from fedprune.local.hooks import transferred
from fedprune.local.module import LocalModule
from fedprune.local.outcomes import TaskMetrics, by_name, metrics_in
from fedprune.local.regularisers.base import Regulariser
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.evidence import OF_CLASSES, needs
from fedprune.pruning.evidence.network import evaluated
from fedprune.types import Plan

T = TypeVar("T")

TRIED = 2  # examples

INSTEAD = (
    "choose local=regression for real numbers or local=multilabel for several labels of an example, or give the data set whole "
    "numbers from 0 (y.long()) and as many classes"
)

RENUMBER = "they are whole, and data=dataset and data=hugging_face make classes of them: set data.renumber=true; or "

NAME = re.compile(r"[A-Za-z][\w.-]*")

GATED = ("val_accuracy", "pruned_accuracy")
"""Outcomes that only a task has that measures accuracy."""


def data(dataset: Dataset) -> list[str]:
    """Return what is wrong with the data set by itself."""
    chosen, channels = f"data={dataset.name}", dataset.shape[0] if dataset.shape else 1
    given = {"mean": dataset.mean, "std": dataset.std}
    x, y, test_x, test_y = dataset.x, dataset.y, dataset.test_x, dataset.test_y
    rules = {
        f"{chosen} has {len(x)} examples and {len(y)} labels: give one label (row of y) to each example": len(x) == len(y),
        f"{chosen} has {len(test_x)} test examples and {len(test_y)} labels: give one to each": len(test_x) == len(test_y),
        f"{chosen}: labels are {_kind(y)} {_shape(y)} to train on and {_kind(test_y)} {_shape(test_y)} to test on: make them "
        "alike": y.shape[1:] == test_y.shape[1:] and y.dtype == test_y.dtype,
    }
    rules |= {
        f"{chosen}: {part} has numbers that are NaN or infinite: fill them in, or leave out their examples": _finite(values)
        for part, values in {"x": x, "y": y, "test_x": test_x, "test_y": test_y}.items()
    }
    rules |= {
        f"{chosen} has a {name} of {len(values)} numbers for {channels} channels: give one for each, one for all, or none": (
            len(values) in (0, 1, channels)
        )
        for name, values in given.items()
    }
    return [problem for problem, fine in rules.items() if not fine]


def _finite(values: Tensor) -> bool:
    """Return whether all numbers are finite. The extremes say so, and take no memory."""
    return not values.is_floating_point() or not values.numel() or bool(torch.isfinite(torch.stack(values.aminmax())).all())


def task(module: LocalModule, dataset: Dataset, names: Names) -> TaskMetrics:
    """Return what the module measures, by its outcome on two examples. Raises ConfigError if the data set's labels are not what
    it takes, or if its outcome is no such."""
    batch = transferred(module, first_examples(dataset, TRIED))
    with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluated(module):
        outputs = _tried(module, "net", lambda: module.net(batch[0]), dataset, names)
        obstacle = no_classes(dataset, outputs)
        if obstacle and takes_classes(module, dataset.y):
            taken = f"local={names['local']} takes classes, and data={dataset.name} has other labels: {obstacle}"
            raise ConfigError([f"{taken}; {_whole(dataset.y)}{INSTEAD}"])
        for metric in metrics_in(module):
            metric.reset()
        outcome = by_name(_tried(module, "outcome", lambda: module.outcome(batch), dataset, names))
    problems = _outcome(module, outcome, len(batch[0]))
    if problems:
        raise ConfigError([f"local.module {type(module).__name__}: {problem}" for problem in problems])
    templates = {name: value.clone() for name, value in outcome.items() if isinstance(value, Metric)}
    for metric in [*metrics_in(module), *templates.values()]:
        metric.reset()
    return TaskMetrics(module.metric, module.larger_is_better, tuple(outcome), templates, obstacle)


def _whole(y: Tensor) -> str:
    """Return what makes classes of whole numbers that are stored as floats."""
    return RENUMBER if y.is_floating_point() and torch.equal(y, y.round()) else ""


def takes_classes(module: LocalModule, labels: Tensor) -> bool:
    """Return whether the module compares outputs with these labels as classes, as LocalModule does: in its outcome, or its loss
    (which of real numbers are the probabilities of all classes)."""
    kind = type(module)
    trains = kind.loss is LocalModule.loss and kind.training_step is LocalModule.training_step
    return kind.outcome is LocalModule.outcome or (trains and not labels.is_floating_point())


def no_classes(dataset: Dataset, outputs: object) -> str | None:
    """Return why labels [N, ...] are not classes that outputs [B, classes, ...] stand for, with the first that is none; None if
    they are, or if the network puts out something else than one tensor."""
    if not isinstance(outputs, Tensor):
        return None
    y = dataset.y
    if y.is_floating_point() or y.is_complex():
        return f"its labels are real numbers ({_kind(y)}, such as {y.flatten()[0].item():.4g})"
    if outputs.shape[2:] != y.shape[1:] or outputs.dim() < 2:
        return f"its labels are of shape {_shape(y)}, and the network's outputs of shape [N, {_dims(outputs)}]"
    highest = outputs.shape[1] - 1
    for labels, part in ((y, "y"), (dataset.test_y, "test_y")):
        wrong = labels[(labels < 0) | (labels > highest)] if labels.dtype != torch.bool else labels[:0]
        if len(wrong):
            return (
                f"there is a label {int(wrong[0])} in {part}, and the network's {highest + 1} outputs stand for 0 to {highest} "
                f"(the data set says classes={dataset.classes})"
            )
    return None


def _tried(module: LocalModule, what: str, call: Callable[[], T], dataset: Dataset, names: Names) -> T:
    """Return what a call gives. Raises ConfigError for whatever goes wrong in it."""
    try:
        return call()
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        taken = f"x {dataset.x.dtype} {_shape(dataset.x)}, y {dataset.y.dtype} {_shape(dataset.y)}"
        raise ConfigError(
            [
                f"local={names['local']}: {type(module).__name__}.{what} (model={names['model']}) cannot take examples of "
                f"data={dataset.name}, {taken}: {said}; {_instead(module, what, dataset)}"
            ]
        ) from error


def _instead(module: LocalModule, what: str, dataset: Dataset) -> str:
    """Return what to choose where a network, or what a task measures of its outputs, does not take the examples."""
    y = dataset.y
    if what != "net" and y.dim() == 1 and not y.is_floating_point() and not takes_classes(module, y):
        return (
            "the labels are whole numbers, which are classes: choose local=classification; for real numbers let the data set "
            "return y.float() (data.task=regression under data=table)"
        )
    kind = type(module.net)
    if what == "net" and kind.__module__.partition(".")[0] not in ("fedprune", "torch"):
        return f"{_other_model(dataset)} without model._target_, or let {kind.__name__} take these"
    return _other_model(dataset)


def _other_model(dataset: Dataset) -> str:
    """Return what to choose where a network does not take the examples."""
    if dataset.normalise(dataset.x[:1]).dtype == torch.int64:
        return "the inputs are numbers of characters or words: choose model=char_lstm or model=char_transformer"
    if len(dataset.shape) == 1:
        return f"the inputs are rows of {dataset.shape[0]} numbers: choose model=mlp"
    return f"the inputs are of shape [B, {', '.join(map(str, dataset.shape))}]: choose model=mlp, which takes any"


def _outcome(module: LocalModule, outcome: Mapping[str, object], examples: int) -> list[str]:
    """Return what is wrong with an outcome and with what the module says of it."""
    said = ", ".join(outcome)
    better = {name: value.higher_is_better for name, value in outcome.items() if isinstance(value, Metric)}
    rules = {
        f"its outcome gives {said} and no loss: add 'loss', the loss of each example [B]": isinstance(
            outcome.get("loss"), Tensor
        ),
        f"metric = {module.metric!r}, and its outcome gives {said}: set the attribute `metric` to one of these": (
            module.metric in outcome
        ),
        f"larger_is_better = {module.larger_is_better}, and of {module.metric} that is not so: "
        f"set larger_is_better = {not module.larger_is_better}": (
            (better.get(module.metric) is None or better[module.metric] == module.larger_is_better)
            and not (module.metric == "loss" and module.larger_is_better)
        ),
    }
    problems = [problem for problem, fine in rules.items() if not fine]
    for name, value in outcome.items():
        problems += _value(module, name, value, examples)
    return problems


def _value(module: LocalModule, name: str, value: object, examples: int) -> list[str]:
    held = metrics_in(module)
    if not NAME.fullmatch(str(name)) or name == "density":
        return [f"a metric cannot be called {name!r}: use letters, digits and _, such as f1_macro"]
    if isinstance(value, Metric):
        rules = {
            f"{name} is a torchmetrics object that it does not hold: make it in __init__ (self.{name} = ...)": any(
                value is metric for metric in held
            ),
            f"{name} ({type(value).__name__}) has no state of its own: give the torchmetrics object that is inside it": bool(
                value.metric_state
            ),
        }
        return [problem for problem, fine in rules.items() if not fine] + _number(name, value)
    if not isinstance(value, Tensor) or value.is_complex():
        return [f"{name} is a {type(value).__name__}: give a real tensor [B], or a torchmetrics object"]
    if value.shape != (examples,):
        return [f"{name} is of shape {list(value.shape)} for {examples} examples: give one number for each, [B]"]
    return []


def _number(name: str, metric: Metric) -> list[str]:
    """Return a problem if a torchmetrics object computes more than one number, else nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of two examples that do not have all classes
            value = metric.compute()
    except (ValueError, RuntimeError, IndexError):  # so few examples may be too few for it
        return []
    if isinstance(value, Tensor) and value.numel() == 1:
        return []
    return [f"{name} ({type(metric).__name__}) comes to more than one number: set its average, such as average='macro'"]


def gate(plan: Plan, task: TaskMetrics, names: Names) -> list[str]:
    """Return a problem if a gate asks for accuracy and the task does not measure it, else nothing."""
    if plan.gate is None or "accuracy" in task.names or not {*GATED} & {*needs(plan.gate.opens)}:
        return []
    bound = f"when.at_{'least' if task.larger_is_better else 'most'}=0.5"
    return [
        f"when={names['when']} asks for accuracy, and local={names['local']} measures {', '.join(task.names)}: "
        f"set when.accuracy=null {bound} (of its own metric, {task.metric})"
    ]


def bounds(plan: Plan, task: TaskMetrics, names: Names) -> list[str]:
    """Return why a gate does not fit the task's own metric."""
    problems = plan.gate.opens.problems(task.metric, task.larger_is_better) if plan.gate else []
    return [f"when={names['when']}: {problem}" for problem in problems]


def of_classes(
    task: TaskMetrics, plan: Plan, criterion: Criterion, whose: Whose, dropout: Regulariser, names: Names
) -> list[str]:
    """Return what takes labels that are classes, where they are not."""
    if task.no_classes is None:
        return []
    asked = evidence_of(criterion) if plan.events else set()
    rules = {
        f"criterion={names['criterion']} draws labels from the network's predicted classes, and there are none ("
        f"{task.no_classes}): choose criterion=fisher_empirical": not {*OF_CLASSES} & asked,
        f"local/dropout=ordered_distilled teaches predicted classes, and there are none ({task.no_classes}): "
        "choose local/dropout=ordered": not dropout.of_classes,
        f"whose.labels=own goes by the classes of examples, and there are none ({task.no_classes}): set whose.labels=all": (
            whose.labels != "own"
        ),
    }
    return [problem for problem, fine in rules.items() if not fine]


def _kind(labels: Tensor) -> str:
    return str(labels.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return f"[N, {', '.join(map(str, tensor.shape[1:]))}]" if tensor.dim() > 1 else "[N]"


def _dims(outputs: Tensor) -> str:
    return ", ".join(map(str, outputs.shape[1:]))
