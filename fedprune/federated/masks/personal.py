"""A mask of its own for each client (LotteryFL, Sub-FedAvg, Hermes): the server only merges."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedprune.errors import ConfigError, Incompatible
from fedprune.federated.client import private_values
from fedprune.federated.masks.whose import Federation, PruneContext, UpdateSummary, Whose, check_moment
from fedprune.pruning.mask import count_packed, ones, pack, size
from fedprune.types import Mask, Params, Personal, Plan, PruneEvent, State, Subnet


@dataclass(frozen=True)
class PersonalMask(Whose):
    """Each client has a mask and a position in the plan of its own, for the whole run. The server's network has no mask.

    State.personal stores all masks. A client's mask goes up, and changes there, only if the client was drawn and has pruned: it
    survives the rounds in which the client is not drawn. A client that was not there when an event was due carries it out in
    its next round. If several are due, only the last is carried out; behind a gate, one in each round.

    uncommon: the values of entries that are not common, the `server`'s or each client's `own`. common: who must have an entry
    alive for it to be common (private_values.py), every client of the `cohort` or `all` clients. memory_mb: masks that take
    more than so many megabytes are kept in a file of the run's folder. plans: those of each client, where they differ (empty:
    all clients follow the run's).
    """

    at: str = "start"
    uncommon: str = "server"
    common: str = "cohort"
    memory_mb: float = 256
    plans: tuple[Plan, ...] = ()
    global_mask = False

    def __post_init__(self) -> None:
        check_moment(self.at)
        if self.uncommon not in ("server", "own"):
            raise ConfigError([f"whose.uncommon={self.uncommon}: choose server or own (whose values what not all hold has)"])
        if self.common not in ("cohort", "all"):
            raise ConfigError([f"whose.common={self.common}: choose cohort or all (the clients that must have an entry alive)"])
        if self.common != "cohort" and self.uncommon == "server":
            raise ConfigError(
                [f"whose.common={self.common} is about clients that keep values of their own: set whose.uncommon=own"]
            )
        if not self.memory_mb >= 0:
            raise ConfigError([f"whose.memory_mb={self.memory_mb} is what all masks may take in memory: 0 or more megabytes"])

    def on_server(self, plan: Plan, state: State) -> tuple[PruneEvent, ...]:
        return ()

    def on_client(self, plan: Plan, state: State, client: int) -> tuple[PruneEvent | None, int]:
        """Return the last event that is due by the client's own position in its plan, or behind a gate the next."""
        plan, position = self.plans[client] if self.plans else plan, state.personal.get(client, Personal(b""))
        events = tuple(event for event in plan.events[position.events :] if event.round <= state.round)
        if plan.gate is not None:
            too_soon = bool(position.events) and state.round < position.pruned + plan.gate.apart
            events = () if too_soon or state.round >= plan.gate.stop else events[:1]
        return (events[-1], position.events + len(events) - 1) if events else (None, position.events)

    def client_mask(self, state: State, client: int) -> bytes:
        return bytes(state.personal[client].mask) if client in state.personal else b""

    def common_entries(self, state: State) -> Callable[[int], Mask] | None:
        if self.uncommon == "server":
            return None
        return private_values.by_all(state) if self.common == "all" else functools.partial(private_values.by_cohort, state)

    def kept_mask(self, state: State, client: int) -> bytes:
        return self.client_mask(state, client)

    def bound(self, federation: Federation) -> PersonalMask:
        """Return the `whose` in which each client's plan ends at the run's density x its capacity (as DisPFL's densities, Dai
        et al. 2022). Raises Incompatible if the plan has nothing for a capacity to decide."""
        capacities, density, plan_to = federation.capacities, federation.density, federation.plan_to
        if set(capacities) == {1.0}:
            return self
        if not plan_to(density).events:
            raise Incompatible(
                "federated.capacity says how far each client prunes, and how_often has no event: choose how_often=one_shot, "
                "or federated/capacity=equal"
            )
        plans = {capacity: plan_to(density * capacity) for capacity in sorted(set(capacities))}
        return replace(self, plans=tuple(plans[capacity] for capacity in capacities))

    def merged(self, state: State, params: Params, summaries: Sequence[UpdateSummary], context: PruneContext) -> State:
        """Return the whole network, and the masks and positions of the clients that carried out an event."""
        personal = dict(state.personal)
        for summary in summaries:
            if summary.pruned:
                personal[summary.job.client] = Personal(pack(summary.mask), summary.job.events + 1, summary.job.round)
        names = tuple(state.server.mask)
        if self.uncommon == "own" and self.common == "cohort":
            masks = {summary.job.client: summary.mask for summary in summaries}
            state = replace(state, server_state=private_values.remembered(state.server_state, masks))
        return replace(state, server=Subnet(params, ones(params, names)), personal=personal)


def client_densities(state: State, clients: int) -> list[float]:
    """Return the density of each client's mask, over the prunable entries; 1.0 for those of the `clients` that have none."""
    entries = size(state.server.mask)
    densities = [count_packed(bytes(personal.mask)) / entries for personal in state.personal.values()]
    return densities + [1.0] * (clients - len(densities))
