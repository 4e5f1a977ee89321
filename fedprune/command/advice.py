"""Advice on keys and options that do not exist: the nearest ones that do, and this project's words for those of other tools."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

import hydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from fedprune.command.words import key_of
from fedprune.config import CONF
from fedprune.config.compose import initialised

OURS: Mapping[str, str] = {
    "experiment": "+experiment=NAME, with the +: an experiment is added to the defaults",
    "trainer.max_epochs": "rounds=100 for the rounds of the federation, and local.epochs=1 for a client's epochs in each",
    "trainer.max_steps": "local.epochs=null local.steps=100 for a client's steps in a round",
    "trainer.accelerator": "device=cuda, or device=auto for a GPU if there is one",
    "trainer.devices": "device=cuda:1 for another GPU, or executor.workers=2 for the processes",
    "trainer.check_val_every_n_epoch": "eval_every=5 for the rounds between two evaluations",
    "trainer.gradient_clip_val": "local.clip_norm=1.0",
    "trainer.callbacks": "local.module._target_=my_task.Mine, a LocalModule that has the hooks itself (docs/lightning.md)",
    "trainer.logger": "logger=csv, or another option of logger",
    "trainer": "rounds, local.epochs, device and executor: clients train in this project's loop, and there is no Trainer",
    "callbacks": "local.module._target_=my_task.Mine, a LocalModule that has the hooks itself (docs/lightning.md)",
    "optimizer.lr": "local.optimizer.lr=0.1",
    "optimizer": "local/optimizer=adam, or another option of it",
    "model.optimizer": "local/optimizer=adam, or another option of it",
    "model.lr": "local.optimizer.lr=0.1",
    "scheduler": "local.lr_decay=0.99 for every round, or configure_optimizers of a LocalModule (docs/lightning.md)",
    "datamodule": "data=fashion_mnist, or another option of data",
    "data.batch_size": "local.batch_size=32",
    "ckpt_path": "ticket=outputs/NAME/JOB",
    "lr": "local.optimizer.lr=0.1",
    "learning_rate": "local.optimizer.lr=0.1",
    "batch_size": "local.batch_size=32",
    "epochs": "rounds=100 for the rounds of the federation, and local.epochs=1 for a client's epochs in each",
    "max_epochs": "rounds=100 for the rounds of the federation, and local.epochs=1 for a client's epochs in each",
    "num_rounds": "rounds=100",
    "num_clients": "federated.clients=100",
    "fraction_fit": "federated.cohort=10, a number of clients",
    "sparsity": "density=0.1, which is 1 - sparsity",
}
"""What to type here, by the keys of Lightning's templates and of other federated frameworks."""


SEARCH = "a search in a range is a loop with Optuna, or another sweeper of Hydra's: docs/howto/sweeps.md"


OPEN = ("model", "data", "partition")
"""Groups whose options are often a user's own, and take keys that no yaml has."""


BOOLEANS = {"true", "false", "yes", "no", "on", "off", "y", "n", "1", "0"}
"""The words of omegaconf for yes and no."""


