"""The configuration's groups -> their objects, each checked to be an option of its group."""

from __future__ import annotations

import difflib
from types import NoneType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedprune.capabilities import complete
from fedprune.config import CONF
from fedprune.config.instantiate import make
from fedprune.data.augment import Augment
from fedprune.data.datasets import Dataset
from fedprune.data.partition import Division, Partition
from fedprune.errors import ConfigError
from fedprune.experiment.checks.problems import Problems
from fedprune.experiment.group import Group, Holder
from fedprune.experiment.misused import not_made, wrong
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
from fedprune.local.regularisers.base import PIECES, Regulariser
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.evidence import KNOWN as EVIDENCE
from fedprune.pruning.how_often import HowOften
from fedprune.pruning.rewind import Rewind
from fedprune.pruning.what import What
from fedprune.pruning.when import When

VALUE = (str, int, float, NoneType)
"""The types of a plain value, which is no node of options. A bool is an int."""

CRITERION = Holder("fedprune.pruning.criterion.Criterion", "drop", EVIDENCE)
PENALTY = Holder("fedprune.local.regularisers.penalty.penalty", "formula", PIECES, ("strength=0.0001",))

GROUPS = {
    "what": Group("what", What),
    "criterion": Group("criterion", Criterion, holder=CRITERION),
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
    "penalty": Group("local.penalty", Regulariser, holder=PENALTY),
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


def make_option(config: DictConfig, group: Group, node: DictConfig | None = None) -> Any:
    """Return the object of one option, with the defaults of its group. node: what is read in the place of the group's own.

    Raises ConfigError if it is none of the group.
    """
    node = OmegaConf.select(config, group.key) if node is None else node
    if isinstance(node, VALUE):
        raise ConfigError([no_option(config, group.key, node)])
    try:
        made = make(node)
    except ConfigError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        raise ConfigError([f"{error}{not_made(node, group, str(error))}"]) from error
    if group.other is not None and isinstance(made, group.other):
        return made
    problems = list(wrong(made, node, group))
    if problems:
        raise ConfigError(problems)
    return complete(made, group.base)


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
