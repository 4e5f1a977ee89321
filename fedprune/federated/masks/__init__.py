"""Whose the mask is: who carries out prune events, what each client is sent, and what becomes of what it sends back.

Every `whose` is a `Whose` (whose.py), which has
    on_server(plan, state) -> the events that the server carries out before this round
    on_client(plan, state, client) -> (the event that this client carries out in this round, or None; how many it did before)
    held(state, client) -> the client's own mask, packed to bits; empty if it has that of the server
    known(state, client) -> the mask that the client holds before it is told, packed likewise; empty if it holds none
    common(state) -> the entries whose values are the server's to say; None if all are (see client_values.py)
    merged(state, params, receipts, terms) -> the state with the merged parameters, and with what the clients' events come to
and the attributes that whose.py lists.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedprune.capabilities import complete
from fedprune.errors import ConfigError, Incompatible
from fedprune.federated.client import client_values
from fedprune.federated.client.prune_event import MOMENTS
from fedprune.federated.masks.gates import due
from fedprune.federated.masks.voting import Ballot, Vote, votes
from fedprune.federated.masks.whose import Federation, Receipt, Terms, Whose
from fedprune.federated.server import scaffold
from fedprune.federated.server.optimizer import Fresh, state_under
from fedprune.local.state import squared_gradients
from fedprune.pruning.criterion.regrowth_init import last_values, of_the_dead
from fedprune.pruning.event import Measure, prune
from fedprune.pruning.mask import apply, ones, pack
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.types import ClientState, Mask, Params, Personal, Plan, PruneEvent, ServerState, State, Subnet

log = logging.getLogger(__name__)


def carry_out(state: State, event: PruneEvent, terms: Terms, measure: Measure) -> State:
    """One event of the server: it prunes the merged network, and everybody trains what is left."""
    last = last_values(state.server, state.stale) if terms.axes.regrown == "server" else {}
    return _after(state, prune(state.server, event, terms.axes, measure, last), state.events + 1, terms, last)


def _after(state: State, pruned: Subnet, events: int, terms: Terms, last: Params) -> State:
    """The state with another mask for all, after a rewind. last: what prunable entries were when they last lived.

    After a rewind the server optimizer starts fresh; otherwise its momentum is only masked. Where weights are other ones,
    clients forget what they kept, and the server its control and what the dead were; otherwise both ends forget the controls of
    the dead alone, so that c is still the mean of all c_k. What clients add up from event to event begins anew.
    """
    weights, clock = terms.rewind(pruned.mask, state.anchors, terms.draws)
    server_state, kept = ServerState(), dict[int, ClientState]()
    if weights is None:
        server_state = state_under(pruned.mask, state.server_state, terms.fresh)
        kept = scaffold.without_dead(squared_gradients.forgotten(state.kept), pruned.mask)
    if clock is not None:
        server_state = replace(server_state, momentum={})
    server = pruned if weights is None else Subnet(apply(weights, pruned.mask), pruned.mask)
    return replace(
        state,
        server=server,
        ticket=server.params,
        events=events,
        clock=state.clock if clock is None else clock,
        server_state=server_state,
        kept=kept,
        stale=of_the_dead(last, pruned.mask) if weights is None else {},
        pruned=state.round,
        opened=False,
        candidate={},
    )


@dataclass(frozen=True)
class Shared(Whose):
    """One mask for all: the server prunes the merged network."""

    by_client = False

    def on_server(self, plan: Plan, state: State) -> tuple[PruneEvent, ...]:
        return due(plan, state)

    def merged(self, state: State, params: Params, receipts: Sequence[Receipt], terms: Terms) -> State:
        """The mask stays: only the server changes it."""
        return under(state.server.mask, state, params, terms.fresh)


@dataclass(frozen=True)
class Voted(Whose):
    """One mask for all, from what the clients of a round propose: each carries out the event on its own, and the server makes
    one mask of theirs. Until then a proposal is its client's alone. Events before any training are the server's.
    """

    ballot: Ballot
    at: str = "end"
    back_after_exchange = True

    def __post_init__(self) -> None:
        _check(self.at)
        self._rehearse()

    @property
    def apportions(self) -> bool:
        return complete(self.ballot, Vote).apportions

    def _rehearse(self) -> None:
        """Count one vote. Raises ConfigError if the ballot says of its own keys what is wrong with them."""
        vote, what = {"": torch.ones(1, 1)}, What(weights, globally, names=("",))
        try:
            self.ballot(vote, vote, PruneEvent(0, 1.0), what, lambda purpose: torch.Generator())
        except ConfigError:
            raise
        except Exception as error:  # one of somebody's own that cannot count a vote on so little
            log.debug("%s: %s", self.ballot, error)

    def on_server(self, plan: Plan, state: State) -> tuple[PruneEvent, ...]:
        return tuple(event for event in due(plan, state) if event.round == 0)

    def on_client(self, plan: Plan, state: State, client: int) -> tuple[PruneEvent | None, int]:
        """Of several, the last: it asks for all that those before it do."""
        events = due(plan, state)
        return (events[-1], state.events + len(events) - 1) if events else (None, state.events)

    def merged(self, state: State, params: Params, receipts: Sequence[Receipt], terms: Terms) -> State:
        """Under the mask that those who carried out the event make together; as it was if nobody did."""
        proposals = [receipt for receipt in receipts if receipt.pruned]
        if not proposals:
            return under(state.server.mask, state, params, terms.fresh)
        job, held = proposals[0].job, votes((receipt.mask, receipt.weight) for receipt in proposals)
        assert job.event is not None
        if not job.event.swap:
            held = {name: part.masked_fill(~state.server.mask[name] & (part == 0), -1.0) for name, part in held.items()}
        mask = self.ballot(held, params, job.event, terms.axes.what, terms.draws.generator)
        after = _after(state, Subnet(apply(params, mask), mask), job.events + 1, terms, {})
        return replace(after, pruned=job.round)  # the next event is as far from this one as if it had come before the round


@dataclass(frozen=True)
class PersonalMask(Whose):
    """Each client has a mask and a place in the plan of its own, which live as long as the run; the server's network is whole.

    A client that was not there when an event was due carries it out in its next round; of several, the last, except behind a
    gate, which lets one through at a time. uncommon: whose values the entries have that not all clients hold, the `server`'s or
    each client's `own`. memory_mb: masks that take more than so many megabytes are kept in a file of the run's folder. plans:
    of each client, where they differ (empty: everybody follows the run's).
    """

    at: str = "start"
    uncommon: str = "server"
    memory_mb: float = 256
    plans: tuple[Plan, ...] = ()
    asks = False

    def __post_init__(self) -> None:
        _check(self.at)
        if self.uncommon not in ("server", "own"):
            raise ConfigError([f"whose.uncommon={self.uncommon}: choose server or own (whose values what not all hold has)"])
        if not self.memory_mb >= 0:
            raise ConfigError([f"whose.memory_mb={self.memory_mb} is what all masks may take in memory: 0 or more megabytes"])

    def on_server(self, plan: Plan, state: State) -> tuple[PruneEvent, ...]:
        return ()

    def on_client(self, plan: Plan, state: State, client: int) -> tuple[PruneEvent | None, int]:
        """By the client's own place in its plan: the last event that is due, or behind a gate the next."""
        plan, own = self.plans[client] if self.plans else plan, state.personal.get(client, Personal(b""))
        events = tuple(event for event in plan.events[own.events :] if event.round <= state.round)
        if plan.gate is not None:
            waits = state.round >= plan.gate.stop or (own.events and state.round < own.pruned + plan.gate.apart)
            events = () if waits else events[:1]
        return (events[-1], own.events + len(events) - 1) if events else (None, own.events)

    def held(self, state: State, client: int) -> bytes:
        return bytes(state.personal[client].mask) if client in state.personal else b""

    def common(self, state: State) -> Mask | None:
        return client_values.common(state) if self.uncommon == "own" else None

    def known(self, state: State, client: int) -> bytes:
        return self.held(state, client)

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

    def merged(self, state: State, params: Params, receipts: Sequence[Receipt], terms: Terms) -> State:
        """Whole, and with the masks and places in the plan of those who carried out an event."""
        personal = dict(state.personal)
        for receipt in receipts:
            if receipt.pruned:
                personal[receipt.job.client] = Personal(pack(receipt.mask), receipt.job.events + 1, receipt.job.round)
        names = tuple(state.server.mask)
        return replace(state, server=Subnet(params, ones(params, names)), personal=personal)


def under(mask: Mask, state: State, params: Params, fresh: Fresh) -> State:
    """The state with these parameters for the server, under this mask. fresh: what dead entries' momentum goes back to."""
    server = Subnet(apply(params, mask), mask)
    return replace(state, server=server, server_state=state_under(mask, state.server_state, fresh))


def _check(at: str) -> None:
    if at not in MOMENTS:
        raise ConfigError([f"whose.at={at}: choose {' or '.join(MOMENTS)} (of a client's round)"])
