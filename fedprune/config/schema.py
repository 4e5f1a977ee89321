"""The types of what everybody sweeps. Hydra checks names and types against it on the command line;
experiment/checks/values.py checks ranges.

Groups whose options name their own Python object (`_target_`) are checked by that object, and may be anybody's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

Option = Any
"""A node that names its own object by `_target_`."""


@dataclass
class Federated:
    """The keys of sampling and merging clients."""

    clients: int = 100
    cohort: int = 10
    evaluated: int | None = 1000
    tuned: int | None = None
    tuned_at: str = "evaluations"
    unseen: float = 0.0
    weighting: str = "examples"
    batchnorm: str = "average"
    optimizer_state: str = "fresh"
    regrown: str = "zero"
    control: str = "none"
    broken: str = "stop"
    capacity: Option = None
    aggregate: Option = None
    client: Option = None
    round: Option = None
    upload: Option = None
    server: Option = None
    availability: Option = None


@dataclass
class Local:
    """The keys of a client's training in one round; see fedprune.local.recipe.Recipe, and fedprune.local.regularisers.base."""

    module: Option = None
    optimizer: Option = None
    penalty: Option = None
    dropout: Option = None
    epochs: int | None = 1
    steps: int | None = None
    batch_size: int = 32
    drop_last: bool = False
    lr_decay: float = 1.0
    clip_norm: float | None = None
    proximal_mu: float = 0.0
    retrain_lr: float = 1.0
    error_feedback: bool = False
    compact: str = "auto"
    fixed: list[Any] = field(default_factory=list)  # texts, and the numbers that YAML makes of names such as 0.10


@dataclass
class Ticket:
    """The keys of the ticket that a run starts from; see fedprune.ticket.start_from.StartFrom."""

    path: str | None = None
    permute: str = "none"
    head: str = "keep"


@dataclass
class InitFrom:
    """The keys of the trained weights that a run starts from; see fedprune.ticket.init_from.InitFrom."""

    path: str | None = None
    head: str = "keep"
    mask: str = "ignore"


@dataclass
class Config:
    """The whole configuration: the taxonomy's groups, and the scalars."""

    what: Option = None
    criterion: Option = None
    when: Option = None
    how_often: Option = None
    where: Option = None
    whose: Option = None
    rewind: Option = None
    federated: Federated = field(default_factory=Federated)
    partition: Option = None
    data: Option = None
    model: Option = None
    local: Local = field(default_factory=Local)
    executor: Option = None
    wire: Option = None
    logger: Option = None
    name: str = "fedprune"
    density: float = 0.1
    density_of: str = "units"
    rounds: int = 100
    eval_every: int = 5
    seed: int = 0
    ticket: Ticket = field(default_factory=Ticket)
    init_from: InitFrom = field(default_factory=InitFrom)
    device: str = "auto"
    checkpoint_every: float = 10.0
    profile: bool = False
    dry_run: bool = False
    force: bool = False
    wait: str | int | float | None = "auto"
    objective: str | None = None
    home: Option = None  # checked by fedprune.config.home, which explains more than a type can


def register() -> None:
    """Make the schema known to Hydra; conf/config.yaml names it first in its defaults list."""
    ConfigStore.instance().store(name="schema", node=Config)
