"""Several clients at a time, each with an actor of Ray's, on one machine or on a cluster of them. An executor: see execution.

Tasks and their outcomes are pickled here and travel as bytes: arrays that Ray hands over by itself cannot be written to. What
workers are made from lies in Ray's object store once for each machine, where its actors map it (out_of_band.py).
"""

from __future__ import annotations

import functools
import logging
import pickle
import textwrap
import threading
from collections.abc import Callable
from contextlib import ExitStack
from queue import Empty
from typing import Any

import numpy as np
import torch

from fedprune import __version__
from fedprune.errors import RunError
from fedprune.execution.out_of_band import LARGE, unwrap, wrap
from fedprune.execution.pool import Pool, at_least_one
from fedprune.execution.ray_connect import connect, ray
from fedprune.execution.shared_memory import same
from fedprune.execution.worker import Died, Factory, attempt, perform_and_send, result
from fedprune.wire.frame import array

log = logging.getLogger(__name__)

PATIENCE = 30
"""Seconds after which the log says that no worker could begin yet."""

KEPT = 4
"""The number of arrays that stay in the object store after the tasks that had them."""

VERSIONS = {"fedprune": __version__, "torch": torch.__version__}
"""The versions that have to be the same on all machines, or results would differ."""

ALIKE = "Install fedprune and torch in the same versions on each of its machines"


class Ray(Pool):
    """One single-threaded actor per CPU, each training whole clients, the largest first.

    workers: how many (None: one per CPU of the cluster). address: None for a cluster of its own on this machine, `auto` for the
    one that this machine belongs to, else host:port, or ray://host:port from outside. If this process is connected to a cluster
    already, that one is used, and left as it is. Raises ConfigError and RunError.
    """

    one_cpu_each = True

    def __init__(self, factory: Factory, workers: int | None = None, address: str | None = None):
        at_least_one(workers)
        torch.set_num_threads(1)
        parcel = wrap(factory)
        with ExitStack() as undo:
            if not ray.is_initialized():
                connect(address, workers)
                undo.callback(ray.shutdown)
            number = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            super().__init__(number, functools.partial(Actor, ray.put(parcel), Shelf()))
            undo.callback(super().close, now=True)
            self._see_one()
            self._undo = undo.pop_all()

    def _see_one(self) -> None:
        """Raise RunError if workers cannot begin. If only no CPU is free, they wait for one."""
        try:
            worker = self._idle.get(timeout=PATIENCE)
        except Empty:
            log.warning("no CPU of the Ray cluster is free yet: waiting for one")
            return
        self._idle.put(worker)
        try:
            worker.perform("__sizeof__", ())  # which every object has
        except Died as death:
            raise RunError(f"no worker can begin on the Ray cluster: {death}. {ALIKE}") from death

    def close(self, now: bool = False) -> None:
        super().close(now)
        self._undo.close()


class Shelf:
    """Ray's object store, and in it what many tasks have in common: it crosses to each machine once."""

    def __init__(self) -> None:
        # The arrays are held, so that nothing else can come to lie at their addresses.
        self._lying: list[tuple[np.ndarray, ray.ObjectRef[np.ndarray]]] = []
        self._lock = threading.Lock()

    def put(self, new: np.ndarray) -> ray.ObjectRef[np.ndarray]:
        """Return a reference to an array that nobody changes any more."""
        with self._lock:
            there = [reference for lying, reference in self._lying if same(lying, new)]
            reference = there[0] if there else ray.put(new)
            self._lying = [(new, reference), *(pair for pair in self._lying if pair[1] is not reference)][:KEPT]
            return reference


def _taken(memory: memoryview, common: list[np.ndarray]) -> bool:
    """Return whether memory goes through the object store; it is then appended to `common`. Nobody may write to it there."""
    fits = memory.readonly and memory.nbytes >= LARGE
    if fits:
        common.append(array(memory))
    return fits


class Actor:
    """A worker in an actor, and this end of the connection to it. parcel: a reference to the wrapped factory."""

    def __init__(self, parcel: ray.ObjectRef[list[np.ndarray]], shelf: Shelf):
        self._actor, self._shelf = PERFORMER.remote(parcel, VERSIONS), shelf
        self._there = self._actor.there.remote()

    def perform(self, method: str, arguments: tuple[object, ...]) -> object:
        """Return the task's result. Raises the task's exceptions, and Died."""
        common: list[np.ndarray] = []
        message = pickle.dumps((method, arguments), 5, buffer_callback=lambda buffer: not _taken(buffer.raw(), common))
        try:
            answered = ray.get(self._actor.perform.remote(message, *map(self._shelf.put, common)))
        except ray.exceptions.RayTaskError:  # what it is asked for cannot be read there
            raise
        except ray.exceptions.RayError as gone:
            raise Died(_how(gone)) from gone
        return result(pickle.loads(answered))

    def when_there(self, call: Callable[[], None]) -> None:
        self._there.future().add_done_callback(lambda _: call())

    def kill(self) -> None:
        ray.kill(self._actor)

    def end(self) -> None:
        self.kill()


def _how(gone: Exception) -> str:
    """Return how an actor ended, for messages: Ray says it last, after much else."""
    return textwrap.shorten(str(gone).strip().splitlines()[-1].rpartition("Worker exit detail: ")[2], 200)


class Performer:
    """Performs tasks in the actor's process, with the object that the factory has made."""

    def __init__(self, parcel: list[np.ndarray], versions: dict[str, str]):
        torch.set_num_threads(1)
        self._made = attempt(_made, parcel, versions)

    def there(self) -> None:
        """Return once the actor is there."""

    def perform(self, message: bytes, *common: np.ndarray) -> bytes:
        """Return the pickled outcome of a pickled task. common: its arrays from the object store."""
        return perform_and_send(self._made, pickle.dumps, *pickle.loads(message, buffers=common))


PERFORMER: Any = ray.remote(num_cpus=1)(Performer)


def _made(parcel: list[np.ndarray], versions: dict[str, str]) -> object:
    if versions != VERSIONS:
        raise RunError(f"{VERSIONS} on a machine of the Ray cluster, {versions} here. {ALIKE}")
    return unwrap(parcel)()
