"""Checks of a configuration: all problems at once, before the first batch. Each says what to type instead."""

from fedprune.experiment.checks import module
from fedprune.experiment.checks.axes import evidence_of, whole_units
from fedprune.experiment.checks.batches import sizes_of_batches, smallest
from fedprune.experiment.checks.network import masked, rehearsal
from fedprune.experiment.checks.problems import Problems
from fedprune.experiment.checks.task import bounds, data, gate, of_classes, task
from fedprune.experiment.checks.together import among_axes, among_clients
from fedprune.experiment.checks.values import evidence, executor, outcomes, ranges

__all__ = [
    "Problems",
    "among_axes",
    "among_clients",
    "bounds",
    "data",
    "evidence",
    "evidence_of",
    "executor",
    "gate",
    "masked",
    "module",
    "of_classes",
    "outcomes",
    "ranges",
    "rehearsal",
    "sizes_of_batches",
    "smallest",
    "task",
    "whole_units",
]
