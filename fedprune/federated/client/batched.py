"""The clients of a round as one batched model, where that gives the same; else one after the other. See execution.

A small network leaves most of a GPU idle; those of many clients side by side do not. Results equal those of Serial up to the
rounding of sums in another order (see local/train_vmapped.py); the same command gives the same bits.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from fedprune.capabilities import declares
from fedprune.compaction.train import silent
from fedprune.errors import ConfigError, in_user_code
from fedprune.execution import Serial
from fedprune.execution.worker import Factory, Task
from fedprune.federated.client.batched_check import obstacle
from fedprune.federated.client.round import Answer, Begun, ClientRound, told
from fedprune.identity import AT_ONCE
from fedprune.local.outcomes import Outcomes
from fedprune.local.train import Trained, holes
from fedprune.local.train_vmapped import Share, fit_together
from fedprune.phase_clock import Clock
from fedprune.types import Job, Update

log = logging.getLogger(__name__)

TRIED = 3
"""Examples on which it is tried whether the network can be batched."""

Together = dict[int, tuple[Begun, Trained]]
"""The jobs that were trained as one model, by their positions among the tasks."""


class Batched(Serial):
    """Trains several clients at a time as one model.

    at_once: how many clients at most (None: all of a round). Each takes the memory of a batch's activations and some six times
    that of the parameters. Networks are trained under their masks, whatever local.compact says. Why clients are trained one
    after the other, if they are, is logged once.
    """

    batches_on = ("cpu", "cuda", "mps", "xpu")

    def __init__(self, factory: Factory, at_once: int | None = AT_ONCE):
        if at_once is not None and at_once < 1:
            raise ConfigError([f"executor.at_once={at_once} must be at least 1; null means all clients of a round"])
        super().__init__(factory)
        self._at_once, self._warned = at_once, set[str]()

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[object]:
        """Yield results in the order of the tasks; `at_once` of them are done when the first one's result is asked for."""
        number = self._at_once or max(len(tasks), 1)
        for start in range(0, len(tasks), number):
            chunk = [tasks[position] for position in range(start, min(start + number, len(tasks)))]
            together = {"run": self._run, "tuned": self._tuned}.get(chunk[0][0])
            alone = together is None or self._warns(self._obstacle)
            yield from super().map(chunk, sizes) if together is None or alone else together(chunk)

    def _run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        worker, clock = self._client_round, Clock()
        with clock.phase("decode"):
            jobs = [worker.received(*arguments) for _, arguments in tasks]
        with clock.phase("train"):
            together = self._together(jobs)
        for position, job in enumerate(jobs):
            with clock.phase("train"):
                update = self._finished(*together.pop(position)) if position in together else worker.perform(job)
            yield worker.encoded(job, update, clock)
            clock = Clock()  # the time of all is the first one's, and then each has its own

    def _tuned(self, tasks: Sequence[Task]) -> Iterator[Outcomes]:
        worker = self._client_round
        jobs = [worker.received(*arguments) for _, arguments in tasks]
        together = self._together(jobs)
        for position, job in enumerate(jobs):
            with in_user_code(told(job)):
                yield worker.after_training(*together.pop(position)) if position in together else worker.tune(job)

    def _finished(self, begun: Begun, trained: Trained) -> Update:
        worker: ClientRound = self._client_round
        with in_user_code(told(begun.job)):
            return worker.finish(begun, trained)

    def _together(self, jobs: Sequence[Job]) -> Together:
        """Train the jobs that can be trained as one model: those that have one learning rate, if they are several."""
        context, groups = self._client_round.context, defaultdict[tuple[int, bool], dict[int, Begun]](dict)
        for position, job in enumerate(jobs):
            if not job.measure and not self._warns(self._reason(job)):
                with in_user_code(told(job)):
                    begun = self._client_round.begin(job)
                groups[job.clock, bool(holes(context.module, begun.subnet.mask))][position] = begun
        together: Together = {}
        for (clock, _), group in groups.items():
            if len(group) > 1:
                together |= self._as_one(group, clock)
        return together

    def _as_one(self, group: dict[int, Begun], clock: int) -> Together:
        context, shares = self._client_round.context, [self._share(begun) for begun in group.values()]
        with in_user_code(", ".join(told(begun.job) for begun in group.values())):
            trained = fit_together(context.module, shares, context.recipe, context.recipe.lr_decay**clock)
        return dict(zip(group, zip(group.values(), trained, strict=True), strict=True))

    def _share(self, begun: Begun) -> Share:
        worker, examples = self._client_round, len(self._client_round.context.clients.train[begun.job.client])
        return Share(begun.subnet, worker.training.shuffled(begun.job), worker.context.recipe.batches(examples))

    def _reason(self, job: Job) -> str | None:
        """Return why a job is trained by itself, or None."""
        context, training = self._client_round.context, self._client_round.training
        rules = {
            "local.penalty or local.dropout changes their steps": silent(one.at(job.clock) for one in context.regularisers),
            "federated.control=scaffold corrects their gradients": not job.control,
            "an event asks for the network after the first epoch": not (training.looks_back and job.event),
            "one has no training examples": len(context.clients.train[job.client]) > 0,
        }
        return next((why for why, fine in rules.items() if not fine), None)

    @functools.cached_property
    def _obstacle(self) -> str | None:
        """Return why all jobs are trained by themselves, or None."""
        worker = self._client_round
        if type(worker) is not ClientRound:
            return f"{type(worker).__name__} trains in a way of its own"
        if worker.accumulates:
            return "an event asks for the gradients of the round"
        context = worker.context
        examples = torch.arange(min(TRIED, len(context.dataset.x)))
        return obstacle(context.module, context.recipe, next(context.batches.of(examples, TRIED)))

    def _warns(self, why: str | None) -> bool:
        """Return whether there is a reason; it is logged the first time."""
        if why is not None and why not in self._warned:
            self._warned.add(why)
            log.warning("clients are trained one after the other: %s", why)
        return why is not None


@declares(batches_on=("cuda",), on_gpu_only=True)
def cuda(factory: Factory, at_once: int | None = AT_ONCE) -> Batched:
    """Batched on a GPU, and nowhere else: experiment/checks/values.py refuses it where there is none."""
    return Batched(factory, at_once)
