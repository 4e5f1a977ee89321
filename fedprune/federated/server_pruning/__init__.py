"""The server's part in pruning: events that it carries out before a round, and the gate that it asks after one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedprune.errors import Unheard
from fedprune.federated.evaluate import Evaluation
from fedprune.federated.exchange import Exchange
from fedprune.federated.masks import PruneContext, Whose, prune_server
from fedprune.federated.masks.gates import ask_gate, next_gated_event
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.server_pruning.initial_pruning import InitialPruner, chosen_client
from fedprune.federated.where import Where, asked, comparing, measuring
from fedprune.pruning.candidates import Compare
from fedprune.pruning.event import Measure
from fedprune.pruning.evidence.network import Network
from fedprune.types import PruneEvent, State

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerPruning:
    """Carries out the server's prune events.

    network: the server's own, for evidence that takes no data. clients: the number of all clients; unseen: those that are never
    asked. cohort: (state) -> the clients of the coming round. context: (state) -> what an event at this state goes by.
    """

    whose: Whose
    where: Where
    network: Network
    exchange: Exchange
    evaluation: Evaluation
    clients: int
    unseen: tuple[int, ...]
    cohort: Callable[[State], tuple[int, ...]]
    context: Callable[[State], PruneContext]

    def before_round(self, state: State, tally: Tally) -> tuple[State, int]:
        """Return the state after the events that are due, and how many of them are still to come.

        An event about which nobody answers, and those after it, wait for the next round (under a gate, until it opens again).
        """
        events = self.whose.on_server(self.context(state).plan, state)
        for done, event in enumerate(events):
            try:
                state = self.prune(state, event, tally)
            except Unheard as unheard:
                log.warning("round %d: %s; it waits for the next round", state.round, unheard)
                return replace(state, opened=False), len(events) - done
        return state, 0

    def prune(self, state: State, event: PruneEvent, tally: Tally) -> State:
        """Return the state after one event, on evidence measured at this very state."""
        if event.initial is not None:
            client = chosen_client(self.exchange.seed, self.clients, self.unseen)
            state = InitialPruner(client, self.exchange, self.network)(state, event, self.context(state), tally)
        return prune_server(state, event, self.context(state), self._measure(state, tally), self._compare(state, tally))

    def ask_gate(self, state: State, tally: Tally) -> tuple[State, dict[str, float]]:
        """Ask the gate whether the next event may happen. Return the state that knows, and the metrics of that."""
        plan, axes = self.context(state).plan, self.context(state).axes
        event = next_gated_event(plan, state)
        if event is None or plan.gate is None:
            return state, {}
        measure = self._measure(state, tally)
        try:
            return ask_gate(plan.gate, event, state, axes, measure, lambda: self.evaluation.outcomes(state))
        except Unheard:  # there is nothing to compare, now or in the next round
            return replace(state, opened=False, candidate={}), {}

    def _measure(self, state: State, tally: Tally) -> Measure:
        return measuring(self.exchange, self.network, state, self._asked(state), tally)

    def _compare(self, state: State, tally: Tally) -> Compare:
        return comparing(self.exchange, state, self._asked(state), tally)

    def _asked(self, state: State) -> tuple[int, ...]:
        """Return the clients that measure."""
        return asked(self.where, self.cohort(state), self.clients, self.exchange.seed, self.unseen)
