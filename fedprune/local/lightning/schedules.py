"""The optimizer that configure_optimizers gives, in any of the forms that Lightning takes, and its learning-rate schedules.

Both are made anew for every job: a schedule begins at its beginning in every round. What local.lr_decay and local.retrain_lr
multiply is the rate that the schedule gives, whatever the schedule: see `Rates`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_lightning.core.optimizer import (
    _configure_optimizers,
    _configure_schedulers_automatic_opt,
    _validate_optimizers_attached,
    _validate_scheduler_api,
)
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.types import LRSchedulerConfig

from fedprune.errors import ConfigError

Configured = tuple[torch.optim.Optimizer, list[LRSchedulerConfig]]


def configured(module: Any) -> Configured:
    """Return the module's optimizer and its schedules. Raises ConfigError for what the federated loop cannot train with."""
    answer = module.configure_optimizers()
    return (answer, []) if isinstance(answer, torch.optim.Optimizer) else _read(module, answer)


def _read(module: Any, answer: Any) -> Configured:
    name = f"{type(module).__name__}.configure_optimizers"
    if answer is None:
        raise ConfigError([f"{name} returned None: return a torch optimizer"])
    try:
        optimizers, schedulers, monitor = _configure_optimizers(answer)
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
    """Return whether the optimizer's step evaluates the loss itself, as that of L-BFGS does."""
    closure = _parameters(type(optimizer).step).get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def takes_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's step may be given a function that evaluates the loss."""
    parameters = _parameters(type(optimizer).step)
    return "closure" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@functools.cache
def _parameters(step: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(step).parameters


class Rates:
    """The learning rates of an optimizer, multiplied by `factor`, also as schedules change them.

    A schedule computes the next rate from its own last one. So it is shown its own rates while it steps; at all other times the
    optimizer has the multiplied ones. What a hook sets a rate to is taken as it is, and divided when the schedule sees it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: float):
        self._groups, self._factor = optimizer, factor
        self._own = [group["lr"] for group in optimizer.param_groups]
        self._multiply()

    def scheduled(self, step: Callable[[], None]) -> None:
        """Have a schedule take its step."""
        if self._factor == 1:
            step()
            return
        for group, own in zip(self._groups.param_groups, self._own, strict=True):
            group["lr"] = own if group["lr"] == own * self._factor else group["lr"] / self._factor
        step()
        self._own = [group["lr"] for group in self._groups.param_groups]
        self._multiply()

    def _multiply(self) -> None:
        if self._factor != 1:
            for group in self._groups.param_groups:
                group["lr"] = group["lr"] * self._factor
