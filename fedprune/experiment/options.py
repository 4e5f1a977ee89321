"""The configuration's groups -> their objects, each checked to be an option of its group."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from fedprune.capabilities import complete, missing
from fedprune.config import CONF
from fedprune.config.instantiate import make
from fedprune.data.augment import Augment
from fedprune.data.datasets import Dataset
from fedprune.data.partition import Division, Partition
from fedprune.errors import ConfigError
from fedprune.experiment.checks.problems import Problems
from fedprune.federated.availability import Availability
from fedprune.federated.client import Work
from fedprune.federated.client.upload import Upload
from fedprune.federated.composition import Options
from fedprune.federated.masks.capacity import Capacity
from fedprune.federated.masks.whose import Whose
from fedprune.federated.round_kinds import Rounds
from fedprune.federated.server.accumulator import Aggregate
from fedprune.federated.server.optimizer import ServerStep
from fedprune.federated.where import Where
from fedprune.local.regularisers.base import Regulariser
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.how_often import HowOften
from fedprune.pruning.rewind import Rewind
from fedprune.pruning.what import What
from fedprune.pruning.when import When

VALUE = (str, int, float, NoneType)
"""The types of a plain value, which is no node of options. A bool is an int."""


class Group(NamedTuple):
    """A group of options. key: where the configuration has its node. base: the class that says what an option is. other:
    another such class."""

    key: str
    base: type
    other: type | None = None


GROUPS = {
    "what": Group("what", What),
    "criterion": Group("criterion", Criterion),
    "when": Group("when", When),
    "how_often": Group("how_often", HowOften),
    "where": Group("where", Where),
    "whose": Group("whose", Whose),
    "rewind": Group("rewind", Rewind),
    "partition": Group("partition", Partition, Division),
    "aggregate": Group("federated.aggregate", Aggregate),
    "upload": Group("federated.upload", Upload),
    "client": Group("federated.client", Work),
    "round": Group("federated.round", Rounds),
    "capacity": Group("federated.capacity", Capacity),
    "availability": Group("federated.availability", Availability),
    "server_step": Group("federated.server", ServerStep),
    "penalty": Group("local.penalty", Regulariser),
    "dropout": Group("local.dropout", Regulariser),
}
"""The groups by the names of the fields of Options."""

DATA = Group("data", Dataset)

AUGMENT = Group("data.augment", Augment)


def make_options(config: DictConfig, problems: Problems) -> Options | None:
    """Return the object of every option; None, and what is wrong in `problems`, if one cannot be made."""
    made = {name: problems.attempt(make_option, config, group) for name, group in GROUPS.items()}
    made["wire"] = problems.attempt(make, config.wire)
    problems.attempt(make, config.logger)
    return None if None in made.values() else Options(**made)


def make_option(config: DictConfig, group: Group) -> Any:
    """Return the object of one option, with the defaults of its group. Raises ConfigError if it is none of the group."""
    node = OmegaConf.select(config, group.key)
    if isinstance(node, VALUE):
        raise ConfigError([no_option(config, group.key, node)])
    try:
        made = make(node)
    except ConfigError as error:
        if left_over := _of_the_replaced(error, node, group):
            raise ConfigError([f"{error}: {left_over}"]) from error
        if not isinstance(error.__cause__, TypeError) or not _is_function(node) or not _parameters(group.base):
            raise
        fits = _takes(make({**node, "_partial_": True}), _parameters(group.base))
        instead = f"type +{group.key}._partial_=true" if fits else f"{_see(group)}"
        raise ConfigError([f"{error}: {_called(group)}: {instead}"]) from error
    if group.other is not None and isinstance(made, group.other):
        return made
    problems = [*_wrong(made, node, group), *_uncalled(made, group.key)]
    if problems:
        raise ConfigError(problems)
    return complete(made, group.base)


def _wrong(made: object, node: Mapping[str, object], group: Group) -> list[str]:
    """Return why an object is no option of its group, with what to type instead."""
    target, lacks, calls = node["_target_"], missing(made, group.base), _parameters(group.base)
    if node.get("_partial_") and ((isinstance(made, type) and not _makes(made, calls)) or lacks or not calls):
        return [f"{target} is not called: type {group.key}._partial_=false"]
    if lacks:
        return [f"{target} has no {', '.join(lacks)}: {_see(group)}"]
    if not calls:
        return []
    if not callable(made):
        return [f"{target} gives {made!r:.60}: {_called(group)}: type +{group.key}._partial_=true"]
    if not _takes(made, calls):
        instead = f", or type {group.key}._partial_=false" if node.get("_partial_") and _takes(made, ()) else ""
        other = f"{target}{inspect.signature(made)} takes other arguments"
        return [f"{other}: {_called(group)}: write one that is ({_see(group)}){instead}"]
    return []


def _makes(kind: type, calls: tuple[str, ...]) -> bool:
    """Return whether a class is called in the place of its objects, which cannot be: as that of an accumulator is."""
    return "__call__" not in dir(kind) and _takes(kind, calls)


def _uncalled(made: object, key: str) -> list[str]:
    """Return the classes that an option holds where it should hold an object of theirs."""
    if not is_dataclass(made):
        return []
    held = {field.name: vars(made).get(field.name) for field in fields(made)}
    named = {name: value.func if isinstance(value, functools.partial) else value for name, value in held.items()}
    return [
        f"{key}.{name} is the class {value.__name__} and no object of it: type {key}.{name}._partial_=false"
        for name, value in named.items()
        if isinstance(value, type)
    ]


def no_option(config: DictConfig, key: str, value: object) -> str:
    """Return what to type in the place of a plain value for a group of options: a key that is meant, or an option."""
    parent, _, name = key.rpartition(".")
    typed, group = f"{key}={'null' if value is None else value}", key.replace(".", "/")
    if (CONF / group / f"{value}.yaml").exists():
        return f"{typed}: {group} is a group of options: type {group}={value}"
    among = OmegaConf.select(config, parent) if parent else config
    others = [other for other in map(str, among) if other != name and isinstance(among[other], VALUE)]
    near = difflib.get_close_matches(name, others, n=1)
    meant = f"did you mean {f'{parent}.' * bool(parent)}{near[0]}={value}? " if near else ""
    return f"{typed}: {group} is a group of options: {meant}`python -m fedprune --help` lists them"


def _of_the_replaced(error: ConfigError, node: Mapping[str, object], group: Group) -> str | None:
    """Return what to type where an option does not take a key of the one that it replaces; None if that is not the problem."""
    key = re.search(r"unexpected keyword argument '(\w+)'$", str(error))
    if key is None or key[1] not in node:
        return None
    place = f"{group.key}.{key[1]}"
    below = node[key[1]]
    inside = isinstance(below, Mapping | DictConfig) and "_target_" in below
    instead = f"{place}._target_={node['_target_']} if it is to stand there, or " if inside else ""
    return f"{place} is a key of the option whose _target_ it takes: type {instead}~{place}"


def _is_function(node: Mapping[str, object]) -> bool:
    """Return whether the node names a function, and no class."""
    function = make({**node, "_partial_": True})
    named = function.func if isinstance(function, functools.partial) else function
    return not isinstance(named, type)


def _see(group: Group) -> str:
    return f"see {group.base.__module__}.{group.base.__name__}"


def _parameters(base: type) -> tuple[str, ...]:
    """Return the names of what options of a group are called with; none if they are not called."""
    call = vars(base).get("__call__")
    return tuple(inspect.signature(call).parameters)[1:] if call else ()


def _takes(function: Callable[..., object], arguments: tuple[str, ...]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # of a function in C nobody knows
        return True
    return True


def _called(group: Group) -> str:
    return f"{group.key} is called with ({', '.join(_parameters(group.base))})"
