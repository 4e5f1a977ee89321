"""Checks of a configuration: all problems at once, before the first batch. Each says what to type instead."""

from fedprune.experiment.checks import module
from fedprune.experiment.checks.axes import (
    composition,
    evidence_of,
    min_per_layer,
    obstacles,
    of_single_weights,
    scope,
    whole_units,
)
from fedprune.experiment.checks.batches import sizes_of_batches, smallest
from fedprune.experiment.checks.clients import (
    kept_back,
    on_clients,
    outcomes_of_clients,
    regrown,
    validation,
)
from fedprune.experiment.checks.network import masked, rehearsal
from fedprune.experiment.checks.problems import Problems
from fedprune.experiment.checks.task import bounds, data, gate, of_classes, task
from fedprune.experiment.checks.together import among_axes, among_clients
from fedprune.experiment.checks.tried import functions, plan, window
from fedprune.experiment.checks.values import evidence, executor, objective, outcomes, ranges

__all__ = [
    "Problems",
    "among_axes",
    "among_clients",
    "bounds",
    "composition",
    "data",
    "evidence",
    "evidence_of",
    "executor",
    "functions",
    "gate",
    "kept_back",
    "masked",
    "min_per_layer",
    "module",
    "objective",
    "obstacles",
    "of_classes",
    "of_single_weights",
    "on_clients",
    "outcomes",
    "outcomes_of_clients",
    "plan",
    "ranges",
    "regrown",
    "rehearsal",
    "scope",
    "sizes_of_batches",
    "smallest",
    "task",
    "validation",
    "whole_units",
    "window",
]
