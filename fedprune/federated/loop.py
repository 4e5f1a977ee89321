"""The federated loop: remember -> prune -> sample -> broadcast -> train -> merge -> ask -> evaluate. One page, top to bottom.

`round(state) -> (state, metrics)` is a pure state transition: replaying round 37 is loading state 36 and one call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from fedprune.federated.aggregate import ServerStep, masked, overlap_mean
from fedprune.federated.asking import ask, waiting
from fedprune.federated.costs import densities, training_flops
from fedprune.federated.evaluate import Evaluation
from fedprune.federated.exchange import Exchange, Tally
from fedprune.federated.sampling import cohort
from fedprune.federated.where import Where, measuring
from fedprune.pruning.cycle import Axes, Measure
from fedprune.pruning.mask import apply, collapsed, ones
from fedprune.pruning.network import Network
from fedprune.pruning.rewind import Draws, Rewind
from fedprune.randomness import torch_stream
from fedprune.types import Mask, Params, Plan, PruneEvent, State, Subnet, Update

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FederatedLoop:
    """What a run does, fixed from its first round to its last; what changes is in the State.

    network: as the server has it, for evidence that takes no data. fresh: the n-th independent initialisation (0 is the one the
    run starts from). trained: the names of the parameters, which a server optimizer moves (buffers are only averaged). flops:
    of training on one example, by layer of the dense network.
    effective: the fraction of the prunable entries that lie on a path from input to output, of a mask (None: not to be had).
    begin: the ticket that the run starts from, whose weights are then its initialisation.
    """

    seed: int
    plan: Plan
    axes: Axes
    network: Network
    where: Where
    whose: Callable[..., State]
    rewind: Rewind
    server_step: ServerStep
    weighting: str
    clients: int
    cohort: int
    eval_every: int
    exchange: Exchange
    evaluation: Evaluation
    fresh: Callable[[int], Params]
    trained: tuple[str, ...]
    flops: Mapping[str, float]
    effective: Callable[[Mask], float] | None
    begin: Subnet | None = None

    def start(self) -> State:
        """The state before the first round: the ticket that is given, or a dense initialisation."""
        begin = self.begin or self._dense()
        return State(begin, init=begin.params, ticket=begin.params)

    def _dense(self) -> Subnet:
        init = self.fresh(0)
        return Subnet(init, ones(init, self.axes.what.names))

    def round(self, state: State) -> tuple[State, dict[str, float]]:
        """One round. Returns the state after it, and its metrics."""
        started, tally = time.perf_counter(), Tally()
        state = self._remember(state)
        due = self._due(state)
        for event in due:
            state = self._prune(state, event, tally)
        updates = self.exchange.train(state, self._cohort(state), tally)
        after = replace(self._merge(state, updates), round=state.round + 1, clock=state.clock + 1)
        trained = time.perf_counter()
        after, asked = self._ask(after, tally)
        after = replace(after, up_bytes=state.up_bytes + tally.up_bytes, down_bytes=state.down_bytes + tally.down_bytes)
        metrics = {"round": state.round, "prune/events": state.events, **densities(state.server, self.axes.what, self.trained)}
        if due and self.effective:  # the mask is a new one, and stays as it is until the next event
            metrics |= {"density/effective": self.effective(state.server.mask)}
        metrics |= asked | tally.metrics() | {"wire/total_bytes": after.up_bytes + after.down_bytes}
        metrics |= {"flops/train": tally.seen * training_flops(self.flops, state.server)}
        if self._evaluates(after):
            metrics |= self.evaluation(after)
        return after, metrics | {"time/train_s": trained - started, "time/round_s": time.perf_counter() - started}

    def _remember(self, state: State) -> State:
        """Keep the parameters to which a later rewind goes back."""
        if state.clock != self.rewind.anchor or state.clock in state.anchors:
            return state
        return replace(state, anchors={**state.anchors, state.clock: state.server.params})

    def _due(self, state: State) -> tuple[PruneEvent, ...]:
        due = tuple(event for event in self.plan.events[state.events :] if event.round <= state.round)
        return due if self.plan.gate is None else due[: int(state.opened)]

    def _prune(self, state: State, event: PruneEvent, tally: Tally) -> State:
        """One prune event, on evidence measured at this very state."""
        measure, draws = self._measure(state, tally), self._draws(state)
        pruned = self.whose(state, event, self.axes, self.rewind, measure, draws)
        for layer in collapsed(state.server.mask, pruned.server.mask):
            log.warning("after round %d layer %s has lost its last unit; what.min_per_layer=1 keeps one", state.round, layer)
        return replace(pruned, pruned=state.round, opened=False, candidate={})

    def _ask(self, state: State, tally: Tally) -> tuple[State, dict[str, float]]:
        """Under a gate, whether it lets the next event through; and the metrics of that."""
        event = waiting(self.plan, state)
        if event is None or self.plan.gate is None:
            return state, {}
        measure = self._measure(state, tally)
        return ask(self.plan.gate, event, state, self.axes, measure, lambda: self.evaluation.val_accuracy(state))

    def _measure(self, state: State, tally: Tally) -> Measure:
        clients = self.where(self._cohort(state), self.clients, self.seed)
        return measuring(self.exchange, self.network, state, clients, tally)

    def _draws(self, state: State) -> Draws:
        """Another initialisation, and other streams, at every event."""
        return Draws(lambda: self.fresh(state.events + 1), lambda name: torch_stream(self.seed, f"rewind {name}", state.events))

    def _cohort(self, state: State) -> tuple[int, ...]:
        return cohort(self.seed, state.clock, self.clients, self.cohort)

    def _merge(self, state: State, updates: Iterable[Update]) -> State:
        """The updates' mean, taken as a step by the server optimizer, under the mask; and what each client keeps."""
        kept = dict(state.kept)

        def weighted() -> Iterator[tuple[Subnet, float]]:
            for update in updates:
                assert update.subnet is not None, "a client that was told to train sends a subnet"
                kept.update({update.client: update.kept} if update.kept else {})
                known = {name: value for name, value in update.kept.items() if name in state.server.params}
                subnet = Subnet(update.subnet.params | known, update.subnet.mask)
                yield subnet, float(update.examples if self.weighting == "examples" else 1)

        server = state.server
        mean = overlap_mean(server.params, weighted())
        params, momentum = self.server_step(server.params, mean, state.momentum, self.trained)
        params = apply(params, server.mask)
        return replace(state, server=Subnet(params, server.mask), momentum=masked(momentum, server.mask), kept=kept)

    def _evaluates(self, state: State) -> bool:
        """Every so many rounds, before each prune event, and at the end."""
        return state.round % self.eval_every == 0 or state.round == self.plan.rounds or bool(self._due(state))
