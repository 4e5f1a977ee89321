"""Make the network of a ticket again, from the whole model config in its provenance.

A ticket may come from anywhere, so a name in it is never called as it is: every `_target_` must be at the same place in the
model's yaml on this machine, or be typed by the user (`--model my_net.Net`). All other values (numbers, texts, lists, dicts)
are used as they are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from torch import nn

from fedprune.config.compose import composed_option
from fedprune.config.instantiate import make_network
from fedprune.errors import DataError, shown
from fedprune.models.check import check_network
from fedprune.ticket.read import Ticket, parsed
from fedprune.ticket.schema import beyond
from fedprune.types import Json

MODEL = "model"
OPTION = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
"""The names of options. They may be in subfolders, but never in a path that leaves the folder of the options."""


@dataclass(frozen=True)
class Model:
    """The model of a ticket. option: the name of its yaml. config: the whole node in the run. shape: of one input. classes: of
    the data set.
    """

    option: str
    config: Json
    shape: tuple[int, ...]
    classes: int


def model_of(ticket: Ticket) -> Model:
    """Return the model in a ticket's provenance. Raises DataError if it is not there."""
    network = parsed(ticket.provenance, "network")
    try:
        shape, classes = tuple(network["shape"]), network["classes"]
        model = Model(str(network["option"]), dict(network["config"]), shape, classes)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{ticket.path} does not say which network it is of: it was not written by a run of this version"
        ) from error
    if not 1 <= len(shape) <= 8 or not all(type(size) is int and size >= 1 for size in (*shape, classes)):
        raise DataError(f"{ticket.path} is damaged: its network is of shape {shown(shape)} and {shown(classes)} classes")
    if problem := beyond({"classes": classes, "shape": [*shape], "config": model.config}, ticket.params):
        raise DataError(f"{ticket.path} is damaged: of its network, {problem}")
    return model


def build_network(ticket: Ticket, model: Model, folders: Sequence[Path], trusted: Collection[str] = ()) -> nn.Module:
    """Return the network, newly initialised. folders: where model/*.yaml are, the first one first. trusted: callables that the
    user has named.

    Raises DataError if the model is not known here, or if its config names a callable that the yaml does not name; ConfigError
    if the network cannot be made.
    """
    config = dict(model.config)
    targets = {target for _, target in _targets(config, MODEL)}
    if idle := [target for target in trusted if target not in targets]:
        raise DataError(f"--model {' '.join(idle)}: {ticket.path} names {', '.join(sorted(targets)) or 'nothing'}: type these")
    yaml = {} if targets <= {*trusted} else _yaml(model.option, folders, ticket.path)
    problems = [f"{ticket.path}: {problem}" for problem in _untrusted(model, yaml, trusted)]
    if problems:
        raise DataError("\n".join(problems))
    if (problem := _too_large(ticket, model)) is not None:
        raise DataError(f"{ticket.path} is damaged: {problem}")
    with torch.random.fork_rng(devices=[]):
        net = make_network(OmegaConf.create(dict(model.config)), model.shape, model.classes)
    return check_network(net, model.config["_target_"])


def _too_large(ticket: Ticket, model: Model) -> str | None:
    """Return a problem if the network has more parameters than the file; it is made without memory for them, if it can be."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            net = make_network(OmegaConf.create(dict(model.config)), model.shape, model.classes)
    except Exception:  # a network that computes with its numbers while it is made
        return None
    wanted, there = (sum(t.numel() for t in tensors) for tensors in (net.parameters(), ticket.params.values()))
    return f"its network has {wanted} parameters, and its tensors {there} numbers" if wanted > there else None


def changed(model: Model, config: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return the values in which two configs of the same option differ, by key: (in the ticket, in `config`)."""
    keys = dict.fromkeys([*model.config, *config])
    pairs = {key: (model.config.get(key), config.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _yaml(option: str, folders: Sequence[Path], path: Path) -> object:
    """Return the option as it is on this machine, composed with its defaults list."""
    unknown = DataError(
        f"{path}: model={option} is not known here; for a model of your own give --model MODULE.CLASS, or --config-dir DIR"
    )
    if not OPTION.fullmatch(option):
        raise unknown
    try:
        return OmegaConf.to_container(composed_option(MODEL, option, folders), resolve=False)
    except MissingConfigException as error:
        raise unknown from error
    except HydraException as error:
        raise DataError(f"{path}: model={option} cannot be composed by itself: {error}") from error


def _untrusted(model: Model, yaml: object, trusted: Collection[str]) -> list[str]:
    """Return why the config cannot be taken from a file: callables that the yaml does not name, and interpolations."""
    file, known, problems = f"model/{model.option}.yaml", dict(_targets(yaml, MODEL)), []
    for key, target in _targets(dict(model.config), MODEL):
        if target not in trusted and known.get(key) != target:
            problems.append(
                f"{key} is {target} in it, and {known.get(key, 'not named')} in {file} here. What a file names is not "
                f"called by itself: if you know that code, type --model {target}"
            )
    problems += [f"{key} has an interpolation" for key, text in _texts(dict(model.config), MODEL) if "${" in text]
    return problems if "_target_" in model.config else [*problems, "its model names no _target_"]


def _targets(node: object, key: str) -> Iterator[tuple[str, str]]:
    """Yield (key, target) of every node that has a `_target_`."""
    texts = _texts(node, key)
    return ((path.removesuffix("._target_"), text) for path, text in texts if path.endswith("._target_"))


def _texts(node: object, key: str) -> Iterator[tuple[str, str]]:
    """Yield (key, text) of every text in nested dicts and lists."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _texts(value, f"{key}.{name}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _texts(value, f"{key}.{number}")
