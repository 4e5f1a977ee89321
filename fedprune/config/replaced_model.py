"""A network of the user's own in the place of a model's: `model._target_=my_net.Net` with another model's yaml."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Container

from hydra._internal.utils import _locate  # as hydra.utils.get_method, which also logs what is told later, too
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)

TARGET = "_target_"


def drop_keys_of_the_replaced(model: DictConfig, typed: Container[str]) -> None:
    """Remove from a model's node the keys of the yaml whose `_target_` was replaced, if the new target does not take them.

    typed: the keys that the user typed, such as `model.norm`: these stay, and are refused where the network is made. Nothing
    is removed unless `model._target_` is among them, or if the target cannot be found, which is told later, too.
    """
    if f"model.{TARGET}" not in typed:
        return
    taken = _taken(str(model[TARGET]))
    left_over = [] if taken is None else [key for key in map(str, model) if not key.startswith("_") and key not in taken]
    dropped = [key for key in left_over if f"model.{key}" not in typed]
    with open_dict(model):
        for key in dropped:
            del model[key]
    if dropped:
        log.info("model: %s takes no %s, so what the yaml says of it is left out", model[TARGET], ", ".join(dropped))


def _taken(target: str) -> list[str] | None:
    """Return the names of a target's parameters; None if it cannot be found."""
    try:
        return list(inspect.signature(_locate(target)).parameters)
    except Exception:  # importing a module of the user's can raise anything
        return None
