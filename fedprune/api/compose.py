"""From words, as they are typed behind `python -m fedprune`, to a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedprune import run_id
from fedprune.command.advice import explained, no_booleans, unknown_keys, unresolved
from fedprune.command.words import arguments, key_of
from fedprune.config import CONF, schema
from fedprune.config.compose import initialised
from fedprune.config.replaced_model import drop_keys_of_the_replaced
from fedprune.errors import ConfigError


@dataclass(frozen=True)
class Composition:
    """A configuration, and how it came about.

    config: all keys with their values. options: the chosen option of each group. overrides: the words. folder: where the run
    leaves its results, relative to the working directory. objective: the metric that the run returns, or None for the
    validation metric. home: the section `home` of a sweep over a claim, or None.
    """

    config: DictConfig
    options: Mapping[str, str]
    overrides: tuple[str, ...]
    folder: Path
    objective: str | None = None
    home: object = None

    def __repr__(self) -> str:
        return f"<the composition of {self.folder}>"


def compose(overrides: Sequence[str] = (), config_dir: Path | str | None = None) -> Composition:
    """Return the configuration of one run.

    overrides: words such as "criterion=snip" or "+experiment=feddst". config_dir: the folder of your own options, with a folder
    for each group. Raises ConfigError for a key or an option that does not exist.
    """
    with configured(config_dir) as search:
        try:
            config = hydra.compose("config", overrides=[*search, *checked(overrides)], return_hydra_config=True)
            folder = Path(config.hydra.run.dir)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([advice(error)]) from None  # Hydra's own traceback says nothing to a user
    return taken_apart(config, folder)


def checked(overrides: Sequence[str]) -> list[str]:
    """Return the words for Hydra. Raises ConfigError if they are no list of words, or are flags of the command line."""
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise ConfigError([f'overrides={overrides!r} is a list of words: type ["rounds=10", "criterion=snip"]'])
    flags = {"-m": "use fedprune.sweep", "--multirun": "use fedprune.sweep", "--config-dir": "use config_dir=FOLDER"}
    problems = [
        f"{word} is a flag of the command: {flags.get(word, 'leave it out')}" for word in overrides if word.startswith("-")
    ]
    if problems:
        raise ConfigError(problems)
    return arguments(overrides)


def advice(error: Exception) -> str:
    """Return what a user is told of an error in composing."""
    return explained(error) if isinstance(error, HydraException) else unresolved(error)


def taken_apart(config: DictConfig, folder: Path) -> Composition:
    """Return a composition from a configuration that has Hydra's own node, too; that node is removed from it.

    Raises ConfigError for keys that were added and that nothing reads.
    """
    with open_dict(config):
        ours = config.pop("hydra")
        objective, home = config.pop("objective"), config.pop("home")
    typed_words = ours.overrides.task
    problems = [*unknown_keys(config, typed_words, ours.runtime.choices), *no_booleans(config, typed_words)]
    if problems:
        raise ConfigError(problems)
    folders = [Path(source.path) for source in ours.runtime.config_sources if source.schema == "file"]
    typed = {key_of(word) for word in ours.overrides.task}
    drop_keys_of_the_replaced(config.model, typed, str(ours.runtime.choices["model"]), folders)
    options = {group: ours.runtime.choices[group] for group in run_id.GROUPS}
    return Composition(config, options, tuple(ours.overrides.task), folder, objective, home)


@contextmanager
def configured(config_dir: Path | str | None) -> Iterator[list[str]]:
    """Initialise Hydra with conf/ for the time of the context; yield the overrides that add a user's folder.

    Raises ConfigError if there is no such folder.
    """
    schema.register()
    run_id.register()
    search = []
    if config_dir is not None:
        folder = Path(config_dir).absolute()
        if not folder.is_dir():
            raise ConfigError([f"config_dir={config_dir} is not a folder: name the one that has a folder for each group"])
        search = [f"hydra.searchpath=['file://{folder}']"]
    with initialised(CONF):
        yield search
