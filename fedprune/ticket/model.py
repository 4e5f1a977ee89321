"""Make the network of a ticket again, from the whole model config that its provenance holds.

A ticket may come from anywhere, so what it names is never called: every `_target_` in it has to stand at the same place in the
model's yaml on this machine. All other values (numbers, texts, lists, dicts) are used as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from torch import nn

from fedprune.config.instantiate import make_network
from fedprune.errors import DataError
from fedprune.experiment import checks
from fedprune.ticket.read import Ticket, parsed

MODEL = "model"
OPTION = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
"""Names of options, which may be in folders: never a path that leaves the folder of the options."""


@dataclass(frozen=True)
class Model:
    """option: the model's yaml. config: all that it said in the run. shape: of one input. classes: of the data set."""

    option: str
    config: Mapping[str, Any]
    shape: tuple[int, ...]
    classes: int


def model_of(ticket: Ticket) -> Model:
    """Return what the ticket says of its network. Raises DataError if it does not say it."""
    network = parsed(ticket.provenance, "network")
    try:
        shape = tuple(map(int, network["shape"]))
        return Model(str(network["option"]), dict(network["config"]), shape, int(network["classes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{ticket.path} does not say which network it is of: it was not written by a run of this version"
        ) from error


def build_network(ticket: Ticket, model: Model, folders: Sequence[Path]) -> nn.Module:
    """Return the network, newly initialised. folders: where model/*.yaml are, the first one first.

    Raises DataError if the model is not known here, or if its config names what the yaml does not; ConfigError if what the yaml
    names cannot be made.
    """
    yaml = _yaml(model.option, folders, ticket.path)
    problems = [f"{ticket.path}: {problem}" for problem in _strangers(model, yaml)]
    if problems:
        raise DataError("\n".join(problems))
    with torch.random.fork_rng(devices=[]):
        net = make_network(OmegaConf.create(dict(model.config)), model.shape, model.classes)
    return checks.network(net, model.config["_target_"])


def changed(model: Model, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values in which two configs of the same option differ, by key: (of the ticket, of `config`)."""
    keys = dict.fromkeys([*model.config, *config])
    pairs = {key: (model.config.get(key), config.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _yaml(option: str, folders: Sequence[Path], path: Path) -> Any:
    """Return the option as it is on this machine, its defaults list followed."""
    unknown = DataError(f"{path}: model={option} is not known here; for a model of your own give --config-dir DIR")
    if not OPTION.fullmatch(option):
        raise unknown
    first, *rest = [folder.absolute() for folder in folders]
    search = ",".join(f"'file://{folder}'" for folder in rest)
    try:
        with hydra.initialize_config_dir(str(first), version_base="1.3"):
            composed = hydra.compose(f"{MODEL}/{option}", overrides=[f"hydra.searchpath=[{search}]"])
    except MissingConfigException as error:
        raise unknown from error
    except HydraException as error:
        raise DataError(f"{path}: model={option} cannot be composed by itself: {error}") from error
    node = composed
    for group in (MODEL, *option.split("/")[:-1]):
        node = node.get(group, {})
    return OmegaConf.to_container(node, resolve=False) if node else {}


def _strangers(model: Model, yaml: Any) -> list[str]:
    """Return what of the config cannot be taken from a file: callables that the yaml does not name, and interpolations."""
    file, known, problems = f"model/{model.option}.yaml", dict(_targets(yaml, MODEL)), []
    for place, target in _targets(dict(model.config), MODEL):
        if known.get(place) != target:
            problems.append(
                f"{place} is {target} in it, and {known.get(place, 'not named')} in {file} here. What a file names is not "
                f"called: write it into {file} in a folder of your own, and give --config-dir DIR"
            )
    problems += [f"{place} has an interpolation" for place, text in _texts(dict(model.config), MODEL) if "${" in text]
    return problems if "_target_" in model.config else [*problems, "its model names no _target_"]


def _targets(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield (place, what it names) of every node that names something to call."""
    return ((at.removesuffix("._target_"), text) for at, text in _texts(node, place) if at.endswith("._target_"))


def _texts(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of every text in nested dicts and lists."""
    if isinstance(node, str):
        yield place, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from _texts(value, f"{place}.{key}")
