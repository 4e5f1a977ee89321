"""Initial pruning: before the first round one client trains and prunes the network alone. Federated training goes on from it.

Jiang et al. 2022, "Model pruning enables efficient federated learning on edge devices": the first stage of PruneFL. The client
gets the network of the start, and sends back its own with its mask. In between nothing leaves it: its rounds are jobs here, as
all others are, and of their bytes only the first way down and the last way up are counted. All of it happens within one round,
so that a run that stops in the middle of it does it again from the start.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedprune.errors import Unheard
from fedprune.federated.exchange import Exchange
from fedprune.federated.masks import PruneContext, UpdateSummary
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.sampling import sampled
from fedprune.federated.where import measuring
from fedprune.local.state import squared_gradients
from fedprune.pruning.criterion.regrowth_init import last_values, of_the_dead
from fedprune.pruning.event import prune
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.mask import density
from fedprune.randomness import numpy_stream, torch_seed
from fedprune.types import ClientState, InitialPruning, Job, PruneEvent, State, Subnet, Update
from fedprune.wire.frame import length

SETTLED, IN_A_ROW = 0.1, 5
"""It ends early when the density has changed by at most this fraction in so many exchanges in a row, as in the paper's code."""


def chosen_client(seed: int, clients: int, unseen: Sequence[int] = ()) -> int:
    """Return the client that prunes first, drawn by the seed from those that are not unseen."""
    return int(numpy_stream(seed, "initial pruning").choice(sampled(clients, unseen) if unseen else clients))


def settled(densities: Sequence[float]) -> bool:
    """Return whether the density has settled. densities: after each exchange so far."""
    pairs = [*itertools.pairwise(densities)][-IN_A_ROW:]
    return len(pairs) == IN_A_ROW and all(abs(after / before - 1) <= SETTLED for before, after in pairs)


@dataclass(frozen=True)
class InitialPruner:
    """Prunes at one client. network: the server's own, for evidence that takes no data."""

    client: int
    exchange: Exchange
    network: Network

    def __call__(self, state: State, event: PruneEvent, context: PruneContext, tally: Tally) -> State:
        """Return the state with the network, and the mask, of the client. Raises Unheard if it does not answer."""
        assert event.initial is not None, "only an event with an initial pruning comes here"
        up_bytes, down_bytes, own, densities = tally.up_bytes, 0, state, list[float]()
        for number in range(event.initial.rounds):
            exchange = self._of_round(number)
            own, update = self._trained(own, exchange, tally)
            down_bytes = down_bytes or tally.down_bytes
            if (number + 1) % event.initial.every == 0:
                own = self._exchanged(own, event, event.initial, context, exchange, tally)
                densities.append(density(own.server.mask))
            if settled(densities):
                break
        answer = self.exchange.wire.encode_update(replace(update, subnet=own.server, kept=ClientState()), state.server.mask)
        tally.down_bytes, tally.up_bytes = down_bytes, up_bytes + length(answer)
        return replace(state, server=own.server, stale=own.stale, kept=self._kept(state, own))

    def _of_round(self, number: int) -> Exchange:
        """Return the exchange with the random streams of one of these rounds, and without SCAFFOLD: nobody is to agree."""
        return replace(self.exchange, seed=torch_seed(self.exchange.seed, "initial pruning", number), control=None)

    def _trained(self, own: State, exchange: Exchange, tally: Tally) -> tuple[State, Update]:
        """Return the state after a round of the client's training, and its update."""
        job = Job(self.client, own.round, own.clock, exchange.seed, own.server, events=own.events)
        answers = list(exchange.train([job], own, tally))
        if not answers:
            raise Unheard(f"client {self.client}, which prunes before all others, has not answered")
        ((_, update),) = answers
        assert update.subnet is not None, "a client that was told to train sends a subnet"
        tally.alone.append(UpdateSummary(job, own.server.mask, 1.0, int(update.metrics["seen"]), pruned=False))
        params = own.server.params | update.subnet.params | update.kept.batchnorm
        return replace(own, server=Subnet(params, own.server.mask), kept={self.client: update.kept}), update

    def _exchanged(
        self, own: State, event: PruneEvent, initial: InitialPruning, context: PruneContext, exchange: Exchange, tally: Tally
    ) -> State:
        """Return the state after an exchange by the evidence of this client."""
        measure = measuring(exchange, self.network, own, (self.client,), tally)
        last = last_values(own.server, own.stale) if context.axes.regrown == "server" else {}
        server = prune(own.server, PruneEvent(own.round, event.density, initial.swap), context.axes, measure, last)
        stale = of_the_dead(last, server.mask) if last else {}
        return replace(own, server=server, stale=stale, kept=squared_gradients.forgotten(own.kept))

    def _kept(self, state: State, own: State) -> dict[int, ClientState]:
        """Return what clients keep afterwards: of this one its private tensors; the rest begins anew."""
        batchnorm = own.kept[self.client].batchnorm if self.client in own.kept else {}
        return {**state.kept, self.client: ClientState(batchnorm=batchnorm)} if batchnorm else dict(state.kept)
