"""Checks that the federated loop can train a user's module: by its overrides, and by one step on a copy."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch

from fedprune.data.batches import Batch
from fedprune.errors import ConfigError, FedpruneError, Incompatible, place_of
from fedprune.local.hooks import TRAINERS, overridden, plain, problems
from fedprune.local.lightning.job_trainer import Planned
from fedprune.local.lightning.schedules import configured, needs_closure
from fedprune.local.module import LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.train import fit, unload
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.evidence import needs
from fedprune.types import Subnet

log = logging.getLogger(__name__)


def overrides(module: LocalModule) -> None:
    """Raise ConfigError for what the loop would leave out; say what only a pl.Trainer calls."""
    wrong = problems(module)
    if wrong:
        raise ConfigError(wrong)
    unused = [name for name in TRAINERS if name in overridden(module)]
    if unused:
        kind = type(module).__name__
        log.warning("%s of %s: called under a pl.Trainer only; clients are evaluated by outcome", ", ".join(unused), kind)


def needs_trying(module: LocalModule) -> bool:
    """Return whether a step of this module does more than is known of it."""
    return not plain(module) or needs_closure(configured(module)[0])


def first_step(module: LocalModule, recipe: Recipe, batches: Iterable[Batch], planned: Planned, client: int) -> int:
    """Train the module on a client's first batch, or more. Return the number of steps that it takes: none if it leaves out all.

    Raises ConfigError with what goes wrong, and where.
    """
    name, before = f"local.module {type(module).__name__}", unload(module)
    try:
        with torch.random.fork_rng(devices=[]):
            trained = fit(module, Subnet(before, {}), batches, recipe, planned=planned)
    except FedpruneError as error:
        raise ConfigError([f"{name}: {error}"]) from error
    except Exception as error:
        told = f"{type(error).__name__}: {error} ({place_of(error)})"
        raise ConfigError([f"{name}: its first step, on examples of client {client}, fails: {told}"]) from error
    return trained.steps


def refuse_idle(module: LocalModule, tried: int) -> None:
    """Raise ConfigError for a module that has left out all batches that it was tried on. tried: their number."""
    name = f"local.module {type(module).__name__}"
    raise ConfigError(
        [
            f"{name} trains nothing: its training_step returned None, which leaves a batch out, for all {tried} that it was "
            "tried on: return the mean loss of the batch"
        ]
    )


def replayed(module: LocalModule, criterion: Criterion) -> None:
    """Raise Incompatible if a formula asks for steps of the optimizer, and these evaluate the loss themselves."""
    optimizer = configured(module)[0]
    if needs_closure(optimizer) and any("movement" in needs(formula) for formula in criterion.formulas().values()):
        raise Incompatible(
            f"movement is measured over single steps, and one of {type(optimizer).__name__} evaluates the loss several times: "
            "choose criterion=magnitude, or an optimizer such as SGD"
        )


def one_rate(module: LocalModule) -> None:
    """Raise Incompatible if the learning rate may change within a round, where SCAFFOLD's controls are worked out from it."""
    schedules = [type(config.scheduler).__name__ for config in configured(module)[1]]
    changing = [*schedules, *(["optimizer_step"] if "optimizer_step" in overridden(module) else [])]
    if changing:
        raise Incompatible(
            f"federated.control=scaffold divides by the one learning rate of a round, and {type(module).__name__} has "
            f"{' and '.join(changing)}: choose federated=fedavg, or set local.lr_decay in the place of a schedule"
        )
