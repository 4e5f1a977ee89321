"""What a run's result depends on, as far as its configuration tells: two runs of one identity are one run.

Every key is in it, at its value after interpolation, so that ${oc.env:X} counts with what X is. Left out are those of VOLATILE,
which change no result. What `executor` and `device` do change is how sums are rounded: see `arithmetic`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedprune.errors import ConfigError

VOLATILE = ("executor", "logger", "device", "dry_run", "force", "checkpoint_every", "profile", "hydra")
"""Keys that do not change a result: a run is the same run whatever they are."""

AT_ONCE = 32
"""How many clients are trained as one batched model, where `executor.at_once` does not say."""

NOTHING = {"_target_": "fedprune.local.regularisers.base.none"}
"""What a penalty or dropout is where there is none."""


def identity(config: DictConfig) -> dict[str, Any]:
    """Return all that may change the result, as plain values. Raises omegaconf's errors for what cannot be interpolated."""
    plain = resolved(config)
    kept = {key: value for key, value in plain.items() if key not in VOLATILE}
    if kept["ticket"]["path"] is None:
        del kept["ticket"]  # a run without one is what it was before there were any
    kept["local"] = {key: value for key, value in kept["local"].items() if value != NOTHING}  # likewise
    kept["data"] = _data(kept["data"])
    return kept | arithmetic(plain["executor"], plain["device"])


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return the values of all keys but hydra's, whose folder is named by the others. Raises omegaconf's errors."""
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _data(option: Any) -> Any:
    """A data set's keys, with what stands for its root in place of that, or nothing where the root makes no difference."""
    if not isinstance(option, Mapping) or "root" not in option:
        return option
    of_root = _declared(option.get("_target_"), "depends_on", lambda root: root)
    root = of_root(option["root"])
    return {key: value for key, value in option.items() if key != "root"} | ({} if root is None else {"root": root})


def arithmetic(executor: Any, device: str) -> dict[str, Any]:
    """Return {} where sums are taken in the order of executor=serial on a CPU, as they are by default; else what decides it.

    serial, processes and ray give the same bits on one kind of device. executor=batched and cuda, and any GPU, differ from them
    by rounding, which training makes larger: another result, and another run. An executor that declares `batches_on`, the kinds
    of device on which it trains several clients as one model, is taken at its word.
    """
    kind = _kind(device)
    batched = kind in _declared(executor.get("_target_"), "batches_on", ())
    at_once = executor.get("at_once", AT_ONCE) if batched else 1
    return {} if (kind, at_once) == ("cpu", 1) else {"arithmetic": {"device": kind, "at_once": at_once}}


def _kind(device: str) -> str:
    from fedprune.device import chosen  # torch takes a second to import: a typo need not wait for it

    with suppress(ConfigError):  # which build reports
        device = chosen(device)
    return device.partition(":")[0]


def _declared(target: Any, attribute: str, otherwise: Any) -> Any:
    """Return what the object that `_target_` names declares about itself; `otherwise`, too, if there is no such object."""
    module, _, name = str(target).rpartition(".")
    try:
        return getattr(getattr(importlib.import_module(module), name), attribute, otherwise)
    except Exception:  # a module of the user's own may raise anything; build tells what
        return otherwise
