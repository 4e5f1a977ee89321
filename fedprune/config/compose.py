"""Compose outside of Hydra's own command: one option of a config group by itself, and what others need for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf


@contextmanager
def initialised(folder: Path) -> Iterator[None]:
    """Initialise Hydra with a folder of yamls for the time of the context, also inside an application of Hydra's own."""
    state = GlobalHydra.instance()
    before, state.hydra = state.hydra, None
    try:
        with hydra.initialize_config_dir(str(folder), version_base="1.3", job_name="fedprune"):
            yield
    finally:
        state.hydra = before


def composed_option(group: str, option: str, folders: Sequence[Path]) -> DictConfig:
    """Return the node of an option, composed with its defaults list.

    folders: those that have a folder per group, as conf/ does, in the order in which they are searched. Raises Hydra's
    MissingConfigException if there is no such option, another HydraException if it cannot be composed by itself.
    """
    first, *rest = [folder.absolute() for folder in folders]
    search = ",".join(f"'file://{folder}'" for folder in rest)
    with initialised(first):
        # As a group of an empty configuration: a primary configuration is looked for in the first folder only.
        composed = hydra.compose(None, overrides=[f"hydra.searchpath=[{search}]", f"+{group}={option}"])
    return composed.get(group) or OmegaConf.create()
