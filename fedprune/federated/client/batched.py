"""The clients of a round as one batched model, where that gives the same; else one after the other. See execution.

A small network leaves most of a GPU idle; those of many clients side by side do not. What comes out is what Serial comes to, up
to the rounding of sums in another order (see local/train_vmapped.py); the same command comes to the same bits.
"""

from __future__ import annotations

import functools
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fedprune.capabilities import declares
from fedprune.compaction.train import silent
from fedprune.errors import ConfigError
from fedprune.execution import Serial
from fedprune.execution.failures import explained
from fedprune.execution.worker import Factory, Task
from fedprune.federated.client.batched_check import obstacle
from fedprune.federated.client.round import Begun, ClientRound, told
from fedprune.identity import AT_ONCE
from fedprune.local.train import Trained, holes
from fedprune.local.train_vmapped import Share, fit_together
from fedprune.phase_clock import Clock
from fedprune.types import Job, Update

log = logging.getLogger(__name__)

TRIED = 3  # examples on which it is tried whether the network can be batched


class Batched(Serial):
    """at_once: how many clients are trained at a time, at most (None: all of a round). Each takes the memory of a batch's
    activations and some six times that of the parameters.

    Networks are trained under their masks, whatever local.compact says. Why clients are trained one after the other, if they
    are, is logged once.
    """

    batches_on = ("cpu", "cuda", "mps", "xpu")

    def __init__(self, factory: Factory, at_once: int | None = AT_ONCE):
        if at_once is not None and at_once < 1:
            raise ConfigError([f"executor.at_once={at_once} must be at least 1; null means all clients of a round"])
        super().__init__(factory)
        self._at_once, self._told = at_once, set[str]()

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
        """In the order of the tasks; `at_once` of them are done when the first one's result is asked for."""
        number = self._at_once or max(len(tasks), 1)
        for start in range(0, len(tasks), number):
            some = [tasks[place] for place in range(start, min(start + number, len(tasks)))]
            alone = any(method != "run" for method, _ in some) or self._told_of(self._obstacle)
            yield from super().map(some, sizes) if alone else self._run(some)

    def _run(self, tasks: Sequence[Task]) -> Iterator[Any]:
        worker, clock = self._client_round, Clock()
        with clock.phase("decode"):
            jobs = [worker.received(*arguments) for _, arguments in tasks]
        with clock.phase("train"):
            trained = self._trained(jobs)
        for place, job in enumerate(jobs):
            with clock.phase("train"):
                update = self._finished(*trained.pop(place)) if place in trained else worker.perform(job)
            yield worker.answer(job, update, clock)
            clock = Clock()  # the time of all is the first one's, and then each has its own

    def _finished(self, begun: Begun, trained: Trained) -> Update:
        with explained(told(begun.job)):
            return self._client_round.finish(begun, trained)

    def _trained(self, jobs: Sequence[Job]) -> dict[int, tuple[Begun, Trained]]:
        """What can be trained together, by its place among the jobs: those that have one learning rate, if they are several."""
        worker, alike = self._client_round, defaultdict[tuple[int, bool], dict[int, Begun]](dict)
        for place, job in enumerate(jobs):
            if not job.measure and not self._told_of(self._apart(job)):
                with explained(told(job)):
                    begun = worker.begin(job)
                alike[job.clock, bool(holes(worker.module, begun.subnet.mask))][place] = begun
        trained: dict[int, tuple[Begun, Trained]] = {}
        for (clock, _), begun in alike.items():
            if len(begun) > 1:
                shares = [self._share(one) for one in begun.values()]
                with explained(", ".join(told(one.job) for one in begun.values())):
                    made = fit_together(worker.module, shares, worker.recipe, worker.recipe.lr_decay**clock)
                trained |= dict(zip(begun, zip(begun.values(), made, strict=True), strict=True))
        return trained

    def _share(self, begun: Begun) -> Share:
        worker, job = self._client_round, begun.job
        return Share(begun.subnet, worker.shuffled(job), worker.recipe.batches(len(worker.clients.train[job.client])))

    def _apart(self, job: Job) -> str | None:
        """Why a job is trained by itself, or None."""
        worker = self._client_round
        rules = {
            "local.penalty or local.dropout changes their steps": silent(one.at(job.clock) for one in worker.regularisers),
            "federated.control=scaffold corrects their gradients": not job.control,
            "an event asks for the network after the first epoch": not worker.looks_back(job),
            "one has no training examples": len(worker.clients.train[job.client]) > 0,
        }
        return next((why for why, fine in rules.items() if not fine), None)

    @functools.cached_property
    def _obstacle(self) -> str | None:
        """Why all jobs are trained by themselves, or None."""
        worker = self._client_round
        if type(worker) is not ClientRound:
            return f"{type(worker).__name__} trains in a way of its own"
        if worker.accumulates:
            return "an event asks for the gradients of the round"
        some = torch.arange(min(TRIED, len(worker.dataset.x)))
        return obstacle(worker.module, worker.recipe, next(worker.batches.of(some, TRIED)))

    def _told_of(self, why: str | None) -> bool:
        """Whether there is a reason. It is logged the first time."""
        if why is not None and why not in self._told:
            self._told.add(why)
            log.warning("clients are trained one after the other: %s", why)
        return why is not None


@declares(batches_on=("cuda",), on_gpu_only=True)
def cuda(factory: Factory, at_once: int | None = AT_ONCE) -> Batched:
    """Batched on a GPU, and nowhere else: experiment/checks/values.py refuses it where there is none."""
    return Batched(factory, at_once)
