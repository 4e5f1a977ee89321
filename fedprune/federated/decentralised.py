"""The decentralised loop: send to neighbours -> average -> train -> choose the next mask -> evaluate. Dai et al. 2022 (DisPFL).

There is no server. Every client has a network and a mask of its own: State.kept[client] holds the network as it was last
trained (weights) and the mask that it was trained under; State.personal[client] the mask that it goes on with.
State.server stays the network that all began from. The contract is that of loop.py: round(state) -> (state, metrics).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from fedprune.federated.client import broken
from fedprune.federated.loop import FederatedLoop
from fedprune.federated.masks import UpdateSummary
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.round_kinds import Rounds
from fedprune.federated.server.accumulator import merged
from fedprune.federated.server.aggregate import OverlapMean
from fedprune.federated.topology import Topology
from fedprune.pruning.criterion import random
from fedprune.pruning.mask import apply, ones, pack, shrink, unpack
from fedprune.randomness import torch_stream
from fedprune.types import ClientState, Job, Mask, Personal, State, Subnet, Update
from fedprune.wire.frame import Message, length
from fedprune.wire.message import Wire

if TYPE_CHECKING:
    from fedprune.federated.composition import Composition

CHOSEN = "federated/round=neighbours"


@dataclass(frozen=True)
class Neighbours(Rounds):
    """Clients that take part in a round (federated.cohort of them) send their networks to their neighbours; an option of
    federated/round, see round_kinds.py. topology: the neighbours of each client."""

    topology: Topology
    welcomes = False

    def loop(self, **parts: Any) -> FederatedLoop:
        return NeighbourLoop(**parts, topology=self.topology)

    def traffic(self, wire: Wire, subnet: Subnet, each: tuple[int, int], cohort: int) -> tuple[int, int]:
        messages = sum(len(self.topology(client, tuple(range(cohort)), 0, 0)) for client in range(cohort))
        return 0, messages * length(message(wire, 0, subnet))

    def problems(self, composition: Composition) -> list[str]:
        """Return which options take a server, or masks that clients do not choose themselves."""
        plan, what, options, names = composition.plan, composition.what, composition.options, composition.names
        heard = self.topology(0, (0, 1), 0, 0)  # a rehearsal: it says itself what is wrong with it
        exchanges = any(event.swap for event in plan.events)
        federated = composition.config.federated
        rules = {
            f"{CHOSEN}: each client chooses its next mask itself: choose federated/client=evolving_mask": (
                options.client.goes_on_alone
            ),
            f"whose={names['whose']}: with {CHOSEN} there is nobody to share a mask: choose whose=personal with whose.at=end": (
                not options.whose.global_mask and options.whose.at == "end"
            ),
            f"whose.uncommon=own: {CHOSEN} has no server whose values a client could do without: set whose.uncommon=server": (
                options.whose.uncommon == "server"
            ),
            f"when={names['when']}: {CHOSEN} has no gate: choose when=during_training": plan.gate is None,
            f"rewind={names['rewind']}: {CHOSEN} never goes back: choose rewind=none": not options.rewind.goes_back,
            f"what={names['what']}: {CHOSEN} exchanges single weights: choose what=weights_erk": (
                what.kind.single or not exchanges
            ),
            f"{CHOSEN} has no server that takes steps: choose federated=fedavg": not options.server_step.moves,
            f"federated.weighting={federated.weighting}: neighbours count alike: set federated.weighting=uniform": (
                federated.weighting == "uniform"
            ),
            f"federated.optimizer_state={federated.optimizer_state}: {CHOSEN} begins each round with a fresh optimizer: "
            "set federated.optimizer_state=fresh": federated.optimizer_state == "fresh",
            f"federated.batchnorm={federated.batchnorm}: {CHOSEN} averages all tensors: set federated.batchnorm=average": (
                federated.batchnorm == "average"
            ),
            f"{CHOSEN}: who does not take part is left out by federated.cohort: choose federated/availability=always": (
                options.availability.certain
            ),
            f"{CHOSEN}: neighbours are sent whole networks: choose federated/upload=all": options.upload.whole,
            f"federated.control={federated.control}: {CHOSEN} has no server that holds controls: set federated.control=none": (
                federated.control == "none"
            ),
            f"federated.regrown={federated.regrown}: {CHOSEN} grows from what neighbours have: set federated.regrown=zero": (
                federated.regrown == "zero"
            ),
            f"federated.cohort={federated.cohort}: neighbours are at least two: set federated.cohort=2": not heard
            or federated.cohort > 1,
        }
        return broken(rules)


@dataclass(frozen=True, kw_only=True)
class NeighbourLoop(FederatedLoop):
    """The loop of a run without a server. topology: the neighbours of each client."""

    topology: Topology

    def start(self) -> State:
        """Return the state before the first round: one initialisation, and each client's random mask of its first density."""
        state = super().start()
        firsts = {client: self._first(state, client) for client in range(self.clients)}
        init = {name: state.init[name] for name in self._travels}
        kept = {client: _kept(Subnet(apply(init, mask), mask)) for client, (mask, _) in firsts.items()}
        personal = {client: Personal(pack(mask), events) for client, (mask, events) in firsts.items()}
        reached = frozenset(range(self.clients)) if self.exchange.wire.untrained.shapes else state.reached
        return replace(state, kept=kept, personal=personal, reached=reached)

    @property
    def _travels(self) -> tuple[str, ...]:
        """The names of all tensors that are trained; the others all clients have from the same initialisation."""
        return tuple(self.exchange.wire.layout.shapes)

    def _first(self, state: State, client: int) -> tuple[Mask, int]:
        """Return (mask, number of events done) of a client that has not trained yet."""
        event, events = self.whose.on_client(self.plan, state, client)
        if event is None:
            return state.server.mask, events
        prunable = {name: state.init[name] for name in self.axes.what.names}
        scores = random(prunable, functools.partial(_first_stream, self.seed, client))
        return shrink(state.server.mask, scores, event.density, self.axes.what), events + 1

    def round(self, state: State) -> tuple[State, dict[str, float]]:
        """Return the state after one round, and the metrics of the round."""
        started, tally = time.perf_counter(), Tally.begun(self.profile)
        phase = tally.clock.phase
        with phase("sampling"):
            active = tuple(sorted(self._cohort(state)))
            heard = {client: self.topology(client, active, self.seed, state.clock) for client in active}
        with phase("broadcast"):
            messages = self._messages(state, heard)
        with phase("merge"):
            jobs = self._meet(state, heard, messages)
        after, summaries = self._train(state, jobs, tally)
        wire_bytes = _bytes(heard, messages)
        after = replace(after, up_bytes=state.up_bytes + wire_bytes["wire/up_bytes"])
        metrics = {"round": state.round, "prune/events": state.events, **self.report.densities(jobs)}
        metrics |= tally.metrics() | wire_bytes | {"wire/total_bytes": after.up_bytes}
        metrics |= {"flops/train": self.report.training_flops(summaries)} if self.flops else {}
        ended = time.perf_counter()
        if self._evaluates(after):
            with phase("evaluate", whole=True):
                metrics |= self._evaluated(after)
        metrics |= tally.clock.metrics()
        return after, metrics | {"time/train_s": ended - started, "time/round_s": time.perf_counter() - started}

    def _jobs(self, state: State, clients: Iterable[int]) -> list[Job]:
        """Return what each of these clients would begin this round with if it took part."""
        active = set(self._cohort(state))
        heard = {c: self.topology(c, tuple(sorted(active | {c})), self.seed, state.clock) for c in clients}
        return self._meet(state, heard, self._messages(state, heard))

    def _messages(self, state: State, heard: Mapping[int, tuple[int, ...]]) -> dict[int, Message]:
        """Return the encoded network of each client that some other one hears."""
        sending = sorted({other for others in heard.values() for other in others})
        return {client: message(self.exchange.wire, client, self._network(state, client)) for client in sending}

    def _network(self, state: State, client: int) -> Subnet:
        """Return a client's network under the mask that it was trained under, as the client sends it."""
        kept = state.kept[client]
        return Subnet(kept.weights, self._mask(state, kept.mask))

    def _mask(self, state: State, bits: bytes) -> Mask:
        return unpack(bits, {name: alive.shape for name, alive in state.server.mask.items()})

    def _meet(self, state: State, heard: Mapping[int, tuple[int, ...]], messages: Mapping[int, Message]) -> list[Job]:
        """Return each client's job: the mean of its own network and its neighbours', under the mask that it goes on with."""
        networks = {client: self._decoded(state, encoded) for client, encoded in messages.items()}
        jobs = []
        for client, others in heard.items():
            next_mask = bytes(state.personal[client].mask)
            own = self._network(state, client)
            averaged = [(own if number == client else networks[number], 1.0) for number in sorted((client, *others))]
            mean = merged(self.aggregate, own.params, averaged)
            event, events = self.whose.on_client(self.plan, state, client)
            mask = self._mask(state, next_mask)
            subnet = Subnet(apply(state.server.params | mean, mask), mask)
            jobs.append(
                Job(client, state.round, state.clock, self.seed, subnet, event=event, events=events, kept_mask=next_mask)
            )
        return jobs

    def _decoded(self, state: State, encoded: Message) -> Subnet:
        """Return the network in a message."""
        subnet = self.exchange.wire.decode_update(encoded, state.server.mask).subnet
        assert subnet is not None, "a message between neighbours is a network"
        return subnet

    def _train(self, state: State, jobs: list[Job], tally: Tally) -> tuple[State, list[UpdateSummary]]:
        """Return the state with each client's trained network and next mask."""
        kept, personal, summaries = dict(state.kept), dict(state.personal), list[UpdateSummary]()
        nothing = replace(state, kept={})  # what a client kept would go before the mean that it is to train
        for job, update in self.exchange.train(jobs, nothing, tally):
            assert update.subnet is not None, "a client that was told to train sends a subnet"
            kept[job.client] = _kept(update.subnet)
            if update.pruned:
                personal[job.client] = Personal(update.kept.mask, job.events + 1, job.round)
            summaries.append(UpdateSummary(job, update.subnet.mask, 1.0, int(update.metrics["seen"]), update.pruned))
        after = replace(state, round=state.round + 1, clock=state.clock + 1, kept=kept, personal=personal)
        return after, summaries

    def _evaluated(self, state: State) -> dict[str, float]:
        """Evaluate what each client begins its next round with, before and after training on its own data; and, as test/*, the
        mean of all networks, which nobody has, on the global test set."""
        everyone = ((self._network(state, client), 1.0) for client in state.kept if client not in self.unseen)
        mean = merged(OverlapMean("zero"), state.init, everyone)
        whole = replace(self.exchange, private=self._travels)
        server = Subnet(mean, ones(mean, self.axes.what.names))
        clients = (*self.evaluation.clients, *self.evaluation.unseen)
        before = {job.client: _kept(job.subnet) for job in self._jobs(state, clients)}
        metrics = replace(self.evaluation, exchange=whole)(replace(state, server=server, kept=before))
        return metrics | self._after_training(state, replace(state, kept={}))


def message(wire: Wire, client: int, subnet: Subnet) -> Message:
    """Encode a client's network, with its mask, for its neighbours."""
    return wire.encode_update(Update(client, subnet, 0), {})


def _bytes(heard: Mapping[int, tuple[int, ...]], messages: Mapping[int, Message]) -> dict[str, int]:
    """Count every message as often as it is sent; and the most that one client sends and receives."""
    received = {client: sum(length(messages[other]) for other in others) for client, others in heard.items()}
    sent = {client: length(messages[client]) * sum(client in others for others in heard.values()) for client in messages}
    busiest = max(received[client] + sent.get(client, 0) for client in heard)
    return {"wire/up_bytes": sum(received.values()), "wire/down_bytes": 0, "wire/busiest_bytes": busiest}


def _kept(subnet: Subnet) -> ClientState:
    """Return a client's network, and the mask that it was trained under."""
    return ClientState(weights=subnet.params, mask=pack(subnet.mask))


def _first_stream(seed: int, client: int, layer: str) -> torch.Generator:
    return torch_stream(seed, f"first mask {layer}", 0, client)
