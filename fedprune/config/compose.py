"""Compose one option of a config group by itself, outside of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf


def composed_option(group: str, option: str, folders: Sequence[Path]) -> DictConfig:
    """Return the node of an option, composed with its defaults list.

    folders: those that have a folder per group, as conf/ does, in the order in which they are searched. Raises Hydra's
    MissingConfigException if there is no such option, another HydraException if it cannot be composed by itself.
    """
    first, *rest = [folder.absolute() for folder in folders]
    search = ",".join(f"'file://{folder}'" for folder in rest)
    with hydra.initialize_config_dir(str(first), version_base="1.3"):
        node = hydra.compose(f"{group}/{option}", overrides=[f"hydra.searchpath=[{search}]"])
    for key in (group, *option.split("/")[:-1]):
        node = node.get(key) or OmegaConf.create()
    return node
