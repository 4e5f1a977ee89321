"""The base of every `whose`, and what it is given."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from fedprune.errors import Incompatible
from fedprune.federated.server.optimizer import Fresh
from fedprune.pruning.event import Axes
from fedprune.pruning.rewind import Draws, Rewind
from fedprune.pruning.what import What
from fedprune.types import Job, Mask, Params, Plan, PruneEvent, State

if TYPE_CHECKING:
    from fedprune.federated.composition import Composition
    from fedprune.pruning.evidence.network import Network


class Receipt(NamedTuple):
    """What is left of an update once its parameters are merged: the job that it answers, its mask, its weight in the mean, the
    examples that were trained on, and whether the client carried out the job's event."""

    job: Job
    mask: Mask
    weight: float
    seen: int
    pruned: bool


class Terms(NamedTuple):
    """What a run has agreed on. draws: what an event of this round may draw at random. fresh: what the server optimizer's
    momentum starts from."""

    plan: Plan
    axes: Axes
    rewind: Rewind
    draws: Draws
    fresh: Fresh = MappingProxyType({})


class Federation(NamedTuple):
    """What a `whose` is told before a run begins. capacities: how much each client can carry. labels: () -> the labels of each
    client's training examples. own: the tensors that clients keep to themselves. plan_to: the plan that ends at a density.
    density: that of the run. name: of the option that was chosen."""

    capacities: Sequence[float]
    labels: Callable[[], Sequence[tuple[int, ...]]]
    network: Network
    what: What
    own: tuple[str, ...]
    plan_to: Callable[[float], Plan]
    density: float
    name: str


class Whose(ABC):
    """The base of all options: all train the server's network as it is, unless an option says otherwise.

    asks: whether it is the server that asks the gate; if not, clients have masks of their own.
    by_client: whether clients are sent different jobs, so that each is asked about.
    at: the moment of their round at which clients carry out events, see prune_event.py (None: they carry out none).
    back_after_exchange: whether a rewind may follow an exchange of units.
    masks_always: whether clients train under masks that no event has made.
    uncommon: whose values the entries have that not all clients hold, the `server`'s or each client's `own`.
    labels: whether a client has `all` outputs, or those of its `own` labels.
    plans: of each client, where they differ (empty: all follow the run's).
    memory_mb: clients' masks that take more than so many megabytes are kept in a file.
    """

    asks: bool = True
    at: str | None = None
    by_client: bool = True
    back_after_exchange: bool = False
    masks_always: bool = False
    uncommon: str = "server"
    labels: str = "all"
    plans: tuple[Plan, ...] = ()
    memory_mb: float = math.inf

    @property
    def apportions(self) -> bool:
        """Whether it decides how many weights of each layer live."""
        return False

    @property
    def covers(self) -> tuple[str, ...]:
        """The tensors that the mask of a client covers, where they are more than those that are prunable."""
        return ()

    @abstractmethod
    def on_server(self, plan: Plan, state: State) -> tuple[PruneEvent, ...]: ...

    def on_client(self, plan: Plan, state: State, client: int) -> tuple[PruneEvent | None, int]:
        return None, state.events

    def held(self, state: State, client: int) -> bytes:
        return b""

    def known(self, state: State, client: int) -> bytes:
        return b""

    def common(self, state: State) -> Mask | None:
        return None

    @abstractmethod
    def merged(self, state: State, params: Params, receipts: Sequence[Receipt], terms: Terms) -> State: ...

    def bound(self, federation: Federation) -> Whose:
        """Return the `whose` for these clients. Raises Incompatible if somebody cannot carry what it gives to everybody."""
        if set(federation.capacities) != {1.0}:
            given = f"whose={federation.name} gives everybody the same network, and federated.capacity says otherwise"
            raise Incompatible(f"{given}: choose whose=nested or whose=personal, or federated/capacity=equal")
        return self

    def problems(self, composition: Composition) -> list[str]:
        """Return what it cannot be combined with, each with what to choose instead."""
        return []
