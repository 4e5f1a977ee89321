"""Where clients run. An executor is map-shaped: tasks in, results out, in the order of the tasks. Results do not depend on
which.

A task is (method of ClientRound, its arguments): bytes and numpy arrays only. Modules never travel: each worker builds its own
`ClientRound` once, because a pickled module shares its memory with every other worker.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch

from fedprune.errors import ConfigError, RunError
from fedprune.federated.client import ClientRound

Task = tuple[str, tuple]
Factory = Callable[[], ClientRound]


class Executor(Protocol):
    """Runs tasks on clients."""

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
        """The results in the order of the tasks. `sizes` tells which tasks are long, so that they start first."""

    def close(self, now: bool = False) -> None:
        """Let go of the workers; `now`: without waiting for what they are doing."""


class Serial:
    """One client after the other, in this process."""

    def __init__(self, factory: Factory):
        torch.set_num_threads(1)  # as in a worker: the number of threads changes the order of sums, and so the last bit
        self._client_round = factory()

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
        """In the order of the tasks; each is done when its result is asked for."""
        return (getattr(self._client_round, method)(*arguments) for method, arguments in tasks)

    def close(self, now: bool = False) -> None:
        pass


class Processes:
    """One single-threaded worker per core, each training whole clients, the largest first.

    Workers are forked, so that the data set is shared and not copied; where fork is not available they are spawned (then
    the data set's tensors lie in shared memory). workers: how many (None: one per core that this process may use).
    """

    def __init__(self, factory: Factory, workers: int | None = None, start: str | None = None):
        methods = multiprocessing.get_all_start_methods()
        if workers is not None and workers < 1:
            raise ConfigError([f"executor.workers={workers} must be at least 1; null means one per core"])
        if start is not None and start not in methods:
            raise ConfigError([f"executor.start={start} is not to be had here: choose one of {', '.join(methods)}, or null"])
        torch.set_num_threads(1)
        method = start or ("fork" if sys.platform == "linux" and "fork" in methods else "spawn")
        self._workers = workers or available_cores()
        self._own: set[BaseProcess] = set()
        context = multiprocessing.get_context(method)
        self._pool = ProcessPoolExecutor(self._workers, context, initializer=_begin, initargs=(factory,))

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
        """Results as they are asked for; RunError if a worker died."""
        try:
            futures = self._submit(tasks, sizes)
            for place in range(len(tasks)):
                yield futures.pop(place).result()
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process died (killed, or out of memory). What was saved is intact: the same command resumes; "
                f"if memory is short, use fewer workers (executor.workers, now {self._workers}) or executor=serial"
            ) from error

    def _submit(self, tasks: Sequence[Task], sizes: Sequence[int]) -> dict[int, Future]:
        """The largest first; and note which processes the pool starts for it, since it does not say."""
        others = set(multiprocessing.active_children()) - self._own
        largest_first = sorted(range(len(tasks)), key=lambda place: -sizes[place])
        futures = {place: self._pool.submit(_perform, *tasks[place]) for place in largest_first}
        self._own |= set(multiprocessing.active_children()) - others
        return futures

    def close(self, now: bool = False) -> None:
        if now:
            for worker in self._own:
                worker.terminate()
        self._pool.shutdown(wait=not now, cancel_futures=True)


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_client_round: ClientRound | None = None


def _begin(factory: Factory) -> None:
    global _client_round
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle,
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and what it made of SIGTERM is not for its workers
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _client_round = factory()


def _end_with(parent: int) -> None:
    """A worker must not outlive the process that it works for, which may have been killed without a chance to say so."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _perform(method: str, arguments: tuple) -> Any:
    return getattr(_client_round, method)(*arguments)
