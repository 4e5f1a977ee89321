"""The federated loop: prune -> sample -> broadcast -> train and fold -> step -> ask the gate -> evaluate.

`round(state) -> (state, metrics)` is a pure state transition: replaying round 37 is loading state 36 and one call. What a
composition has not is not called: without events nothing is pruned, and without SCAFFOLD there are no controls.
"""

from __future__ import annotations

import functools
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fedprune.federated.client import private_values
from fedprune.federated.evaluate import Evaluation
from fedprune.federated.exchange import Exchange
from fedprune.federated.fold import Fold
from fedprune.federated.masks import PruneContext, UpdateSummary, Whose
from fedprune.federated.masks.gates import due_events
from fedprune.federated.masks.personal import client_densities
from fedprune.federated.metrics.report import Report, warn_of_collapsed_layers
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.metrics.tuned import Tuned
from fedprune.federated.sampling import cohort
from fedprune.federated.server import scaffold
from fedprune.federated.server.accumulator import Aggregate
from fedprune.federated.server.optimizer import ServerStep
from fedprune.federated.server_pruning import ServerPruning
from fedprune.federated.where import Where
from fedprune.pruning.event import Axes
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import apply, ones
from fedprune.pruning.rewind import Draws, Rewind
from fedprune.randomness import torch_stream
from fedprune.types import Job, Mask, Params, Plan, State, Subnet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FederatedLoop:
    """The rounds of a run. All that is fixed from the first round to the last is here; all that changes is in the State.

    network: as the server has it, for evidence that takes no data. fresh: the n-th independent initialisation (0 is the one the
    run starts from). parameters: the names of all parameters. trainable: of those that are trained, which a server optimizer
    moves (buffers, frozen layers and whole numbers are only aggregated). flops: of training on one example, by layer of the
    dense network (empty: they could not be counted).
    effective: (mask) -> the fraction of the prunable entries on a path from input to output (None: it cannot be counted).
    tuned: the clients' metrics after one local training. unseen: the clients that are in no cohort.
    ticket: the one whose weights and mask the run starts from (None: it starts dense). profile: whether the metrics tell where
    the time went (phase_clock.py).
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
    tuned: Tuned
    fresh: Callable[[int], Params]
    parameters: tuple[str, ...]
    trainable: tuple[str, ...]
    flops: Mapping[str, float]
    effective: Callable[[Mask], float] | None
    unseen: tuple[int, ...] = ()
    ticket: Subnet | None = None
    profile: bool = False

    def start(self) -> State:
        """Return the state before the first round: the ticket that is given, or a dense initialisation."""
        first = self.ticket or self._dense()
        return State(first, init=first.params, ticket=first.params)

    def _dense(self) -> Subnet:
        init = self.fresh(0)
        return Subnet(init, ones(init, self.axes.what.names))

    def round(self, state: State) -> tuple[State, dict[str, float]]:
        """Return the state after one round, and the metrics of the round."""
        started, tally = time.perf_counter(), Tally.begun(self.profile)
        before, extra = state, dict[str, float]()
        phase = tally.clock.phase
        if state.clock == self._anchor:
            state = self._remember(state)
        if self._server_prunes(state):
            with phase("prune", whole=True):
                state, waiting = self.pruning.before_round(state, tally)
                extra |= {"prune/waiting": waiting} if waiting else {}
        with phase("sampling"):
            clients = self._cohort(state)
        with phase("broadcast"):
            jobs = self._jobs(state, clients)
        with phase("merge"):  # clients train while this `for` waits for them; each update is folded as it arrives
            fold = self._fold(state)
            for job, update in self.exchange.train(jobs, state, tally):
                fold.add(job, update)
            after = self._step(state, fold)
        training_ended = time.perf_counter()
        with phase("prune", whole=True):
            extra |= self._changed_masks(before, after, fold.summaries)
            if self.plan.gate is not None and self._server_prunes(after):
                after, outcomes = self.pruning.ask_gate(after, tally)
                extra |= outcomes
        after = tally.counted(after)
        metrics = {"round": state.round, "prune/events": state.events, **self.report.densities(jobs), **extra}
        metrics |= tally.metrics() | {"wire/total_bytes": after.up_bytes + after.down_bytes}
        metrics |= {"flops/train": self.report.training_flops([*tally.alone, *fold.summaries])} if self.flops else {}
        if self._evaluates(after):
            with phase("evaluate", whole=True):
                metrics |= self.evaluation(after) | self._client_density(after)
                metrics |= self._after_training(after, after)
        metrics |= tally.clock.metrics()
        return after, metrics | {"time/train_s": training_ended - started, "time/round_s": time.perf_counter() - started}

    @functools.cached_property
    def pruning(self) -> ServerPruning:
        """The server's prune events."""
        return ServerPruning(
            whose=self.whose,
            where=self.where,
            network=self.network,
            exchange=self.exchange,
            evaluation=self.evaluation,
            clients=self.clients,
            unseen=self.unseen,
            cohort=self._cohort,
            context=self._context,
        )

    @functools.cached_property
    def _anchor(self) -> int | None:
        """The clock whose parameters a rewind goes back to."""
        return self.rewind.anchor

    @functools.cached_property
    def report(self) -> Report:
        """The metrics that follow from masks."""
        return Report(self.axes.what, self.parameters, self.flops, self.whose.at)

    @property
    def sampled(self) -> int:
        """The number of clients of which cohorts are drawn."""
        return self.clients - len(self.unseen)

    def _remember(self, state: State) -> State:
        """Keep the parameters to which a later rewind goes back."""
        if state.clock != self._anchor or state.clock in state.anchors:
            return state
        return replace(state, anchors={**state.anchors, state.clock: state.server.params})

    def _server_prunes(self, state: State) -> bool:
        """Return whether there are events to come that the server carries out."""
        return self.whose.global_mask and state.events < len(self.plan.events)

    def _cohort(self, state: State) -> tuple[int, ...]:
        return cohort(self.seed, state.clock, self.clients, self.cohort, self.unseen)

    def _jobs(self, state: State, clients: Iterable[int]) -> list[Job]:
        """Return the jobs of these clients, each under the client's own mask if it has one."""
        if not self.whose.per_client:
            alike = Job(0, state.round, state.clock, self.seed, state.server, events=state.events)
            return [replace(alike, client=client) for client in clients]
        common = self.whose.common_entries(state)
        return [self._job(state, client, common) for client in clients]

    def _job(self, state: State, client: int, common: Callable[[int], Mask] | None = None) -> Job:
        mask, (event, events) = self._own(state, client), self.whose.on_client(self.plan, state, client)
        subnet = state.server if mask is None else Subnet(apply(state.server.params, mask), mask)
        has_trained = common is not None and private_values.weights_of(state, client)
        travels = private_values.common_in(subnet.mask, common(client)) if has_trained and common else None
        kept_mask = self.whose.kept_mask(state, client)
        return Job(
            client, state.round, state.clock, self.seed, subnet, event=event, events=events, common=travels, kept_mask=kept_mask
        )

    def _own(self, state: State, client: int) -> Mask | None:
        """Return the client's own mask, if it has one."""
        return self.exchange.wire.mask_of(self.whose.client_mask(state, client))

    def _fold(self, state: State) -> Fold:
        """Return what the updates of this round are folded into."""
        return Fold(self.aggregate(state.server.params), self.weighting, self.exchange.private, dict(state.kept))

    def _step(self, state: State, fold: Fold) -> State:
        """Return the state after the server optimizer's step to the aggregate; `whose.merged` then puts the masks on.

        Without any update there is no step: only time goes on, and the server optimizer's momentum stays as it is. Nor is it
        known that a client has carried out an event that the gate let through, so the gate is closed until it is asked again.
        """
        later = replace(state, round=state.round + 1, clock=state.clock + 1, kept=fold.kept)
        if not fold.summaries:
            log.warning("round %d: there is no update to merge; the network stays as it is", state.round)
            return replace(later, opened=False)
        remembered = state.server_state
        momentum, control = remembered.momentum, remembered.control
        params, momentum = self.server_step(state.server.params, fold.result(state.server.params), momentum, self.trainable)
        if fold.control_changes:
            control = scaffold.stepped(control, fold.control_changes, self.sampled)
        after = replace(later, server_state=replace(remembered, momentum=momentum, control=control))
        return self.whose.merged(after, params, fold.summaries, self._context(state))

    def _context(self, state: State) -> PruneContext:
        """Return what an event of this round goes by: another initialisation, and other random streams, at every event."""
        streams = functools.partial(_rewind_stream, self.seed, state.events)
        draws = Draws(lambda: self.fresh(state.events + 1), streams, self.ticket.mask if self.ticket else {})
        return PruneContext(self.plan, self.axes, self.rewind, draws, self.server_step.fresh)

    def _changed_masks(self, before: State, after: State, summaries: Sequence[UpdateSummary]) -> dict[str, float]:
        """Report on the masks that are others than before the round; nothing if none is."""
        pruned = [summary for summary in summaries if summary.pruned]
        changed = after.server.mask is not before.server.mask
        if changed or pruned:
            warn_of_collapsed_layers(before, after, () if self.whose.global_mask else pruned)
        if changed and self.whose.global_mask and self.effective:
            return {"density/effective": self.effective(after.server.mask)}  # it stays until the next event
        return {}

    def _client_density(self, state: State) -> dict[str, float]:
        """Return, where clients have masks of their own, the mean over all clients of which cohorts are drawn."""
        return (
            {} if self.whose.global_mask else {"client/density_mean": statistics.fmean(client_densities(state, self.sampled))}
        )

    def _after_training(self, state: State, keeping: State) -> dict[str, float]:
        """Return the clients' metrics after one local training. keeping: the state of which they have what they keep."""
        return self.tuned(state.round, functools.partial(self._jobs, state), lambda jobs: self.exchange.tuned(jobs, keeping))

    def _evaluates(self, state: State) -> bool:
        """Return whether to evaluate: every so many rounds, before each prune event, and at the end."""
        if state.round % self.eval_every == 0 or state.round == self.plan.rounds:
            return True
        return self._server_prunes(state) and bool(due_events(self.plan, state))


def _rewind_stream(seed: int, events: int, layer: str) -> torch.Generator:
    return torch_stream(seed, f"rewind {layer}", events)
