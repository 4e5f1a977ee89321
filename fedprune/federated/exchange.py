"""Jobs and updates between a server and its clients: encoded, sent to the executor, decoded, checked and counted.

Evaluations are tasks of their own (evaluate.py), and their bytes are not counted. Messages between neighbours are made and
counted in decentralised.py.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch

from fedprune.errors import RunError, printable
from fedprune.execution import Executor, certain
from fedprune.execution.pool import Lost
from fedprune.execution.worker import Task
from fedprune.federated.availability import Fate, Fates, everybody
from fedprune.federated.client.round import Answer
from fedprune.federated.client.state_arrays import KeptArrays, as_arrays, of_arrays
from fedprune.federated.client.upload import Upload, everything
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.update_check import UpdateCheck
from fedprune.local.outcomes import Outcomes
from fedprune.pruning.mask import apply, pack
from fedprune.types import SERVER, ClientState, Job, Mask, Params, State, Subnet, Update
from fedprune.wire.frame import Message, length
from fedprune.wire.message import Wire, answered_under

log = logging.getLogger(__name__)


class JobTasks(Sequence[Task]):
    """The tasks of these jobs: calls of a method of ClientRound in a worker.

    Each is made when it is begun: while other clients train, and without all of them in memory.

    By position, of those that are made: bytes, the length of the message, and seconds, the time that it took to make it.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        encode: Callable[[Job], Message],
        kept_by: Callable[[int], KeptArrays],
        method: str = "run",
    ):
        self.jobs, self._encode, self._kept_by, self._method = jobs, encode, kept_by, method
        self.bytes, self.seconds = dict[int, int](), dict[int, float]()

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, position):  # type: ignore[no-untyped-def]  # a slice, which nobody takes, would be a sequence
        job, started = self.jobs[position], time.perf_counter()
        message = self._encode(job)
        self.bytes[position], self.seconds[position] = length(message), time.perf_counter() - started
        return self._method, (message, self._kept_by(job.client), job.kept_mask)


def _block_key(job: Job) -> tuple[int, bytes, int]:
    """Return a key: jobs of equal keys share one encoded subnet."""
    return id(job.subnet), job.kept_mask, id(job.common)


