"""Jobs out, updates in: everything that crosses the wire, encoded, sent to the executor, decoded, checked and counted."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fedprune.errors import RunError
from fedprune.execution import Executor, Lost, Task
from fedprune.federated.availability import Fate, Fates, everybody
from fedprune.federated.client.kept import KeptArrays, as_arrays, of_arrays
from fedprune.federated.client.upload import Upload, everything
from fedprune.federated.tally import Tally
from fedprune.precision import finite
from fedprune.pruning.evidence.finite import DIVERGED, unmeasured
from fedprune.pruning.mask import apply
from fedprune.types import SERVER, ClientState, Job, Mask, Params, State, Subnet, Update
from fedprune.wire.frame import Message, length
from fedprune.wire.message import Wire, answered_under

log = logging.getLogger(__name__)


class Sent(Sequence[Task]):
    """The tasks of these jobs, each made when it is begun: while other clients train, and without all of them in memory.

    By their places, once they are made: bytes, the length of the message, and seconds, what it took to make it.
    """

    def __init__(self, jobs: Sequence[Job], encode: Callable[[Job], Message], kept_by: Callable[[int], KeptArrays]):
        self.jobs, self._encode, self._kept_by = jobs, encode, kept_by
        self.bytes, self.seconds = dict[int, int](), dict[int, float]()

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        job, started = self.jobs[place], time.perf_counter()
        message = self._encode(job)
        self.bytes[place], self.seconds[place] = length(message), time.perf_counter() - started
        return "run", (message, self._kept_by(job.client), job.kept_mask)


def _sent(job: Job) -> tuple[int, bytes, int]:
    """What two jobs have in common whose blocks are the same."""
    return id(job.subnet), job.kept_mask, id(job.shared)


@dataclass(frozen=True)
class Exchange:
    """The server's end of the wire.

    examples: the number of training examples of each client. private: names of the tensors that clients keep.
    broken: what to do about an update that fails its checks: `stop` the run, or `drop` the update from the round. One that is
    lost with its worker is dropped in any case, for the client may do better in its next round; if all are, `stop` stops.
    fates: who answers in which round. control: the part of a state that travels beside the network to clients that train (None:
    nothing). upload: what they send back of it. feedback: whether clients may let live at an event what was dead in the network
    that they were sent.
    learnt: names of the tensors that training changes, which have to stay finite (None: all of them).
    """

    wire: Wire
    executor: Executor
    seed: int
    examples: Sequence[int]
    private: tuple[str, ...] = ()
    broken: str = "stop"
    fates: Fates = everybody
    control: Callable[[State], Params] | None = None
    upload: Upload = field(default_factory=everything)
    feedback: bool = False
    learnt: tuple[str, ...] | None = None

    def train(self, jobs: Sequence[Job], state: State, tally: Tally) -> Iterator[tuple[Job, Update]]:
        """Yield what clients send back after training what these jobs give them, in the order of the jobs."""
        if self.control is not None:
            control = self.control(state)
            jobs = [replace(job, control=control) for job in jobs]
        return self._run(jobs, state, tally)

    def measure(
        self,
        state: State,
        subnet: Subnet,
        clients: Sequence[int],
        evidence: tuple[str, ...],
        about: str,
        tally: Tally,
        surviving: Mask | None = None,
    ) -> Iterator[Update]:
        """What these clients measured at `subnet`, in their order; with `surviving`, about a removal that leaves this of it."""
        asked = Job(SERVER, state.round, state.clock, self.seed, subnet, evidence, about, surviving)
        answers = self._run([replace(asked, client=client) for client in clients], state, tally)
        return (update for _, update in answers)

    def kept_by(self, state: State, client: int) -> ClientState:
        """Return what this client kept from its last round; the initial values if it has not trained yet. Of SERVER, the
        server's copy of the private tensors."""
        source = state.server.params if client == SERVER else state.init
        return state.kept.get(client) or ClientState(batchnorm={name: source[name] for name in self.private})

    def _kept_arrays(self, state: State, client: int) -> KeptArrays:
        kept = self.kept_by(state, client)
        return {} if kept.empty else as_arrays(kept)

    def _run(self, jobs: Sequence[Job], state: State, tally: Tally) -> Iterator[tuple[Job, Update]]:
        with tally.clock.phase("broadcast"):
            jobs = [self._welcomed(job, state, tally) for job in jobs] if self.wire.untrained.shapes else jobs
            kept = partial(self._kept_arrays, state)
            encode, heard = self._encoder(jobs, state), [self._answers(job, tally) for job in jobs]
            # What nobody answers was sent all the same.
            tally.down_bytes += sum(length(encode(job)) for job, hears in zip(jobs, heard, strict=True) if not hears)
            tasks = Sent([job for job, hears in zip(jobs, heard, strict=True) if hears], encode, kept)
            sizes = [0 if job.client == SERVER else self.examples[job.client] for job in tasks.jobs]
        lost: list[str] = []
        results = tally.clock.waiting(self.executor.map(tasks, sizes))
        for place, (job, result) in enumerate(zip(tasks.jobs, results, strict=True)):
            lost += [result.reason] if isinstance(result, Lost) else []
            tally.clock.add({"broadcast": tasks.seconds[place]})
            tally.down_bytes += tasks.bytes[place] * (job.client != SERVER)  # what the server measures crosses no wire
            with tally.clock.phase("decode"):
                update = self._arrived(result, job, tally)
            if update is None:
                tally.dropped.append(job.client)
            else:
                tally.add(update)
                if job.newcomer:
                    tally.reached.add(job.client)
                yield job, update
        if lost and len(lost) == len(heard) and self.broken == "stop":
            raise RunError(f"nobody brought an answer: {lost[-1]}; to go on all the same: federated.broken=drop")

    def _welcomed(self, job: Job, state: State, tally: Tally) -> Job:
        """The job, which says whether its client has got what is never trained. It has once it has answered to that."""
        known = job.client == SERVER or job.client in state.reached or job.client in tally.reached
        return replace(job, newcomer=not known)

    def _encoder(self, jobs: Sequence[Job], state: State) -> Callable[[Job], Message]:
        """How these jobs become bytes. A subnet that many are sent is encoded once, here and now."""
        untrained = self.wire.untrained_block(state.server.params) if any(job.newcomer for job in jobs) else b""
        several = {key for key, number in Counter(map(_sent, jobs)).items() if number > 1}
        blocks = {key: self._block(job) for key, job in {_sent(job): job for job in jobs}.items() if key in several}

        def encode(job: Job) -> Message:
            block = blocks[_sent(job)] if _sent(job) in blocks else self._block(job)
            return self.wire.encode_job(job, block, untrained if job.newcomer else b"")

        return encode

    def _block(self, job: Job) -> bytes:
        """The subnet of a job, or what of it the client has not got itself: a mask that it holds already is not sent."""
        if job.shared is not None:
            return self.wire.subnet_block(Subnet(apply(job.subnet.params, job.shared), job.shared))
        return self.wire.subnet_block(job.subnet, self.wire.mask_of(job.kept_mask))

    def _answers(self, job: Job, tally: Tally) -> bool:
        """Whether the client answers; the server always hears itself."""
        if self.fates is everybody:
            return True
        fate = Fate.ANSWERS if job.client == SERVER else self.fates(job.client, job.clock)
        if fate is not Fate.ANSWERS:
            tally.miss(job, fate)
        return fate is Fate.ANSWERS

    def _arrived(self, result: Any, job: Job, tally: Tally) -> Update | None:
        """What a worker came back with, counted; None if it is of no use, or did not come back."""
        if isinstance(result, Lost):
            if job.client == SERVER:
                raise result.error()
            _leave_out(job, result.reason)
            return None
        answer, kept, seconds = result
        tally.clock.add(seconds)
        tally.up_bytes += length(answer) * (job.client != SERVER)
        update = self._receive(answer, job)
        if update is None:
            return None
        if update.subnet and not self.upload.whole:
            update = replace(update, subnet=self.upload.unpack(job.subnet, update.subnet))
        return replace(update, kept=of_arrays(kept)) if kept else update

    def _receive(self, answer: Message, job: Job) -> Update | None:
        """The update if it can be read and passes its checks; else it is reported, and ends the run unless told otherwise."""
        try:
            update = self.wire.decode_update(answer, answered_under(job))
            problem = self._problem(update, job)
        except ValueError as error:
            problem = f"its update cannot be read: {error}"
        if problem is None:
            return update
        _leave_out(job, problem, stop=self.broken == "stop")
        return None

    def _problem(self, update: Update, job: Job) -> str | None:
        """Why an update must not be merged, or None. Buffers that nobody learns may be infinite, as causal masks are."""
        loss = update.metrics.get("loss", 0.0)
        tensors = [update.control]
        tensors += [_of(update.subnet.params, self.learnt)] if update.subnet else []
        if not math.isfinite(loss) or not all(finite(tensor) for params in tensors for tensor in params.values()):
            return f"the training has diverged (loss {loss:.3g}; not all numbers are finite). {DIVERGED}"
        if update.evidence and (problem := unmeasured(update.evidence)):
            return problem
        grows = job.event is not None and (job.event.swap > 0 or self.feedback)
        return None if update.subnet is None else _stray(update.subnet, job.subnet.mask, grows)


def _leave_out(job: Job, problem: str, stop: bool = False) -> None:
    """Say whose answer is left out, or end the run for it."""
    report = f"client {job.client} in round {job.round}: {problem}"
    if stop:
        raise RunError(f"{report}; to go on without such clients: federated.broken=drop")
    log.warning("%s; left out of the round", report)


def _of(params: Params, names: tuple[str, ...] | None) -> Params:
    """Those of the tensors that have one of these names; all of them if it is None."""
    return params if names is None else {name: params[name] for name in names if name in params}


def _stray(subnet: Subnet, sent: Mask, grows: bool) -> str | None:
    """Whether an update lives outside the mask that its client was sent (unless it was told to grow), or outside its own."""
    for name, alive in subnet.mask.items():
        if alive is sent[name]:  # the mask did not travel: the receiver's own was used
            continue
        if not grows and bool((alive & ~sent[name]).any()):
            return f"its mask has entries in {name} that are dead in the mask it was sent"
        if bool(subnet.params[name][~alive].any()):
            return f"it has weights in {name} where its mask is dead"
    return None
