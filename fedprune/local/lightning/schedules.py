"""The optimizer that configure_optimizers returns, in any form that Lightning accepts, and its learning-rate schedules.

Both are made anew for every job, so a schedule starts at its beginning in every round. local.lr_decay and local.retrain_lr
multiply the learning rate of the schedule: see `Rates`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import (
    _configure_optimizers,
    _configure_schedulers_automatic_opt,
    _validate_optimizers_attached,
    _validate_scheduler_api,
)
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]  # re-exported
from pytorch_lightning.utilities.types import LRSchedulerConfig

from fedprune.errors import ConfigError

Configured = tuple[torch.optim.Optimizer, list[LRSchedulerConfig]]


def configured(module: pl.LightningModule) -> Configured:
    """Return the module's optimizer and its schedules. Raises ConfigError for what the federated loop cannot train with."""
    answer: object = module.configure_optimizers()
    return (answer, []) if isinstance(answer, torch.optim.Optimizer) else _read(module, answer)


def _read(module: pl.LightningModule, answer: object) -> Configured:
    name = f"{type(module).__name__}.configure_optimizers"
    if answer is None:
        raise ConfigError([f"{name} returned None: return a torch optimizer"])
    try:
        optimizers, schedulers, monitor = _configure_optimizers(answer)  # type: ignore[arg-type]  # it checks what it is given
        configs = _configure_schedulers_automatic_opt(schedulers, monitor)
        _validate_optimizers_attached(optimizers, configs)
        _validate_scheduler_api(configs, module)
    except (MisconfigurationException, TypeError, KeyError) as error:
        raise ConfigError([f"{name}: {error}"]) from error
    if len(optimizers) != 1:
        raise ConfigError(
            [f"{name} returned {len(optimizers)} optimizers: return one, with a group of parameters for each part"]
        )
    if any(config.reduce_on_plateau for config in configs):
        raise ConfigError(
            [
                f"{name}: ReduceLROnPlateau compares epochs, and a schedule lives for one round of one client: "
                "choose one that counts steps or epochs, such as CosineAnnealingLR"
            ]
        )
    return optimizers[0], configs


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's step evaluates the loss itself, as the step of L-BFGS does."""
    closure = _parameters(type(optimizer).step).get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def takes_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's step accepts a function that evaluates the loss."""
    parameters = _parameters(type(optimizer).step)
    return "closure" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@functools.cache
def _parameters(step: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(step).parameters


class Rates:
    """The learning rates of an optimizer times `factor`, while schedules change them.

    A schedule computes the next rate from its last one. So it sees its own rates, without the factor, while it steps; at all
    other times the optimizer has the multiplied rates. A rate that a hook has set is used as it is, and divided by the factor
    before the schedule sees it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: float):
        self._groups, self._factor = optimizer, factor
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._multiply()

    def scheduled(self, step: Callable[[], None]) -> None:
        """Let a schedule take its step."""
        if self._factor == 1:
            step()
            return
        for group, rate in zip(self._groups.param_groups, self._rates, strict=True):
            group["lr"] = rate if group["lr"] == rate * self._factor else group["lr"] / self._factor
        step()
        self._rates = [group["lr"] for group in self._groups.param_groups]
        self._multiply()

    def _multiply(self) -> None:
        if self._factor != 1:
            for group in self._groups.param_groups:
                group["lr"] = group["lr"] * self._factor
