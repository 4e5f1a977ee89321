"""The federated loop: remember -> prune -> sample -> broadcast -> train -> merge -> ask -> evaluate. One page, top to bottom.

`round(state) -> (state, metrics)` is a pure state transition: replaying round 37 is loading state 36 and one call.
"""

from __future__ import annotations

import functools
import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from fedprune.errors import Unheard
from fedprune.federated.client import client_values
from fedprune.federated.costs import client_densities, densities, training_flops
from fedprune.federated.evaluate import Evaluation
from fedprune.federated.exchange import Exchange
from fedprune.federated.masks import Receipt, Terms, Whose, carry_out
from fedprune.federated.masks.gates import ask, due, waiting
from fedprune.federated.sampling import cohort
from fedprune.federated.server import scaffold
from fedprune.federated.server.aggregate import Aggregate
from fedprune.federated.server.optimizer import ServerStep, starts_from
from fedprune.federated.tally import Tally
from fedprune.federated.where import Where, measuring
from fedprune.pruning.event import Axes, Measure
from fedprune.pruning.evidence.data_free import Network
from fedprune.pruning.mask import apply, collapsed, ones
from fedprune.pruning.rewind import Draws, Rewind
from fedprune.randomness import torch_stream
from fedprune.types import Job, Mask, Params, Plan, PruneEvent, State, Subnet, Update

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FederatedLoop:
    """What a run does, fixed from its first round to its last; what changes is in the State.

    network: as the server has it, for evidence that takes no data. fresh: the n-th independent initialisation (0 is the one the
    run starts from). parameters: the names of all parameters. trained: of those that are trained, which a server optimizer
    moves (buffers, frozen layers and whole numbers are only aggregated). flops: of training on one example, by layer of the
    dense network (empty: they could not be counted).
    effective: the fraction of the prunable entries that lie on a path from input to output, of a mask (None: not to be had).
    begin: the ticket that the run starts from, whose weights are then its initialisation. profile: whether the metrics tell
    where the time went (phase_clock.py).
    """

    seed: int
    plan: Plan
    axes: Axes
    network: Network
    where: Where
    whose: Whose
    rewind: Rewind
    aggregate: Aggregate
    server_step: ServerStep
    weighting: str
    clients: int
    cohort: int
    eval_every: int
    exchange: Exchange
    evaluation: Evaluation
    fresh: Callable[[int], Params]
    parameters: tuple[str, ...]
    trained: tuple[str, ...]
    flops: Mapping[str, float]
    effective: Callable[[Mask], float] | None
    begin: Subnet | None = None
    profile: bool = False

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
        phase = tally.clock.phase
        with phase("prune", whole=True):
            before = self._remember(state)
            state, waits = self._prune_all(before, self.whose.on_server(self.plan, before), tally)
        with phase("sampling"):
            clients = self._cohort(state)
        with phase("broadcast"):
            jobs = self._jobs(state, clients)
        with phase("merge"):
            after, receipts = self._merge(state, self.exchange.train(jobs, state, tally))
        trained = time.perf_counter()
        with phase("prune", whole=True):
            self._report_collapsed(before, after, receipts)
            after, asked = self._ask(after, tally)
        after = replace(after, up_bytes=state.up_bytes + tally.up_bytes, down_bytes=state.down_bytes + tally.down_bytes)
        after = replace(after, reached=state.reached | tally.reached) if tally.reached else after
        metrics = {"round": state.round, "prune/events": state.events, **self._densities(jobs)}
        metrics |= {"prune/waiting": waits} if waits else {}
        if self.whose.asks and after.server.mask is not before.server.mask and self.effective:  # it stays until the next event
            metrics |= {"density/effective": self.effective(after.server.mask)}
        metrics |= asked | tally.metrics() | {"wire/total_bytes": after.up_bytes + after.down_bytes}
        metrics |= self._flops(receipts)
        if self._evaluates(after):
            with phase("evaluate", whole=True):
                metrics |= self.evaluation(after) | self._client_density(after)
        metrics |= tally.clock.metrics() if self.profile else {}
        return after, metrics | {"time/train_s": trained - started, "time/round_s": time.perf_counter() - started}

    def _remember(self, state: State) -> State:
        """Keep the parameters to which a later rewind goes back."""
        if state.clock != self.rewind.anchor or state.clock in state.anchors:
            return state
        return replace(state, anchors={**state.anchors, state.clock: state.server.params})

    def _prune_all(self, state: State, events: tuple[PruneEvent, ...], tally: Tally) -> tuple[State, int]:
        """The state after these events, and how many of them are still to come.

        An event about which nobody answers, and those after it, wait for the next round (under a gate, until it opens again).
        """
        for done, event in enumerate(events):
            try:
                state = self._prune(state, event, tally)
            except Unheard as unheard:
                log.warning("round %d: %s; it waits for the next round", state.round, unheard)
                return replace(state, opened=False), len(events) - done
        return state, 0

    def _prune(self, state: State, event: PruneEvent, tally: Tally) -> State:
        """One prune event, on evidence measured at this very state."""
        return scaffold.pruned(state, carry_out(state, event, self._terms(state), self._measure(state, tally)))

    def _ask(self, state: State, tally: Tally) -> tuple[State, dict[str, float]]:
        """Under a gate, whether it lets the next event through; and the metrics of that."""
        event = waiting(self.plan, state) if self.whose.asks else None
        if event is None or self.plan.gate is None:
            return state, {}
        measure = self._measure(state, tally)
        try:
            return ask(self.plan.gate, event, state, self.axes, measure, lambda: self.evaluation.outcomes(state))
        except Unheard:  # there is nothing to compare, now or in the next round
            return replace(state, opened=False, candidate={}), {}

    def _measure(self, state: State, tally: Tally) -> Measure:
        clients = self.where(self._cohort(state), self.clients, self.seed)
        return measuring(self.exchange, self.network, state, clients, tally)

    def _terms(self, state: State) -> Terms:
        """What an event of this round goes by: another initialisation, and other streams, at every event."""
        streams = functools.partial(_rewind_stream, self.seed, state.events)
        draws = Draws(lambda: self.fresh(state.events + 1), streams, self.begin.mask if self.begin else {})
        return Terms(self.plan, self.axes, self.rewind, draws, starts_from(self.server_step))

    def _cohort(self, state: State) -> tuple[int, ...]:
        return cohort(self.seed, state.clock, self.clients, self.cohort)

    def _jobs(self, state: State, clients: Iterable[int]) -> list[Job]:
        """What these clients are sent to train, each under its own mask if it has one."""
        shared = self.whose.common(state)
        return [self._job(state, client, shared) for client in clients]

    def _job(self, state: State, client: int, shared: Mask | None = None) -> Job:
        mask, (event, events) = self._own(state, client), self.whose.on_client(self.plan, state, client)
        subnet = state.server if mask is None else Subnet(apply(state.server.params, mask), mask)
        begun = shared is not None and client_values.trained(state, client)
        common = client_values.sent(subnet.mask, shared) if begun and shared else None
        known = self.whose.known(state, client)
        return Job(client, state.round, state.clock, self.seed, subnet, event=event, events=events, common=common, held=known)

    def _own(self, state: State, client: int) -> Mask | None:
        """The client's own mask, if it has one."""
        return self.exchange.wire.mask_of(self.whose.held(state, client))

    def _merge(self, state: State, answers: Iterable[tuple[Job, Update]]) -> tuple[State, list[Receipt]]:
        """The updates' aggregate, taken as a step by the server optimizer, under the mask; and what each client keeps.

        Without any update there is no step: only time goes on, and the server optimizer's momentum stays as it is.
        What a gate let the clients do, nobody is known to have done: it is asked again.
        """
        kept, receipts, changes, arriving = dict(state.kept), list[Receipt](), Params(), iter(answers)
        first = next(arriving, None)
        if first is None:
            log.warning("round %d: there is no update to merge; the network stays as it is", state.round)
            return replace(state, round=state.round + 1, clock=state.clock + 1, opened=False), receipts

        def weighted() -> Iterator[tuple[Subnet, float]]:
            for job, update in itertools.chain((first,), arriving):
                assert update.subnet is not None, "a client that was told to train sends a subnet"
                kept.update({update.client: update.kept} if update.kept else {})
                changes.update(scaffold.summed(changes, update))
                own = {name: update.kept[name] for name in self.exchange.own}  # what else it keeps has to travel to be merged
                subnet = Subnet(update.subnet.params | own, update.subnet.mask)
                weight = float(update.examples if self.weighting == "examples" else 1)
                receipts.append(Receipt(job, subnet.mask, weight, int(update.metrics["seen"]), update.pruned))
                yield subnet, weight

        server = state.server
        merged = self.aggregate(server.params, weighted())
        params, momentum = self.server_step(server.params, merged, state.momentum, self.trained)
        momentum = {**momentum, **scaffold.stepped(state.momentum, changes, self.clients)}
        after = replace(state, round=state.round + 1, clock=state.clock + 1, momentum=momentum, kept=kept)
        return self.whose.merged(after, params, receipts, self._terms(state)), receipts

    def _report_collapsed(self, before: State, after: State, receipts: list[Receipt]) -> None:
        """Which layers of the server's network, or of a client's, nothing passes through any more."""
        steps = [("", before.server.mask, after.server.mask)]
        if not self.whose.asks:
            steps += [(f" of client {one.job.client}", one.job.subnet.mask, one.mask) for one in receipts if one.pruned]
        for whose, old, new in steps:
            for layer in collapsed(old, new):
                text = "in round %d layer %s%s has lost its last unit; what.min_per_layer=1 keeps one"
                log.warning(text, before.round, layer, whose)

    def _client_density(self, state: State) -> dict[str, float]:
        """Where clients have masks of their own, the mean over all clients."""
        return {} if self.whose.asks else {"client/density_mean": statistics.fmean(client_densities(state, self.clients))}

    def _densities(self, jobs: list[Job]) -> dict[str, float]:
        """Of what the clients of this round are sent: means over them."""
        subnets = {id(job.subnet): job.subnet for job in jobs}
        found = {key: densities(subnet, self.axes.what, self.parameters) for key, subnet in subnets.items()}
        if len(found) == 1:
            return next(iter(found.values()))
        return {name: statistics.fmean(found[id(job.subnet)][name] for job in jobs) for name in next(iter(found.values()))}

    def _flops(self, receipts: list[Receipt]) -> dict[str, float]:
        """Of this round's training, each client's by the mask that it trained under, whatever it made of that or sent of it;
        nothing if those of the dense network could not be counted."""
        if not self.flops:
            return {}
        trained = [self._trained_under(receipt) for receipt in receipts]
        each = {key: training_flops(self.flops, mask) for key, mask in {id(mask): mask for mask in trained}.items()}
        return {"flops/train": sum(receipt.seen * each[id(mask)] for receipt, mask in zip(receipts, trained, strict=True))}

    def _trained_under(self, receipt: Receipt) -> Mask:
        return receipt.mask if receipt.pruned and self.whose.at == "start" else receipt.job.subnet.mask

    def _evaluates(self, state: State) -> bool:
        """Every so many rounds, before each prune event, and at the end."""
        before_an_event = bool(self.whose.asks and due(self.plan, state))
        return state.round % self.eval_every == 0 or state.round == self.plan.rounds or before_an_event


def _rewind_stream(seed: int, events: int, layer: str) -> torch.Generator:
    return torch_stream(seed, f"rewind {layer}", events)