def explained(error: HydraException) -> str:
    """Return what a user is told of an error in composing: the nearest option or key, instead of all options."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        return _no_option(error.missing_cfg_file, error.options)
    searched = re.search(r"([^\s']+=(?:interval|tag|range|choice|glob|shuffle|sort)\(\S*)' requires --multirun", text)
    if searched or "INTERVAL_SWEEP" in text:
        typed = searched[1] if searched else "interval(0,1)"
        return f"{typed}: a grid has commas and -m (lr=0.1,0.5 -m); {SEARCH}"
    missing = re.search(r"Could not override '([^']+)'", text)
    if missing:
        return no_key(missing.group(1), default_keys())
    several = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if several:
        return f"{several.group(1)}: several values are a grid: add -m (in Python use fedprune.sweep)"
    cause = str(error.__cause__ or "").partition("\n")[0]
    lines = [line.strip() for line in text.splitlines() if line and "hydra.cc" not in line]
    return ": ".join(filter(None, [*lines[:2], cause]))


def unresolved(error: Exception) -> str:
    """Return what a user is told of a reference that cannot be resolved, or of a name that no folder can have."""
    return str(error).removeprefix("ConfigError raised while resolving interpolation: ").partition("\n")[0]


def unknown_keys(config: DictConfig, overrides: Iterable[str], groups: Container[str]) -> Iterator[str]:
    """Yield what is wrong with keys that were added, `+key=value`, and that nothing reads.

    A key is read if an option takes it (below a node with a `_target_`), if the schema has it, or if another value refers to
    it. groups: the config groups, which are added in the same way.
    """
    added = [key_of(word) for word in overrides if word.startswith("+")]
    for key in added:
        if "/" in key or "@" in key or key in groups:
            continue
        unread = _unread(config, key)
        if unread and not re.search(rf"\$\{{{re.escape(unread)}[.}}\[]", OmegaConf.to_yaml(config)):
            others = [each for each in keys(config) if not f"{each}.".startswith(f"{unread}.")]
            yield no_key(key, others, f"+{key}")


def no_booleans(config: DictConfig, overrides: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with values of yes-or-no keys of the schema: omegaconf makes true of any number."""
    for word in overrides:
        key, _, value = word.lstrip("+").partition("=")
        above, _, name = key.rpartition(".")
        node = OmegaConf.select(config, above) if above else config
        kind = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
        types = {field.name: field.type for field in fields(kind)} if is_dataclass(kind) else {}
        if types.get(name) == "bool" and value.lower() not in BOOLEANS and "$" not in value:
            yield f"{key}={value}: it takes true or false"


def _unread(config: DictConfig, key: str) -> str | None:
    """Return the part of a key at which it leaves the schema, or None if it does not."""
    node: object = config
    above = ""
    for name in key.split("."):
        kind = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
        if not is_dataclass(kind):
            return None
        above += name
        if name not in {field.name for field in fields(kind)}:
            return above
        node = OmegaConf.select(config, above)
        above += "."
    return None


def no_key(key: str, known: Sequence[str], typed: str = "") -> str:
    """Return the sentence on a key that does not exist. typed: the key with what stood before it."""
    ours = next((OURS[word] for word in _prefixes(key) if word in OURS), None)
    if ours:
        return f"{typed or key}: there is no such key here; type {ours}"
    near = nearest(key, known)
    group, _, below = key.partition(".")
    added = f"if the {group} that you chose takes it, type +{key}=VALUE; " if group in OPEN and below and not typed else ""
    advice = f"the nearest are {', '.join(near)}" if near else f"{added}`python -m fedprune --cfg job` prints all keys"
    return f"{typed or key}: there is no such key; {advice}"


def nearest(key: str, known: Sequence[str], most: int = 3) -> list[str]:
    """Return the known keys that are most like a key: first those with its last word, then those that are spelt alike."""
    name = key.rpartition(".")[2]
    same = [each for each in known if each.rpartition(".")[2] == name]
    alike = difflib.get_close_matches(key, known, n=most, cutoff=0.75)
    words = difflib.get_close_matches(name, {each.rpartition(".")[2] for each in known}, n=1, cutoff=0.8)
    spelt = [each for each in known if each.rpartition(".")[2] in words]
    return list(dict.fromkeys([*same, *alike, *spelt]))[:most]


def keys(config: DictConfig, above: str = "") -> list[str]:
    """Return the dotted keys of a configuration, nested ones included, without those that only name an object."""
    found = []
    for key in map(str, config):
        node = config._get_node(key)
        if key.startswith("_") or key == "hydra":
            continue
        found.append(f"{above}{key}")
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            found += keys(node, f"{above}{key}.")
    return found


def default_keys() -> list[str]:
    """Return the keys of the configuration without any override. It is composed anew, for an error's sake only."""
    with initialised(CONF):
        return keys(hydra.compose("config"))


def _no_option(file: str, options: Sequence[str]) -> str:
    group, _, option = file.rpartition("/")
    near = difflib.get_close_matches(option, options, n=3, cutoff=0.6)
    listed = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(options)}"
    pointer = {"hydra/sweeper": f"; {SEARCH}", "hydra/launcher": "; docs/howto/sweeps.md says what to install"}.get(group, "")
    return f"{group}={option}: there is no such option; {listed}{pointer}"


def _prefixes(key: str) -> Iterator[str]:
    """Yield a key and what it is below, the longest first."""
    while key:
        yield key
        key = key.rpartition(".")[0]
