"""A worker, wherever it is: a process that performs tasks one after the other.

An exception in a task is raised where the task was given out. A worker that is gone (killed, or out of memory) raises `Died`,
and another one may be given the same task.
"""

from __future__ import annotations

import errno
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from fedprune.errors import is_out_of_memory

Task = tuple[str, tuple[object, ...]]
"""A method of the object that the worker has made, and its arguments."""

Factory = Callable[[], Any]
"""Makes the object whose methods are the tasks: a federated.client.round.Client."""

T = TypeVar("T")

Outcome = tuple[object, Exception | None]
"""(result, None), or (None, the exception)."""


class Died(Exception):
    """A worker is gone, and its task with it."""


class Worker(Protocol):
    """One process, in which the factory is called once, and this end of the way to it."""

    def perform(self, method: str, arguments: tuple[object, ...]) -> object:
        """Return the task's result. Raises the task's exceptions, and Died."""

    def when_there(self, call: Callable[[], None]) -> None:
        """Call this once the worker takes tasks (or never will): now, or later from another thread."""

    def kill(self) -> None:
        """End the process at once, whatever it is doing. Who waits for its result gets Died."""

    def end(self) -> None:
        """End the process and release its resources. Nobody may be waiting for it."""


def perform_and_send(made: Outcome, send: Callable[[Outcome], T], method: str, arguments: tuple[object, ...]) -> T:
    """Do a task and send its outcome, in the worker. made: the outcome of the factory."""
    maker, error = made
    outcome = (None, error) if error else attempt(getattr(maker, method), *arguments)
    try:
        return send(outcome)
    except (EOFError, OSError):
        raise
    except Exception as unsent:  # a result that cannot travel is an error of the task's, too
        return send((None, _portable(unsent)))


def result(outcome: Outcome) -> object:
    """Return the result. Raises the exception of the worker."""
    value, error = outcome
    if error is not None:
        raise error
    return value


def attempt(call: Callable[..., object], *arguments: object) -> Outcome:
    """Return the outcome of a call. Out of memory, the process ends: a fresh one may have enough."""
    try:
        return call(*arguments), None
    except Exception as error:
        if is_out_of_memory(error):
            os._exit(errno.ENOMEM)
        return None, _portable(error)


def _portable(error: Exception) -> Exception:
    """Return an exception that can travel, with the place where it was raised."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
