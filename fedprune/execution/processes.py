"""Several clients at a time, each in a process of its own. An executor: see execution.

A worker ends with the process that it works for.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import mmap
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

import torch

from fedprune.errors import ConfigError
from fedprune.execution.pool import Pool, at_least_one
from fedprune.execution.shared_memory import Receiver, Sender, room, to_itself
from fedprune.execution.worker import Died, Factory, attempt, perform_and_send, result
from fedprune.parent_process import end_with

STOPS = (signal.SIGINT, signal.SIGTERM)
ENDS = {errno.ENOMEM: "out of memory"}
"""The meaning of a worker's exit code."""


class Processes(Pool):
    """One single-threaded worker per core, each training whole clients, the largest first.

    Workers are forked, so that the data set is shared and not copied; where fork is not available they are spawned (then
    the data set's tensors lie in shared memory). workers: how many (None: one per core that this process may use). clients: how
    many there are (None: not known), each of which keeps one worker busy at most.
    """

    one_cpu_each = True

    def __init__(self, factory: Factory, workers: int | None = None, start: str | None = None, clients: int | None = None):
        methods = multiprocessing.get_all_start_methods()
        if start is not None and start not in methods:
            raise ConfigError([f"executor.start={start} is not to be had here: choose one of {', '.join(methods)}, or null"])
        method = start or ("fork" if sys.platform == "linux" and "fork" in methods else "spawn")
        number = at_least_one(workers) or available_cores()
        number = number if clients is None else min(number, clients)
        torch.set_num_threads(1)
        super().__init__(number, functools.partial(Process, multiprocessing.get_context(method), factory))


class Process:
    """A worker in a process of its own, and this end of the connection to it."""

    def __init__(self, context: BaseContext, factory: Factory):
        self._pipe, theirs = context.Pipe()
        rooms = (room(), room()) if context.get_start_method() == "fork" else (None, None)  # others have none of its memory
        self._sender, self._receiver = Sender(self._pipe, rooms[0]), Receiver(self._pipe, rooms[1], bytearray)
        arguments = (theirs, rooms, factory, os.getpid())
        process = context.Process  # type: ignore[attr-defined]  # every context has it, and only their base does not say so
        self._process = process(target=_work, args=arguments, daemon=True)
        with _held_back():
            self._process.start()
        for each in rooms:
            to_itself(each)
        theirs.close()  # or its death could not be seen from here

    def perform(self, method: str, arguments: tuple[object, ...]) -> object:
        """Return the task's result. Raises the task's exceptions, and Died."""
        try:
            self._sender.send((method, arguments))
            outcome = self._receiver.receive()
        except (EOFError, OSError) as gone:
            raise Died(self._how()) from gone
        return result(outcome)

    def when_there(self, call: Callable[[], None]) -> None:
        call()  # the pipe is

    def _how(self) -> str:
        """Return how the process ended, for messages."""
        self._process.join(1)
        code = self._process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else ENDS.get(code, f"exit code {code}")

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self.kill()
        self._process.join()
        self._pipe.close()


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Hold back Ctrl-C: a process that has just been forked would take it for its own."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- in the process of its own ---------------------------------------------------------------------------------------------


def _work(pipe: Connection, rooms: tuple[mmap.mmap | None, ...], factory: Factory, parent: int) -> None:
    """Perform tasks until the connection ends."""
    _settle(parent)
    made, receiver = attempt(factory), Receiver(pipe, rooms[0], memoryview)
    with contextlib.suppress(EOFError, OSError):  # then there is nobody left to work for
        while True:
            # One for each answer: what came with another task lay at the same address, and is not the same. What it sent is let
            # go of when the next answer is there: memory that is given back in between has to be had anew, page by page.
            sender = Sender(pipe, rooms[1])
            perform_and_send(made, sender.send, *receiver.receive())
            _held = sender  # holds, and is not read


def _settle(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle,
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and what it made of SIGTERM is not for its workers
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    torch.set_num_threads(1)
    gc.freeze()  # the garbage of the process that it was forked from is not its own: what Ray leaves crashes who collects it
    end_with(parent)
