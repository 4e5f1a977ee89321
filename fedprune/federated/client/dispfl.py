"""DisPFL's client: it trains under the mask that it has, and then decides which mask comes next. Dai et al. 2022.

An option of federated/client. The trained network stays whole under the mask that it was trained under, and travels to others
like that. The client keeps the next mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fedprune.data.batches import Slice
from fedprune.execution.arrays import Arrays
from fedprune.federated.client import TrainedWeights
from fedprune.federated.client.round import Answer, ClientRound
from fedprune.federated.client.state_arrays import KeptArrays
from fedprune.local.outcomes import Outcomes
from fedprune.pruning.criterion.scores import scored
from fedprune.pruning.criterion.set_exchange import drop_within, grow_within
from fedprune.pruning.event import dropped
from fedprune.pruning.evidence import needs
from fedprune.pruning.mask import pack
from fedprune.types import ClientState, Job, Mask, Params, Subnet, Update
from fedprune.wire.frame import Message, Piece


@dataclass(frozen=True)
class EvolvingMask(TrainedWeights):
    """After training, each layer drops the fraction `swap` of the event and grows as many.

    See pruning/criterion/set_exchange.py.
    """

    goes_on_alone = True

    def client_round(self, worker: ClientRound, start: Callable[[], Params], seed: int) -> EvolvingRound:
        return EvolvingRound(worker)


@dataclass(frozen=True)
class EvolvingRound:
    """A client's round. It keeps the mask that it goes on with, packed to bits, if its job has an event."""

    inner: ClientRound

    def run(self, message: Message, kept: KeptArrays, kept_mask: bytes) -> Answer:
        """Perform the job of a message, and return its update."""
        return self.inner.run(message, kept, kept_mask, self.train)

    def evaluate(self, block: Piece, private: Arrays, kept_mask: bytes, where: Slice) -> Outcomes:
        """Return what the module measures on a slice; see ClientEvaluation."""
        return self.inner.evaluate(block, private, kept_mask, where)

    def tuned(self, message: Message, kept: KeptArrays, kept_mask: bytes) -> Outcomes:
        """Return what the module measures after the training of a job; see ClientRound."""
        return self.inner.tuned(message, kept, kept_mask)

    def train(self, job: Job) -> Update:
        """Train under the mask that came, and choose the next."""
        update = self.inner.train(replace(job, event=None))
        if job.event is None:
            return update
        assert update.subnet is not None, "training leaves a network"
        return replace(update, kept=ClientState(mask=pack(self._next(job, update.subnet))), pruned=True)

    def _next(self, job: Job, trained: Subnet) -> Mask:
        """Return the mask after the job's event. What grows is chosen by evidence about the network before anything is
        dropped."""
        event = self.inner.event
        assert job.event is not None and event is not None, "build refuses masks that are not personal"
        axes, measure = event.axes, self.inner.evidence.for_event(job, event)
        drop, grow = axes.criterion.drop, axes.criterion.grow
        if not job.event.swap:
            return dropped(trained, job.event, axes, measure)
        assert grow is not None, "build refuses an exchange without a grow formula"
        worth = scored(drop, measure(needs(drop), trained, "alive"), trained.mask)
        smaller = drop_within(trained.mask, worth, job.event.swap)
        scores = scored(grow, measure(needs(grow), Subnet(trained.params, smaller), "dead"), smaller)
        return grow_within(smaller, scores, trained.mask)
