"""Several clients at a time, each in a process of its own. An executor: see executor.py."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import PriorityQueue, SimpleQueue
from typing import Any

import torch

from fedprune.errors import ConfigError, RunError
from fedprune.federated.worker import Died, Factory, Task, Worker

log = logging.getLogger(__name__)

TRIES = 3
"""How many workers may die of one task."""

AHEAD = 16
"""How many tasks per worker may be begun ahead of the one whose result is asked for next: their results wait in memory."""

GRACE = 0.5
"""Seconds until a worker that died is replaced."""


@dataclass(frozen=True)
class Lost:
    """What there is in the place of a result whose workers died, one after the other."""

    reason: str

    def error(self) -> RunError:
        """What to raise where it cannot be done without."""
        return RunError(f"{self.reason}. What was saved is intact: the same command resumes")


class Processes:
    """One single-threaded worker per core, each training whole clients, the largest first.

    Workers are forked, so that the data set is shared and not copied; where fork is not available they are spawned (then
    the data set's tensors lie in shared memory). A thread of this process waits for each; a worker that dies is replaced, and
    its task done again. workers: how many (None: one per core that this process may use).
    """

    def __init__(self, factory: Factory, workers: int | None = None, start: str | None = None):
        methods = multiprocessing.get_all_start_methods()
        if start is not None and start not in methods:
            raise ConfigError([f"executor.start={start} is not to be had here: choose one of {', '.join(methods)}, or null"])
        method = start or ("fork" if sys.platform == "linux" and "fork" in methods else "spawn")
        self._number = at_least_one(workers) or available_cores()
        torch.set_num_threads(1)
        self._new = functools.partial(Worker, multiprocessing.get_context(method), factory)
        self._workers, self._idle = set[Worker](), SimpleQueue[Worker]()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._threads = ThreadPoolExecutor(self._number)
        try:
            for _ in range(self._number):
                self._idle.put(self._begin())
        except BaseException:
            self.close(now=True)
            raise

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
        """Results as they are asked for, and not many per worker ahead of that."""
        waiting, results = PriorityQueue[tuple[int, int]](), {place: Future[Any]() for place in range(len(tasks))}

        def perform_largest() -> None:
            _, place = waiting.get()
            _fulfil(results[place], lambda: self._perform(*tasks[place]))

        def begin(start: int, stop: int) -> None:
            places = range(start, min(stop, len(tasks)))
            for place in places:
                waiting.put((-sizes[place], place))
            for _ in places:
                self._threads.submit(perform_largest)

        ahead = AHEAD * self._number
        begin(0, ahead)
        for place in range(len(tasks)):
            result = results[place].result()
            del results[place]
            begin(place + ahead, place + ahead + 1)
            yield result

    def _perform(self, method: str, arguments: tuple) -> Any:
        """A task's result, or Lost if too many workers die of it."""
        worker = self._idle.get()
        try:
            for left in reversed(range(TRIES)):
                try:
                    return worker.perform(method, arguments)
                except Died as death:
                    worker = self._begin(instead_of=worker)
                    log.warning("a worker process died (%s)%s", death, "; its task is done again" if left else "")
            return Lost(
                f"its worker process died, and so did those that tried again ({TRIES} in all; killed, or no memory). If memory "
                f"is short, use fewer workers (executor.workers, now {self._number}) or executor=serial"
            )
        finally:
            self._idle.put(worker)

    def _begin(self, instead_of: Worker | None = None) -> Worker:
        """Another worker, unless it is over: whoever ends all processes ends workers, too, and perhaps a moment earlier."""
        self._over.wait(GRACE if instead_of else 0)
        with self._lock:  # one at a time: a process that is forked meanwhile would hold the other's end of the pipe
            if self._over.is_set():
                raise RuntimeError("the executor is closed")
            worker = self._started()
            self._workers.add(worker)
        if instead_of:
            self._end(instead_of)
        return worker

    def _started(self) -> Worker:
        try:
            return self._new()
        except OSError as error:
            why = f"no worker process can be started ({error.strerror})"
            raise RunError(f"{why}: use fewer of them (executor.workers, now {self._number}), or executor=serial") from error

    def _end(self, worker: Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
        worker.end()

    def close(self, now: bool = False) -> None:
        if now:
            self._kill()
        self._threads.shutdown(cancel_futures=True)
        self._kill()
        for worker in list(self._workers):
            self._end(worker)

    def _kill(self) -> None:
        """End all workers: what they did is in the results, and nothing that they hold is worth a farewell."""
        self._over.set()
        with self._lock:
            for worker in self._workers:
                worker.kill()


def _fulfil(future: Future, call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_least_one(workers: int | None) -> int | None:
    """The number, checked. Raises ConfigError."""
    if workers is not None and workers < 1:
        raise ConfigError([f"executor.workers={workers} must be at least 1; null means one per core"])
    return workers
