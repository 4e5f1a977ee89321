"""The first lines of a run from trained weights: how its inputs are standardised, and what the network can do before round 1.

A file may fit a network by its names and shapes and still be of other inputs or other classes: the accuracy tells.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from fedprune.data.datasets import Dataset
from fedprune.experiment.experiment import Experiment
from fedprune.federated.loop import FederatedLoop
from fedprune.types import State

log = logging.getLogger(__name__)

ABOVE_CHANCE = 0.1
"""An accuracy is near chance if it is less than this part of the way from chance to 1 above it."""


def tell_start(experiment: Experiment, loop: FederatedLoop, state: State) -> list[str]:
    """Return what to say of the loaded network before its first round; a warning is logged if it does no better than chance.

    It is evaluated on the clients' validation examples, without which nothing is said of it.
    """
    lines = [f"inputs: {standardisation(experiment.dataset)}"]
    examples, task = sum(loop.evaluation.val), experiment.task
    if experiment.config.init_from.head == "fresh":
        return lines
    if not examples:
        return [*lines, "the loaded network: no client has validation examples to evaluate it on"]
    value = loop.evaluation.outcomes(state)["val_metric"]
    accuracy = task.metric.endswith("accuracy")
    shown = f"{100 * value:.1f} %" if accuracy else f"{value:.4g}"
    name = task.metric.replace("_", " ")
    lines.append(f"the loaded network before round 1: {name} {shown} on {examples:,} validation examples")
    chance = most_frequent(experiment.dataset.y)
    if task.metric == "accuracy" and value < chance + ABOVE_CHANCE * (1 - chance):
        log.warning(
            "the file fits the network, and its accuracy is near chance (%.1f %%): give data.mean and data.std the numbers of "
            "its training, and look whether the classes had this order%s",
            100 * chance,
            f": {_listed(experiment.dataset.class_names)}" if experiment.dataset.class_names else "",
        )
    return lines


def standardisation(dataset: Dataset) -> str:
    """Describe what the network gets of the data set's inputs, with numbers of pixels in 0..1 where inputs are bytes."""
    if not dataset.mean:
        return "as the data set gives them, not standardised"
    of_bytes = dataset.x.dtype == torch.uint8
    unit = dataset.white if of_bytes else 1
    moments = [_listed([f"{value / unit:.4g}" for value in values], 4) for values in (dataset.mean, dataset.std)]
    pixels = f" of pixels in 0..1 (x in 0..{dataset.white}, divided by {dataset.white})" if of_bytes else ""
    return f"(x - mean) / std, mean {moments[0]}, std {moments[1]}{pixels}; data.mean and data.std change them"


def most_frequent(y: Tensor) -> float:
    """Return the share of the most frequent label, the accuracy of one who always says it."""
    return float(y.flatten().unique(return_counts=True)[1].max() / y.numel())


def _listed(texts: Sequence[str], most: int = 10) -> str:
    return ", ".join(texts[:most]) + ", ..." * (len(texts) > most)
