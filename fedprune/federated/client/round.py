"""One client's round: Job -> Update. A worker builds its own `ClientRound` once; only messages travel to and from it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from fedprune.data.batches import Slice
from fedprune.errors import in_user_code
from fedprune.execution.arrays import Arrays
from fedprune.federated.client.context import Context
from fedprune.federated.client.evaluation import ClientEvaluation
from fedprune.federated.client.evidence import ClientEvidence
from fedprune.federated.client.private_values import arrived
from fedprune.federated.client.prune_event import Looks, OnClient, Pruned
from fedprune.federated.client.state_arrays import KeptArrays, as_arrays, copy_of_arrays
from fedprune.federated.client.training import ClientTraining
from fedprune.federated.client.upload import Upload, everything
from fedprune.local.outcomes import Outcomes
from fedprune.local.state import scaffold, squared_gradients
from fedprune.local.state.optimizer_state import OptimizerState
from fedprune.local.state.scaffold import Controls
from fedprune.local.train import Trained
from fedprune.phase_clock import Clock
from fedprune.pruning.evidence import needs
from fedprune.pruning.mask import apply, ones
from fedprune.types import SERVER, ClientState, Job, Params, Subnet, Update
from fedprune.wire.frame import Message, Piece
from fedprune.wire.message import answered_under

Answer = tuple[Message, KeptArrays, dict[str, float]]
"""(an update, what the client keeps past the wire, the seconds of each phase)."""


class Client(Protocol):
    """The object that a worker builds: the tasks of executors are these methods."""

    def run(self, message: Message, kept: KeptArrays, kept_mask: bytes) -> Answer: ...

    def evaluate(self, block: Piece, private: Arrays, kept_mask: bytes, where: Slice) -> Outcomes: ...

    def tuned(self, message: Message, kept: KeptArrays, kept_mask: bytes) -> Outcomes: ...


class Begun(NamedTuple):
    """A job up to its training. arrived: the network as it came, with the client's private tensors. subnet: what is to be
    trained; pruned: whether an event has made that. optimizer_state: the optimizer goes on from it. controls: SCAFFOLD's
    (None: gradients are not corrected)."""

    job: Job
    arrived: Params
    subnet: Subnet
    pruned: bool
    optimizer_state: OptimizerState
    controls: Controls | None


@dataclass(frozen=True)
class ClientRound:
    """Trains the subnet of a job on its client's data.

    event: how the client carries out prune events itself (None: the server does). upload: what it sends back of what it has
    trained. accumulates: whether it adds up squared gradients for an event. examples, top: see ClientEvidence.
    """

    context: Context
    event: OnClient | None = None
    upload: Upload = field(default_factory=everything)
    accumulates: bool = False
    examples: int | None = None
    top: float | None = None

    @functools.cached_property
    def training(self) -> ClientTraining:
        """The part that trains."""
        gate = self.event.gate if self.event else None
        looks_back = gate is not None and "mask_shift" in needs(gate) and (self.context.recipe.epochs or 0) >= 2
        return ClientTraining(self.context, self.accumulates, looks_back)

    @functools.cached_property
    def evidence(self) -> ClientEvidence:
        """The part that measures evidence."""
        return ClientEvidence(self.context, self.examples, self.top)

    @functools.cached_property
    def evaluation(self) -> ClientEvaluation:
        """The part that evaluates networks."""
        return ClientEvaluation(self.context)

    # --- messages ----------------------------------------------------------------------------------------------------------

    def run(self, message: Message, kept: KeptArrays, kept_mask: bytes, train: Callable[[Job], Update] | None = None) -> Answer:
        """Perform the job of a message, and return its update. kept_mask: the client's own mask, packed to bits.

        train: in the place of this class's own `train`.
        """
        clock = Clock()
        with clock.phase("decode"):
            job = self.received(message, kept, kept_mask)
        with clock.phase("train"):
            update = self.perform(job, train)
        return self.encoded(job, update, clock)

    def received(self, message: Message, kept: KeptArrays, kept_mask: bytes) -> Job:
        """Return the job of a message, with the tensors that never travel."""
        job = self.context.wire.decode_job(message, kept_mask)
        if kept:
            job = replace(job, kept=copy_of_arrays(kept))
        if self.context.untrained:
            job = replace(job, subnet=Subnet(self.context.untrained | job.subnet.params, job.subnet.mask))
        return job

    def perform(self, job: Job, train: Callable[[Job], Update] | None = None) -> Update:
        """Do what the job asks for. Raises RunError, naming the client, for what the user's own code raises."""
        with in_user_code(told(job)):
            return self.measure(job) if job.measure else (train or self.train)(job)

    def encoded(self, job: Job, update: Update, clock: Clock) -> Answer:
        """Return the message of an update. clock: of the time that it took."""
        with clock.phase("encode"):
            message = self.context.wire.encode_update(update, answered_under(job))
        return message, {} if update.kept.empty else as_arrays(update.kept), clock.seconds()

    def measure(self, job: Job) -> Update:
        """Return the evidence that the job asks for. Nothing is trained."""
        return self.evidence.as_update(job)

    def evaluate(self, block: Piece, private: Arrays, kept_mask: bytes, where: Slice) -> Outcomes:
        """Return what the module measures on a slice; see ClientEvaluation."""
        return self.evaluation.evaluate(block, private, kept_mask, where)

    # --- after one local training ------------------------------------------------------------------------------------------

    def tuned(
        self, message: Message, kept: KeptArrays, kept_mask: bytes, tune: Callable[[Job], Outcomes] | None = None
    ) -> Outcomes:
        """Train as in a round what a message brings, and return what the module then measures on the client's own test part.

        Nothing else comes of it. tune: in the place of this class's own `tune`.
        """
        job = self.received(message, kept, kept_mask)
        with in_user_code(told(job)):
            return (tune or self.tune)(job)

    def tune(self, job: Job) -> Outcomes:
        """Return the outcomes of the network that training makes of this job, which has no event."""
        begun = self.begin(job)
        return self.after_training(begun, self._trained(begun)[0])

    def after_training(self, begun: Begun, trained: Trained) -> Outcomes:
        """Return what the module measures of a trained network on its client's test part."""
        context, result = self.context, self._result(begun, trained)
        with context.as_trained(result.mask):
            return self.evaluation.own_test(begun.job.client, context.in_use(result.params, context.wire.layout.masked))

    # --- a round -----------------------------------------------------------------------------------------------------------

    def train(self, job: Job) -> Update:
        """Train the subnet that was sent on the client's training part, and carry out the job's event, if it has one."""
        begun = self.begin(job)
        return self.finish(begun, *self._trained(begun))

    def begin(self, job: Job) -> Begun:
        """Do what comes before the training: an event at the start of the round."""
        subnet = job.subnet if job.common is None else arrived(job)
        if job.kept.batchnorm:
            subnet = Subnet(subnet.params | job.kept.batchnorm, subnet.mask)
        controls = scaffold.received(job) if job.control else None
        pruned = self._carry_out(job, "start", subnet) if job.event else None
        if pruned is None:
            return Begun(job, subnet.params, subnet, False, job.kept.optimizer, controls)
        optimizer_state = {} if pruned.replaced else job.kept.optimizer
        return Begun(job, subnet.params, pruned.subnet, True, optimizer_state, controls)

    def finish(self, begun: Begun, trained: Trained, first: Params | None = None) -> Update:
        """Do what comes after the training: an event at the end of the round, and the update. first: the network after the
        first epoch, if the job looks back and there were more."""
        job, result = begun.job, self._result(begun, trained)
        pruned = self._at_end(job, trained, result, begun.arrived if first is None else first) if job.event else None
        if pruned:
            result = pruned.subnet
            trained = trained._replace(optimizer={} if pruned.replaced else trained.optimizer)
        control, kept = self._kept(begun, trained, result)
        return Update(
            client=job.client,
            subnet=result if self.upload.whole else self.upload.pack(begun.subnet.params, result),
            examples=len(self.context.clients.train[job.client]),
            metrics={"loss": trained.loss, "steps": trained.steps, "seen": trained.examples},
            logged=trained.logged or {},
            pruned=begun.pruned or pruned is not None,
            control=control,
            kept=kept,
        )

    def _trained(self, begun: Begun) -> tuple[Trained, Params | None]:
        correction = begun.controls.correction() if begun.controls else {}
        return self.training.train_subnet(begun.job, begun.subnet, begun.optimizer_state, correction)

    def _result(self, begun: Begun, trained: Trained) -> Subnet:
        """Return what training has made of the subnet, before any event at the end."""
        mask = begun.subnet.mask
        return Subnet(apply(trained.params, mask) if self.context.recipe.error_feedback else trained.params, mask)

    def _at_end(self, job: Job, trained: Trained, result: Subnet, first: Params) -> Pruned | None:
        """Carry out an event at the end; under error feedback it chooses among all that was trained, dead entries too."""
        if self.context.recipe.error_feedback:
            result = Subnet(trained.params, ones(trained.params, tuple(result.mask)))
        return self._carry_out(job, "end", result, first)

    def _kept(self, begun: Begun, trained: Trained, result: Subnet) -> tuple[Params, ClientState]:
        """Return (the change of the control, which travels; the client's next state)."""
        before, change, control, sums = begun.job.kept, Params(), Params(), Params()
        if begun.controls:
            change, control = begun.controls.change_and_next(begun.subnet.params, trained.params, trained.reach)
        if trained.gradients:
            sums = squared_gradients.added(before.squared_gradients, trained.gradients)
        batchnorm = {name: result.params[name] for name in before.batchnorm}
        weights = {name: result.params[name] for name in result.mask} if self.context.recipe.keep_weights else {}
        return change, ClientState(batchnorm, weights, trained.optimizer, control, sums)

    def _carry_out(self, job: Job, moment: str, subnet: Subnet, first: Params | None = None) -> Pruned | None:
        if self.event is None or self.event.at != moment:
            return None
        validation = functools.partial(self.evaluation.validation, job.client)
        return self.event(job, subnet, Looks(self.evidence.for_event(job, self.event), validation, first))


def told(job: Job) -> str:
    """Return a job's client and round, for messages."""
    return f"{'the server' if job.client == SERVER else f'client {job.client}'} in round {job.round}"
