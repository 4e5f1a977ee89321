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
        # As a group of an empty configuration: a primary configuration is looked for in the first folder only.
        composed = hydra.compose(None, overrides=[f"hydra.searchpath=[{search}]", f"+{group}={option}"])
    return composed.get(group) or OmegaConf.create()
