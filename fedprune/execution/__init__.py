"""Executors run clients. An executor is map-shaped: tasks in, results out, in the order of the tasks. Results do not depend on
the executor (those of federated/client/batched.py differ by rounding).

A task is (a method of the client, its arguments): bytes and numpy arrays only. Modules never travel: each worker builds its own
client once, because a pickled module shares its memory with every other worker.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from fedprune.capabilities import declares
from fedprune.execution.pool import Lost, at_least_one
from fedprune.execution.processes import Processes, available_cores
from fedprune.execution.worker import Factory, Task


class Executor(Protocol):
    """Runs tasks on clients."""

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[object]:
        """Yield results in the order of the tasks; Lost in the place of one that cannot be had. sizes: of the tasks, so that
        long ones start first."""

    def close(self, now: bool = False) -> None:
        """End the workers. now: without waiting for their tasks."""


class Choice:
    """The attributes that an option may declare: what is called with a factory of clients, and gives an executor.

    batches_on: the kinds of device (cpu, cuda) on which it trains several clients as one model. Its sums are then rounded in
    another way than Serial's, which makes it another run (see identity.py). one_cpu_each: its workers have one CPU each, and no
    other device. on_gpu_only: it is refused on a CPU.
    """

    batches_on: tuple[str, ...] = ()
    one_cpu_each: bool = False
    on_gpu_only: bool = False


class Serial:
    """One client after the other, in this process."""

    def __init__(self, factory: Factory):
        torch.set_num_threads(1)  # as in a worker: the number of threads changes the order of sums, and so the last bit
        self._client_round = factory()

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[object]:
        """Yield results in the order of the tasks; each task is done when its result is asked for."""
        return (getattr(self._client_round, method)(*arguments) for method, arguments in tasks)

    def close(self, now: bool = False) -> None:
        pass


@declares(batches_on=("cuda",), one_cpu_each=True)  # on a GPU Experiment.executor takes Batched for it
def auto(factory: Factory, cohort: int, workers: int | None = None, clients: int | None = None) -> Executor:
    """Processes where they pay, else Serial: they do with several cores and several clients in a round.

    cohort: how many clients train in a round. workers: how many processes (None: one per core, or one alone within a process
    that is itself one of several, as when hydra/launcher=joblib runs cells of a sweep side by side: they have the other cores).
    clients: how many there are.
    """
    beside_others = multiprocessing.parent_process() is not None
    number = at_least_one(workers) or (1 if beside_others else available_cores())
    return Processes(factory, number, clients=clients) if min(number, cohort) > 1 else Serial(factory)


@contextmanager
def employed(executor: Executor) -> Iterator[Executor]:
    """An executor for as long as it is needed. Then no worker is left; and if it ends badly, as by Ctrl-C, at once."""
    try:
        yield executor
    except BaseException:
        executor.close(now=True)
        raise
    executor.close()


def certain(results: Iterable[object]) -> Iterator[Any]:
    """Yield results all of which are needed. Raises RunError at one that is lost."""
    for result in results:
        if isinstance(result, Lost):
            raise result.error()
        yield result
