"""The types of what everybody sweeps. Hydra checks names and types against it on the command line,
experiment/build.py ranges.

Groups whose options name their own Python object (`_target_`) are checked by that object, and may be anybody's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore


@dataclass
class Federated:
    """How clients are sampled and merged."""

    clients: int = 100
    cohort: int = 10
    evaluated: int | None = 1000
    weighting: str = "examples"
    batchnorm: str = "average"
    optimizer_state: str = "fresh"
    regrown: str = "zero"
    control: str = "none"
    broken: str = "stop"
    capacity: Any = None
    aggregate: Any = None
    client: Any = None
    round: Any = None
    upload: Any = None
    server: Any = None
    availability: Any = None


@dataclass
class Local:
    """How a client trains in one round; see fedprune.local.recipe.Recipe, and fedprune.local.regularisers.base."""

    module: Any = None
    optimizer: Any = None
    penalty: Any = None
    dropout: Any = None
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
    """Where the run starts from; see fedprune.ticket.start_from.StartFrom."""

    path: str | None = None
    permute: str = "none"
    head: str = "keep"


@dataclass
class Config:
    """The whole configuration: the taxonomy's groups, and the scalars."""

    what: Any = None
    criterion: Any = None
    when: Any = None
    how_often: Any = None
    where: Any = None
    whose: Any = None
    rewind: Any = None
    federated: Federated = field(default_factory=Federated)
    partition: Any = None
    data: Any = None
    model: Any = None
    local: Local = field(default_factory=Local)
    executor: Any = None
    wire: Any = None
    logger: Any = None
    name: str = "fedprune"
    density: float = 0.1
    rounds: int = 100
    eval_every: int = 5
    seed: int = 0
    ticket: Ticket = field(default_factory=Ticket)
    device: str = "auto"
    checkpoint_every: float = 10.0
    profile: bool = False
    dry_run: bool = False
    force: bool = False


def register() -> None:
    """Make the schema known to Hydra; conf/config.yaml names it first in its defaults list."""
    ConfigStore.instance().store(name="schema", node=Config)
