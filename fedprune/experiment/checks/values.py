"""Checks of single values: out of range, or unknown."""

from __future__ import annotations

import difflib

import torch
from omegaconf import DictConfig

from fedprune.errors import ConfigError
from fedprune.execution import Choice
from fedprune.experiment.checks.problems import Names
from fedprune.federated.masks.whose import Whose
from fedprune.federated.metrics.tuned import MOMENTS
from fedprune.local.outcomes import TaskMetrics
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.criterion.regrowth_init import RULES
from fedprune.pruning.evidence import (
    OUTCOMES,
    OUTCOMES_OF_CLIENTS,
    known,
    needs,
    unknown,
)
from fedprune.types import Plan

MOST_ROUNDS = 1_000_000
"""What is planned, such as a prune event in each round, is in memory from the beginning."""


def ranges(config: DictConfig) -> list[str]:
    """Return the scalars that are out of range."""
    federated = config.federated
    rules = {
        f"density={config.density} is the fraction alive at the end: more than 0, at most 1": 0 < config.density <= 1,
        f"rounds={config.rounds} must be at least 1": config.rounds >= 1,
        f"rounds={config.rounds} must be at most {MOST_ROUNDS:,}": config.rounds <= MOST_ROUNDS,
        f"eval_every={config.eval_every} must be at least 1 round": config.eval_every >= 1,
        f"seed={config.seed} must not be negative": config.seed >= 0,
        f"checkpoint_every={config.checkpoint_every} is in seconds: 0 or more": config.checkpoint_every >= 0,
        f"federated.clients={federated.clients} must be at least 1": federated.clients >= 1,
        f"federated.cohort={federated.cohort} must be from 1 to federated.clients={federated.clients}: it is the number of "
        f"clients that train in a round; type federated.cohort={max(federated.clients, 1)} for all": 1
        <= federated.cohort
        <= max(federated.clients, 1),
        f"federated.evaluated={federated.evaluated} clients are evaluated on their own examples: at least 1, or null for all": (
            federated.evaluated is None or federated.evaluated >= 1
        ),
        f"federated.unseen={federated.unseen} is the fraction of the clients that are in no cohort: 0 or more, less than 1": (
            0 <= federated.unseen < 1
        ),
        f"federated.tuned={federated.tuned} clients are evaluated after one local training: 0 or more, or null for as many as "
        "a cohort": federated.tuned is None or federated.tuned >= 0,
    }
    choices = {"weighting": ("examples", "uniform"), "broken": ("stop", "drop"), "optimizer_state": ("fresh", "kept")}
    choices |= {"regrown": RULES, "control": ("none", "scaffold"), "tuned_at": MOMENTS}
    wrong = {key: federated[key] for key, known in choices.items() if federated[key] not in known}
    return [problem for problem, fine in rules.items() if not fine] + [
        f"federated.{key}={value}: choose one of {', '.join(choices[key])}" for key, value in wrong.items()
    ]


def executor(choice: Choice, device: str) -> list[str]:
    """Return a problem if the executor needs a GPU and the run is on another device, else nothing."""
    if device.startswith("cuda") or not choice.on_gpu_only:
        return []
    on_gpu = "device=auto or " if torch.cuda.is_available() else ""
    return [
        f"executor=cuda trains on a GPU, and this run is on device={device}: choose {on_gpu}executor=auto, "
        "or executor=batched, which does the same on a CPU"
    ]


def evidence(criterion: Criterion, names: Names) -> list[str]:
    """Return the formulas that ask for evidence that nobody can measure."""
    asked = {role: unknown(formula, role) for role, formula in criterion.formulas().items()}
    return [
        f"criterion={names['criterion']}: {role} asks for unknown evidence {', '.join(found)}; known: {', '.join(known(role))}"
        for role, found in asked.items()
        if found
    ]


def outcomes(plan: Plan, whose: Whose, names: Names) -> list[str]:
    """Return the outcomes that a gate asks for and no round has."""
    known = OUTCOMES if whose.global_mask else OUTCOMES_OF_CLIENTS
    asked = [name for name in needs(plan.gate.opens) if name not in OUTCOMES_OF_CLIENTS] if plan.gate else []
    if not asked:
        return []
    return [f"when={names['when']}: the gate asks for unknown outcomes {', '.join(asked)}; known: {', '.join(known)}"]


def objective(metric: str | None, task: TaskMetrics, validated: bool) -> None:
    """Raise ConfigError for a metric that no run of this task has, as far as names are known before it. validated: whether
    clients have validation data."""
    part, _, name = (metric or "").partition("/")
    parts = ("val", "test") if validated else ("test",)
    if metric is None or (part in parts and name in task.names) or (name and part not in ("val", "test")):
        return
    known = [f"{each}/{measured}" for each in parts for measured in task.names]
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
    advice = f"type objective={near[0]}; there are" if near else "choose one of"
    others = f"{', '.join(known)} and those of the last line of a run's metrics.jsonl"
    if part == "val" and name in task.names:
        advice = f"there is no validation data: type partition.val=0.1 for some, or objective=test/{name}; there are"
    raise ConfigError([f"objective={metric} is no metric of this run: {advice} {others}"])
