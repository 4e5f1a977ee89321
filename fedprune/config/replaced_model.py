"""A network of the user's own in the place of a model's: `model._target_=my_net.Net` with another model's yaml.

It is typed, or stands in an experiment or in a yaml of a model that is based on another one.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from hydra._internal.utils import _locate  # as hydra.utils.get_method, which also logs what is told later, too
from omegaconf import DictConfig, OmegaConf, open_dict

log = logging.getLogger(__name__)

TARGET = "_target_"


def drop_keys_of_the_replaced(model: DictConfig, typed: Container[str], option: str = "", folders: Sequence[Path] = ()) -> None:
    """Remove from a model's node the keys of the yaml whose `_target_` was replaced, if the new target does not take them.

    typed: the keys that the user typed, such as `model.norm`: these stay, and are refused where the network is made; so do keys
    that have another value than in the yaml. option: the chosen one of the group model. folders: where its yaml may be.
    Nothing is removed if the target was not replaced, or if it cannot be found, which is told later, too.
    """
    everything = f"model.{TARGET}" in typed
    inherited = {} if everything else _inherited(option, str(model.get(TARGET)), folders)
    if not everything and not inherited:
        return
    taken = _taken(str(model[TARGET]))
    left_over = [] if taken is None else [key for key in map(str, model) if not key.startswith("_") and key not in taken]
    written = OmegaConf.to_container(model)
    assert isinstance(written, dict)
    dropped = [
        key
        for key in left_over
        if f"model.{key}" not in typed and (everything or (key in inherited and inherited[key] == written[key]))
    ]
    with open_dict(model):
        for key in dropped:
            del model[key]
    if dropped:
        log.info("model: %s takes no %s, so what the yaml says of it is left out", model[TARGET], ", ".join(dropped))


def _inherited(option: str, target: str, folders: Sequence[Path]) -> dict[str, object]:
    """Return keys, with their values, of those yamls of an option that name another target: its own, and those that it is based
    on. A key that stands beside the target itself is not among them."""
    yaml = _read(option, folders)
    found: dict[str, object] = {}
    bases = yaml.get("defaults")
    for base in bases if isinstance(bases, list) else ():
        if isinstance(base, str) and base not in ("_self_", option):
            found |= _inherited(base, target, folders)
    own = {key: value for key, value in yaml.items() if not key.startswith("_") and key != "defaults"}
    if yaml.get(TARGET, target) != target:
        return found | own
    return {key: value for key, value in found.items() if key not in own}


def _read(option: str, folders: Sequence[Path]) -> Mapping[str, object]:
    """Return the yaml of an option of the group model; nothing if there is none."""
    for folder in folders:
        path = folder / "model" / f"{option}.yaml"
        if path.is_file():
            read = OmegaConf.to_container(OmegaConf.load(path))
            return {str(key): value for key, value in read.items()} if isinstance(read, dict) else {}
    return {}


def _taken(target: str) -> list[str] | None:
    """Return the names of a target's parameters; None if it cannot be found."""
    try:
        return list(inspect.signature(_locate(target)).parameters)
    except Exception:  # importing a module of the user's can raise anything
        return None
