"""The identity of a run: all of its configuration that its result depends on. Two runs of one identity are one run.

Every key is in it, at its value after interpolation, so that ${oc.env:X} counts with the value of X. Left out are the keys of
VOLATILE, which change no result. `executor` and `device` do change how sums are rounded: see `arithmetic`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from fedprune.capabilities import declared
from fedprune.errors import ConfigError

if TYPE_CHECKING:  # importing it takes torch's second
    from fedprune.types import Json

VOLATILE = ("executor", "logger", "device", "dry_run", "force", "checkpoint_every", "profile", "home", "hydra")
"""Keys that do not change a result."""

AT_ONCE = 32
"""The number of clients that are trained as one batched model, unless `executor.at_once` says another."""

ADDED = {"tuned": None, "tuned_at": "evaluations", "unseen": 0.0}
"""Keys of `federated` that came later, each with the value at which a run trains what it trained before there was the key."""

NEIGHBOURS = "fedprune.federated.decentralised.Neighbours"
"""The kind of round whose client/* were of trained networks, and are of those that a client begins its next round with: runs of
it from before these keys are others."""

NOTHING = {"_target_": "fedprune.local.regularisers.base.none"}
"""The node of a penalty or dropout that is off."""

Loader = TypeVar("Loader", bound=Callable[..., object])


def root_counts_as(stand_in: Callable[[str], str | None]) -> Callable[[Loader], Loader]:
    """Declare on a loader `(root, ...) -> data set` what takes the place of its root in the identity of a run.

    stand_in: root -> that text; None if the loader gives the same data wherever root is. Without a declaration it is the root.
    """

    def declare(loader: Loader) -> Loader:
        loader.__dict__["depends_on"] = stand_in
        return loader

    return declare


def identity(config: DictConfig) -> Json:
    """Return every key that may change the result, as plain values. Raises omegaconf's errors for a bad interpolation."""
    plain = resolved(config)
    kept = {key: value for key, value in plain.items() if key not in VOLATILE}
    if kept["ticket"]["path"] is None:
        del kept["ticket"]  # a run without a ticket keeps the identity that it had before there were tickets
    kept["local"] = {key: value for key, value in kept["local"].items() if value != NOTHING}  # so do these
    if kept["federated"]["round"]["_target_"] != NEIGHBOURS:
        kept["federated"] = {key: value for key, value in kept["federated"].items() if ADDED.get(key, NOTHING) != value}
    kept["how_often"] = {key: value for key, value in kept["how_often"].items() if (key, value) != ("alone", 0)}  # and these
    kept["data"], kept["whose"] = _data(kept["data"]), _whose(kept["whose"])
    return kept | arithmetic(plain["executor"], plain["device"])


def resolved(config: DictConfig) -> Json:
    """Return the values of all keys but hydra's, whose folder is named after them. Raises omegaconf's errors."""
    ours = [str(key) for key in config if key != "hydra"]
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, ours), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _data(option: object) -> object:
    """Return a data set's keys, with its root replaced by what it counts as, or left out where that is None."""
    if not isinstance(option, Mapping) or "root" not in option:
        return option
    stand_in = _declared(option.get("_target_"), "depends_on", lambda root: root)
    root = stand_in(option["root"])
    others = {key: value for key, value in option.items() if key != "root"}
    return others if root is None else others | {"root": root}


def _whose(option: object) -> object:
    """Return the keys of `whose`, without `common` where no client keeps values of its own: it decides nothing there."""
    if not isinstance(option, Mapping) or option.get("uncommon") != "server":
        return option
    return {key: value for key, value in option.items() if key != "common"}


def arithmetic(executor: Json, device: str) -> dict[str, object]:
    """Return the keys that decide the order in which sums are taken; {} for the default, executor=serial on a CPU.

    serial, processes and ray give the same bits on one kind of device. executor=batched and cuda, and any GPU, differ from them
    by rounding, which training makes larger: the result is another, and so is the run. An executor declares in `batches_on` the
    kinds of device on which it trains several clients as one model.
    """
    kind = _kind(device)
    batched = kind in _declared(executor.get("_target_"), "batches_on", ())
    at_once = executor.get("at_once", AT_ONCE) if batched else 1
    if (kind, at_once) == ("cpu", 1):
        return {}
    return {"arithmetic": {"device": kind, "at_once": at_once}}


def _kind(device: str) -> str:
    from fedprune.device import chosen  # importing torch takes a second: a typo need not wait for it

    with suppress(ConfigError):  # build reports it
        device = chosen(device)
    return device.partition(":")[0]


def _declared(target: object, attribute: str, otherwise: object) -> Any:
    """Return an attribute of the object that `_target_` names; `otherwise` if it has none, or if there is no such object."""
    module, _, name = str(target).rpartition(".")
    try:
        return declared(vars(importlib.import_module(module))[name], attribute, otherwise)
    except Exception:  # a user's module may raise anything; build reports it
        return otherwise