@dataclass(frozen=True)
class Exchange:
    """The server's end of the wire.

    examples: the number of training examples of each client. private: names of the tensors that clients keep. broken: `stop`
    ends the run at an update that fails its checks, `drop` leaves it out of the round. An update that is lost with its worker
    is left out in any case, for the client may do better in its next round; if all are lost, `stop` ends the run. fates:
    (client, clock) -> whether it answers, is late or silent. control: (state) -> the control that travels beside the network to
    clients that train (None: nothing). upload: the part of the trained network that comes back. check: of updates, before they
    are merged.
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
    check: UpdateCheck = field(default_factory=UpdateCheck)

    def train(self, jobs: Sequence[Job], state: State, tally: Tally) -> Iterator[tuple[Job, Update]]:
        """Yield what clients send back after training what these jobs give them, in the order of the jobs."""
        return self._run(self._with_control(jobs, state), state, tally)

    def tuned(self, jobs: Sequence[Job], state: State) -> Iterator[Outcomes]:
        """Yield what clients measure on their own test parts after training what these jobs give them, in the jobs' order.

        It is an evaluation: nobody is missing from it, nothing comes back, and no byte is counted.
        """
        jobs = self._with_control(jobs, state)
        tasks = JobTasks(jobs, self._encoder(jobs, state), partial(self._kept_arrays, state), method="tuned")
        return certain(self.executor.map(tasks, [self.examples[job.client] for job in jobs]))

    def _with_control(self, jobs: Sequence[Job], state: State) -> Sequence[Job]:
        """Return the jobs with the control that travels to clients that train."""
        if self.control is None:
            return jobs
        control = self.control(state)
        return [replace(job, control=control) for job in jobs]

    def measure(
        self,
        state: State,
        subnet: Subnet,
        clients: Sequence[int],
        evidence: tuple[str, ...],
        about: str,
        tally: Tally,
        surviving: Mask | None = None,
        known: bool = False,
    ) -> Iterator[Update]:
        """Yield what these clients measured at `subnet`, in their order. surviving: the part of the mask that a removal would
        leave, if the evidence is about one. known: whether the clients have the mask and its tensors already, as the state says
        that they keep; then only the other tensors are sent."""
        asked = Job(SERVER, state.round, state.clock, self.seed, subnet, evidence, about, surviving)
        if known:
            nothing = {name: torch.zeros_like(alive) for name, alive in subnet.mask.items()}
            asked = replace(asked, common=nothing, kept_mask=pack(subnet.mask))
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
            encode, answering = self._encoder(jobs, state), [self._answers(job, tally) for job in jobs]
            # Jobs that nobody answers were sent all the same.
            tally.down_bytes += sum(length(encode(job)) for job, answers in zip(jobs, answering, strict=True) if not answers)
            tasks = JobTasks([job for job, answers in zip(jobs, answering, strict=True) if answers], encode, kept)
            sizes = [0 if job.client == SERVER else self.examples[job.client] for job in tasks.jobs]
        lost: list[str] = []
        results = tally.clock.waiting(self.executor.map(tasks, sizes))
        for position, (job, result) in enumerate(zip(tasks.jobs, results, strict=True)):
            lost += [result.reason] if isinstance(result, Lost) else []
            tally.clock.add({"broadcast": tasks.seconds[position]})
            tally.down_bytes += tasks.bytes[position] * (job.client != SERVER)  # what the server measures crosses no wire
            with tally.clock.phase("decode"):
                update = self._arrived(result, job, tally)
            if update is None:
                tally.dropped.append(job.client)
            else:
                tally.add(update)
                if job.newcomer:
                    tally.reached.add(job.client)
                yield job, update
        if lost and len(lost) == len(jobs) and self.broken == "stop":
            raise RunError(f"nobody brought an answer: {lost[-1]}; to go on all the same: federated.broken=drop")

    def _welcomed(self, job: Job, state: State, tally: Tally) -> Job:
        """Return the job for a newcomer if its client has not answered to one with the tensors that nobody trains."""
        reached = job.client == SERVER or job.client in state.reached or job.client in tally.reached
        return replace(job, newcomer=not reached)

    def _encoder(self, jobs: Sequence[Job], state: State) -> Callable[[Job], Message]:
        """Return how these jobs become bytes. A subnet that several are sent is encoded once, here and now."""
        untrained = self.wire.untrained_block(state.server.params) if any(job.newcomer for job in jobs) else b""
        several = {key for key, number in Counter(map(_block_key, jobs)).items() if number > 1}
        blocks = {key: self._block(job) for key, job in {_block_key(job): job for job in jobs}.items() if key in several}

        def encode(job: Job) -> Message:
            block = blocks[_block_key(job)] if _block_key(job) in blocks else self._block(job)
            return self.wire.encode_job(job, block, untrained if job.newcomer else b"")

        return encode

    def _block(self, job: Job) -> bytes:
        """Encode the subnet of a job, or its common entries. A mask that the client keeps already is not sent."""
        if job.common is not None:
            return self.wire.subnet_block(Subnet(apply(job.subnet.params, job.common), job.common))
        return self.wire.subnet_block(job.subnet, self.wire.mask_of(job.kept_mask))

    def _answers(self, job: Job, tally: Tally) -> bool:
        """Return whether the client answers; the server always does."""
        if self.fates is everybody:
            return True
        fate = Fate.ANSWERS if job.client == SERVER else self.fates(job.client, job.clock)
        if fate is not Fate.ANSWERS:
            tally.miss(job, late=fate is Fate.LATE)
        return fate is Fate.ANSWERS

    def _arrived(self, result: object, job: Job, tally: Tally) -> Update | None:
        """Count what a worker came back with. Return the update, or None if it is of no use, or did not come back."""
        if isinstance(result, Lost):
            if job.client == SERVER:
                raise result.error()
            _leave_out(job, result.reason)
            return None
        answer, kept, seconds = cast(Answer, result)
        tally.clock.add(seconds)
        tally.up_bytes += length(answer) * (job.client != SERVER)
        update = self.received(answer, job)
        if update is None:
            return None
        if update.subnet and not self.upload.whole:
            update = replace(update, subnet=self.upload.unpack(job.subnet, update.subnet))
        return replace(update, kept=of_arrays(kept)) if kept else update

    def received(self, answer: Message, job: Job) -> Update | None:
        """Return the update if it can be read and passes its checks; otherwise report it, or end the run."""
        try:
            update = self.wire.decode_update(answer, answered_under(job))
            problem = self.check(update, job)
        except ValueError as error:
            problem = f"its update cannot be read: {error}"
        if problem is None:
            return update
        _leave_out(job, problem, stop=self.broken == "stop")
        return None


def _leave_out(job: Job, problem: str, stop: bool = False) -> None:
    """Log that a client's answer is left out, or end the run for it."""
    report = f"client {job.client} in round {job.round}: {problem}"
    if stop:
        raise RunError(f"{report}; to go on without such clients: federated.broken=drop")
    log.warning("%s; left out of the round", printable(report))
