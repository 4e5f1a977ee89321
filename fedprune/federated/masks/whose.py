"""The base of all options of `whose`, and the values that they are given."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from fedprune.errors import ConfigError, Incompatible
from fedprune.federated.client.prune_event import MOMENTS
from fedprune.federated.server.optimizer import Fresh
from fedprune.pruning.event import Axes
from fedprune.pruning.rewind import Draws, Rewind
from fedprune.pruning.what import What
from fedprune.types import Job, Mask, Params, Plan, PruneEvent, State

if TYPE_CHECKING:
    from fedprune.federated.composition import Composition
    from fedprune.pruning.evidence.network import Network


class UpdateSummary(NamedTuple):
    """An update without its parameters, which are merged by now.

    job: the job that it answers. mask: that of the network that the client sent. weight: in the mean. seen: the number of
    examples that were trained on. pruned: whether the job's event was carried out.
    """

    job: Job
    mask: Mask
    weight: float
    seen: int
    pruned: bool


class PruneContext(NamedTuple):
    """The rules of a run that a prune event follows.

    draws: the random numbers that an event of this round may draw. fresh: the values that the server optimizer's momentum
    starts from.
    """

    plan: Plan
    axes: Axes
    rewind: Rewind
    draws: Draws
    fresh: Fresh = MappingProxyType({})


class Federation(NamedTuple):
    """All that a `whose` is told before a run begins.

    capacities: the fraction of the network that each client can carry. labels: () -> the labels of each client's training
    examples. private: the names of the tensors that clients keep. plan_to: (density) -> the plan that ends there. density: that
    of the run. name: of the option that was chosen.
    """

    capacities: Sequence[float]
    labels: Callable[[], Sequence[tuple[int, ...]]]
    network: Network
    what: What
    private: tuple[str, ...]
    plan_to: Callable[[float], Plan]
    density: float
    name: str


class Whose(ABC):
    """The base of all options. By default the server's mask and values go for all clients.

    global_mask: whether the mask is the server's, which then goes through the plan for all clients, asks the gate and rewinds;
    if not, each client has a mask of its own, and a position in the plan.
    per_client: whether a job must be made for each client (False: all get the same one).
    at: the moment of their round at which clients carry out events, see prune_event.py (None: they carry out none).
    back_after_exchange: whether a rewind may follow an exchange of units.
    masks_always: whether clients train under masks that no event has made.
    uncommon: the values that a client goes on with where an entry is not common: the `server`'s or its `own`.
    labels: whether a client has `all` outputs, or those of its `own` labels.
    plans: of each client, where they differ (empty: all follow the run's).
    memory_mb: clients' masks that take more than so many megabytes are kept in a file.
    """

    global_mask: bool = True
    at: str | None = None
    per_client: bool = True
    back_after_exchange: bool = False
    masks_always: bool = False
    uncommon: str = "server"
    labels: str = "all"
    plans: tuple[Plan, ...] = ()
    memory_mb: float = math.inf

    @property
    def apportions(self) -> bool:
        """True if it decides how many weights of each layer live."""
        return False

    @property
    def counts_units(self) -> bool:
        """True if it gives clients a number of units in proportion to the event's density."""
        return False

    @property
    def mask_names(self) -> tuple[str, ...]:
        """The names of the tensors that a client's mask covers, where they are more than those that are prunable."""
        return ()

    @abstractmethod
    def on_server(self, plan: Plan, state: State) -> tuple[PruneEvent, ...]:
        """Return the events that the server carries out before this round."""

    def on_client(self, plan: Plan, state: State, client: int) -> tuple[PruneEvent | None, int]:
        """Return the event that this client carries out in this round (None: none), and the number that it did before."""
        return None, state.events

    def client_mask(self, state: State, client: int) -> bytes:
        """Return the client's own mask, packed to bits; empty if it has that of the server."""
        return b""

    def kept_mask(self, state: State, client: int) -> bytes:
        """Return the mask that the client has before it is sent anything, packed to bits; empty if it has none."""
        return b""

    def common_entries(self, state: State) -> Callable[[int], Mask] | None:
        """Return the function from a client that has trained to the entries whose values it is sent (private_values.py); None
        if all are."""
        return None

    @abstractmethod
    def merged(self, state: State, params: Params, summaries: Sequence[UpdateSummary], context: PruneContext) -> State:
        """Return the state with the merged parameters, and with the masks that the clients' events come to."""

    def bound(self, federation: Federation) -> Whose:
        """Return the `whose` for these clients. Raises Incompatible if somebody cannot carry what it gives to everybody."""
        if set(federation.capacities) != {1.0}:
            given = f"whose={federation.name} gives everybody the same network, and federated.capacity says otherwise"
            raise Incompatible(f"{given}: choose whose=nested or whose=personal, or federated/capacity=equal")
        return self

    def problems(self, composition: Composition) -> list[str]:
        """Return what it cannot be combined with, each with what to choose instead."""
        return []


def check_moment(at: str) -> None:
    """Raise ConfigError unless it is a moment of a client's round."""
    if at not in MOMENTS:
        raise ConfigError([f"whose.at={at}: choose {' or '.join(MOMENTS)} (of a client's round)"])
