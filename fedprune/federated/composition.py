"""Everything that was chosen for a run: the object of each option, and what they have to fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig
from torch import nn

from fedprune.data.partition import Division
from fedprune.federated.availability import Availability, Fates, everybody
from fedprune.federated.client import Work
from fedprune.federated.client.upload import Upload
from fedprune.federated.masks import Whose
from fedprune.federated.masks.capacity import Capacity
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
from fedprune.types import Plan
from fedprune.wire.codec import Codec


@dataclass(frozen=True)
class Options:
    """The object of each option, with the defaults of its group for all that it does not declare (capabilities.py).

    fates: who answers in which round, as `availability` says once it is known how much each client has to do.
    """

    what: What
    criterion: Criterion
    when: When
    how_often: HowOften
    where: Where
    whose: Whose
    rewind: Rewind
    partition: Division
    wire: Codec
    aggregate: Aggregate
    upload: Upload
    client: Work
    round: Rounds
    capacity: Capacity
    availability: Availability
    server_step: ServerStep
    penalty: Regulariser
    dropout: Regulariser
    fates: Fates = everybody


@dataclass(frozen=True)
class Composition:
    """The whole of what was chosen, for an option that checks it. net: the network. names: of the chosen options, by group.
    config: the whole configuration."""

    plan: Plan
    what: What
    net: nn.Module
    options: Options
    names: Mapping[str, str]
    config: DictConfig
