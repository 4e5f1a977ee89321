"""The places where evidence from data is measured: on the server, on one client, on the cohort or on all clients.

Criteria that need no data, such as magnitude, ignore the place.

Every option is a `Where`: (cohort of the coming round before a rewind, number of clients, seed) -> the clients that measure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedprune.errors import ConfigError, RunError, Unheard
from fedprune.federated.exchange import Exchange
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.sampling import sampled
from fedprune.pruning.event import Measure
from fedprune.pruning.evidence import FROM_CLIENTS, at_hand, mean
from fedprune.pruning.evidence.network import Network
from fedprune.randomness import numpy_stream, torch_stream
from fedprune.types import SERVER, Mask, Params, State, Subnet, Update


class Where(ABC):
    """The base of all options.

    examples: the training examples that each measuring client uses (None: all). top: of evidence about dead entries each client
    sends the largest only, as many of each layer as this fraction of its living entries (None: all). Huang et al. 2023
    (FedTiny). proxy: how many training examples the server holds back from the clients, to measure on. on_server: whether it is
    the server that measures. in_cohort: whether it is the clients that are drawn for the round of the event (before a rewind),
    each of which may then score for itself.
    """

    examples: int | None = None
    top: float | None = None
    proxy: int = 0
    on_server: bool = False
    in_cohort: bool = False

    @abstractmethod
    def __call__(self, cohort: tuple[int, ...], clients: int, seed: int) -> tuple[int, ...]: ...

    @property
    def has_data(self) -> bool:
        """True if those who measure have examples to measure on."""
        return not self.on_server or self.proxy > 0


def asked(where: Where, cohort: tuple[int, ...], clients: int, seed: int, unseen: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the clients that measure. Those that are in no cohort (`unseen`) are never asked: an option of `where` sees the
    others alone, numbered from 0."""
    if not unseen:
        return where(cohort, clients, seed)
    able = sampled(clients, unseen)
    places = where(tuple(np.searchsorted(able, cohort).tolist()), len(able), seed)
    return tuple(SERVER if place == SERVER else int(able[place]) for place in places)


def measuring(exchange: Exchange, network: Network, state: State, clients: tuple[int, ...], tally: Tally) -> Measure:
    """Return how evidence is measured at this state: by the server if it takes no data, else as the mean over `clients`.

    The mean is weighted by examples, over the clients that answer. Measuring raises Unheard if none does, and RunError if no
    answer is of use.
    """

    def measure(names: tuple[str, ...], subnet: Subnet, about: str, surviving: Mask | None = None, /) -> dict[str, object]:
        def stream(layer: str) -> torch.Generator:
            return torch_stream(exchange.seed, f"criterion {about} {layer}", state.events)

        evidence = at_hand(names, network, subnet, state.init, stream)
        wanted = tuple(name for name in names if name in FROM_CLIENTS)
        if wanted:
            updates = exchange.measure(state, subnet, clients, wanted, about, tally, surviving)
            evidence |= _averaged(wanted, updates, tally)
        return {name: evidence[name] for name in names}

    return measure


def _averaged(names: tuple[str, ...], updates: Iterable[Update], tally: Tally) -> dict[str, Params]:
    before = tally.unanswered
    arrived = list(updates)
    if not arrived and tally.unanswered > before:
        raise Unheard("no client that was asked for the evidence of the prune event has answered")
    if not arrived:
        raise RunError("no client delivered the evidence that the prune event needs")
    return {name: mean((update.evidence[name], update.examples) for update in arrived) for name in names}


@dataclass(frozen=True)
class _Where(Where):
    examples: int | None = None
    top: float | None = None

    def __post_init__(self) -> None:
        if self.top is not None and not 0 < self.top <= 1:
            raise ConfigError([f"where.top={self.top} is a fraction of a layer's living: more than 0, at most 1, or null"])
        if self.examples is not None and self.examples < 1:
            raise ConfigError([f"where.examples={self.examples} must be at least 1; null means all of a client's examples"])


@dataclass(frozen=True)
class Server(_Where):
    """The server itself: data-free, or on a proxy set of `proxy` training examples that it holds back from the clients."""

    proxy: int = 0
    on_server = True

    def __call__(self, cohort: tuple[int, ...], clients: int, seed: int) -> tuple[int, ...]:
        return (SERVER,)


@dataclass(frozen=True)
class OneClient(_Where):
    """One client, the same throughout the run."""

    def __call__(self, cohort: tuple[int, ...], clients: int, seed: int) -> tuple[int, ...]:
        return (int(numpy_stream(seed, "where").integers(clients)),)


@dataclass(frozen=True)
class Cohort(_Where):
    """The clients that are drawn for the round in which the event happens, before a rewind."""

    in_cohort = True

    def __call__(self, cohort: tuple[int, ...], clients: int, seed: int) -> tuple[int, ...]:
        return cohort


@dataclass(frozen=True)
class AllClients(_Where):
    """Every client."""

    def __call__(self, cohort: tuple[int, ...], clients: int, seed: int) -> tuple[int, ...]:
        return tuple(range(clients))
