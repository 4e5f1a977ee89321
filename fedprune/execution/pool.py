"""A pool of workers, each performing one task at a time; workers that die are replaced.

The executors made of this say what a worker is: processes.py, ray.py.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import PriorityQueue, SimpleQueue

from fedprune.errors import ConfigError, RunError
from fedprune.execution.worker import Died, Task, Worker

log = logging.getLogger(__name__)

TRIES = 3
"""The number of workers that may die of one task."""

AHEAD = 16
"""The number of tasks per worker that may begin ahead of the one whose result is asked for next: results wait in memory."""

GRACE = 0.5
"""Seconds until a worker that died is replaced."""


@dataclass(frozen=True)
class Lost:
    """Stands for a result whose workers died, one after the other."""

    reason: str

    def error(self) -> RunError:
        """Return the error to raise where the result is needed."""
        return RunError(f"{self.reason}. What was saved is intact: the same command resumes")


class Pool:
    """A number of workers, each performing whole tasks, the largest first.

    One thread per worker makes its tasks and waits for it. A worker that dies is replaced, and its task done again. new: starts
    a worker. A worker that is not there yet, as one that waits for a free CPU, gets no task.
    """

    def __init__(self, number: int, new: Callable[[], Worker]):
        self._number, self._new = number, new
        self._workers, self._idle = set[Worker](), SimpleQueue[Worker]()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._threads = ThreadPoolExecutor(number)
        try:
            for _ in range(number):
                self._enlist(self._begin())
        except BaseException:
            Pool.close(self, now=True)
            raise

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[object]:
        """Yield results in the order of the tasks, beginning at most AHEAD tasks per worker early."""
        waiting, results = PriorityQueue[tuple[int, int]](), {place: Future[object]() for place in range(len(tasks))}

        def perform_largest() -> None:
            _, place = waiting.get()
            _fulfil(results[place], lambda: self._perform(*self._made(tasks, place)))

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

    def _made(self, tasks: Sequence[Task], place: int) -> Task:
        """Return a task. No worker starts meanwhile: a lock that is held while a process forks stays locked in the other."""
        with self._lock:
            return tasks[place]

    def _perform(self, method: str, arguments: tuple[object, ...]) -> object:
        """Return a task's result, or Lost if too many workers die of it."""
        for left in reversed(range(TRIES)):
            worker = self._idle.get()
            try:
                return worker.perform(method, arguments)
            except Died as death:
                worker = self._begin(instead_of=worker)
                log.warning("a worker process died (%s)%s", death, "; its task is done again" if left else "")
            finally:
                self._enlist(worker)
        return Lost(
            f"its worker process died, and so did those that tried again ({TRIES} in all; killed, or no memory). If memory "
            f"is short, use fewer workers (executor.workers, now {self._number}) or executor=serial"
        )

    def _enlist(self, worker: Worker) -> None:
        """Let a worker take tasks, once it is there."""
        worker.when_there(functools.partial(self._idle.put, worker))

    def _begin(self, instead_of: Worker | None = None) -> Worker:
        """Start a worker, unless the pool is closed: whoever ends all processes may end workers a moment earlier."""
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
        """End all workers; `now`: without waiting for what they are doing."""
        if now:
            self._kill()
        self._threads.shutdown(cancel_futures=True)
        self._kill()
        for worker in list(self._workers):
            self._end(worker)

    def _kill(self) -> None:
        """End all workers at once: their results have arrived, and they hold nothing else."""
        self._over.set()
        with self._lock:
            for worker in self._workers:
                worker.kill()


def _fulfil(future: Future[object], call: Callable[[], object]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


def at_least_one(workers: int | None) -> int | None:
    """Return the number. Raises ConfigError if it is less than 1."""
    if workers is not None and workers < 1:
        raise ConfigError([f"executor.workers={workers} must be at least 1; null means one per core"])
    return workers
