"""The places where evidence from data is measured: on the server, on one client, on the cohort or on all clients.

Criteria that need no data, such as magnitude, ignore the place.

Every option is a `Where`: (cohort of the coming round before a rewind, number of clients, seed) -> the clients that measure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedprune.capabilities import named
from fedprune.errors import ConfigError, RunError, Unheard
from fedprune.federated.exchange import Exchange
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.sampling import sampled
from fedprune.pruning.candidates import Compare, Compared
from fedprune.pruning.event import Measure
from fedprune.pruning.evidence import FROM_CLIENTS, at_hand, mean
from fedprune.pruning.evidence.batchnorm import LOSS, STATISTICS
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
        return _clients(where(cohort, clients, seed), clients, where)
    able = sampled(clients, unseen)
    places = _clients(where(tuple(np.searchsorted(able, cohort).tolist()), len(able), seed), len(able), where)
    return tuple(SERVER if place == SERVER else int(able[place]) for place in places)


def _clients(answer: object, clients: int, where: Where) -> tuple[int, ...]:
    """Return the clients that an option of `where`, which may be anybody's, has chosen. Raises RunError for what is none."""
    chosen = list(answer) if isinstance(answer, Iterable) else []
    if chosen and all(isinstance(one, (int, np.integer)) and SERVER <= one < clients for one in chosen):
        return tuple(map(int, chosen))
    told = f"where, {named(where)}: it gives {answer!r:.60}"
    raise RunError(f"{told}: return a tuple of one or more numbers of clients, from 0 to {clients - 1}")


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


def comparing(exchange: Exchange, state: State, clients: tuple[int, ...], tally: Tally) -> Compare:
    """Return how candidate masks are compared at this state, by clients that measure: in two exchanges, as in FedTiny.

    In the first one every client gets all candidates and sends back BatchNorm's statistics under each; it keeps the candidates
    until the second. There it is sent the means of the statistics, weighted by examples, and sends back the loss of each
    candidate, on its validation examples (its training examples if it has none). Means and variances are averaged alike: the
    differences between the clients' means do not widen the variances, as they do not where FedAvg merges BatchNorm. The losses
    are averaged by examples, over the clients that answered about all candidates. Without adaptation there is the second
    exchange alone, with the candidates. Raises as `measuring` does.
    """

    def compare(candidates: Sequence[Subnet], adapt: bool, /) -> list[Compared]:
        answering, after, adapted = clients, [state] * len(candidates), list(candidates)
        if adapt:
            first = [_arrived(exchange.measure(state, c, answering, (STATISTICS,), "alive", tally), tally) for c in candidates]
            answering = _in_all(first)
            adapted = [_with_statistics(*pair) for pair in zip(candidates, first, strict=True)]
            after = [_holding(exchange, state, candidate, answering) for candidate in candidates]
        second = [
            _arrived(exchange.measure(holding, candidate, answering, (LOSS,), "alive", tally, known=adapt), tally)
            for candidate, holding in zip(adapted, after, strict=True)
        ]
        losses = _mean_losses(second, _in_all(second))
        return [Compared(loss, candidate.params) for loss, candidate in zip(losses, adapted, strict=True)]

    return compare


def _holding(exchange: Exchange, state: State, candidate: Subnet, clients: Iterable[int]) -> State:
    """Return the state in which these clients keep the candidate that they were sent."""
    weights = {name: candidate.params[name] for name in candidate.mask}
    return replace(state, kept={client: replace(exchange.kept_by(state, client), weights=weights) for client in clients})


def _with_statistics(candidate: Subnet, updates: Sequence[Update]) -> Subnet:
    """Return the candidate with the mean of the clients' statistics, weighted by examples, in the types of the network."""
    means = mean((update.evidence[STATISTICS], update.examples) for update in updates)
    typed = {name: value.to(candidate.params[name].dtype) for name, value in means.items()}
    return Subnet(candidate.params | typed, candidate.mask)


def _in_all(answers: Sequence[Sequence[Update]]) -> tuple[int, ...]:
    """Return the clients that answered about every candidate, in their order. Raises RunError if there is none."""
    others = [{update.client for update in updates} for updates in answers[1:]]
    clients = tuple(update.client for update in answers[0] if all(update.client in there for there in others))
    if not clients:
        raise RunError("no client delivered the evidence about all candidate masks that the prune event needs")
    return clients


def _mean_losses(answers: Sequence[Sequence[Update]], clients: tuple[int, ...]) -> list[float]:
    """Return the loss of each candidate, the mean over these clients weighted by examples."""
    of_clients = [[update for update in updates if update.client in clients] for updates in answers]
    examples = sum(update.examples for update in of_clients[0])
    return [
        sum(update.examples * float(update.evidence[LOSS]["loss"]) for update in updates) / examples for updates in of_clients
    ]


def _averaged(names: tuple[str, ...], updates: Iterable[Update], tally: Tally) -> dict[str, Params]:
    arrived = _arrived(updates, tally)
    return {name: mean((update.evidence[name], update.examples) for update in arrived) for name in names}


def _arrived(updates: Iterable[Update], tally: Tally) -> list[Update]:
    """Return the updates. Raises Unheard if nobody has answered, and RunError if no answer is of use."""
    before = tally.unanswered
    arrived = list(updates)
    if not arrived and tally.unanswered > before:
        raise Unheard("no client that was asked for the evidence of the prune event has answered")
    if not arrived:
        raise RunError("no client delivered the evidence that the prune event needs")
    return arrived


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
