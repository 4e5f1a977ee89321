"""Configurations, composed by Hydra once and put together from there."""

from __future__ import annotations

import functools
import pickle

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from fedprune import run_id
from fedprune.config import CONF, schema

TINY = (
    *("rounds=3", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=3"),
    *("local.batch_size=16", "logger=none", "executor=serial", "density=0.3", "federated.tuned=0"),
)
"""Overrides that make a run take milliseconds."""


NESTED = (
    *("federated/aggregate", "federated/availability", "federated/capacity", "federated/client", "federated/round"),
    "federated/upload",
    *("data/augment", "local/optimizer", "local/penalty", "local/dropout"),
)
"""Config groups inside another one."""


def composed(*overrides: str) -> tuple[DictConfig, dict[str, str]]:
    """Return (config, the chosen option of each group), as `build` takes them; composed once, and each time a copy."""
    return pickle.loads(_pickled(*overrides))


@functools.cache
def _pickled(*overrides: str) -> bytes:
    """Return what `composed` gives, in the form of which a copy is made in a fifth of the time."""
    schema.register()
    run_id.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    names = {group: config.hydra.runtime.choices[group] for group in run_id.GROUPS}
    with open_dict(config):
        del config["hydra"]
    return pickle.dumps((config, names), pickle.HIGHEST_PROTOCOL)


@functools.cache
def _option(group: str, option: str) -> DictConfig:
    """One option's own node, composed without all the other groups, a third of the time; with them where it has a schema."""
    if group in ("federated", "local"):
        return composed(f"{group}={option}")[0][group]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.select(hydra.compose(None, overrides=[f"+{group}={option}"]), group.replace("/", "."))


def assemble(*overrides: str) -> tuple[DictConfig, dict[str, str]]:
    """What `compose` gives, put together from options that were composed once: a tenth of the time."""
    config, names = composed()
    pairs = [override.partition("=") for override in overrides]
    groups = {key: value for key, _, value in pairs if key in {*run_id.GROUPS, *NESTED}}
    for group, option in sorted(groups.items()):
        node = _option(group, option)
        if group == "data":  # it is composed beside its augmentation, which is a group of its own
            node = OmegaConf.merge({"augment": config.data.augment}, node)
        OmegaConf.update(config, group.replace("/", "."), node, merge=False)
        names[group] = option
    for key, _, value in pairs:
        if key not in groups:
            typed = OmegaConf.from_dotlist([f"value={value}"]).value
            OmegaConf.update(config, key.lstrip("+"), typed, merge=False, force_add=key.startswith("+"))
    return config, {group: names[group] for group in run_id.GROUPS}
