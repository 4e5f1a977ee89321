"""A worker, wherever it is: a process that performs tasks one after the other. And what it does with each of them.

What goes wrong in a task is raised where it was asked for; a worker that is gone (killed, or out of memory) is a `Died`, and
the same task may be asked of another one.
"""

from __future__ import annotations

import errno
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from fedprune.execution.failures import is_out_of_memory

Task = tuple[str, tuple]
"""The method to call of what the worker has made, and its arguments."""

Factory = Callable[[], Any]
"""Makes the object whose methods are the tasks: a ClientRound."""

T = TypeVar("T")

Outcome = tuple[Any, Exception | None]
"""(result, None), or (None, what was raised)."""


class Died(Exception):
    """A worker is gone, and with it what it was doing."""


class Worker(Protocol):
    """One process, in which the factory is called once, and this end of the way to it."""

    def perform(self, method: str, arguments: tuple) -> Any:
        """The task's result. Raises what it raises, and Died."""

    def when_there(self, call: Callable[[], None]) -> None:
        """Call this once tasks can be asked of it (or it is known that they never can): now, or later from another thread."""

    def kill(self) -> None:
        """End the process at once, whatever it is doing; who waits for its result sees it die."""

    def end(self) -> None:
        """The same, and let go of what it took. Nobody may be waiting for it."""


def answer(made: Outcome, send: Callable[[Outcome], T], method: str, arguments: tuple) -> T:
    """In the worker: do a task and send its outcome. made: what the factory has made, or could not."""
    maker, error = made
    outcome = (None, error) if error else attempt(getattr(maker, method), *arguments)
    try:
        return send(outcome)
    except (EOFError, OSError):
        raise
    except Exception as unsent:  # a result that cannot travel is a mistake of the task's, too
        return send((None, _portable(unsent)))


def result(outcome: Outcome) -> Any:
    """What it is. Raises what was raised in the worker."""
    found, error = outcome
    if error is not None:
        raise error
    return found


def attempt(call: Callable[..., Any], *arguments: Any) -> Outcome:
    """What comes of a call. Without memory the process ends: a fresh one may have enough."""
    try:
        return call(*arguments), None
    except Exception as error:
        if is_out_of_memory(error):
            os._exit(errno.ENOMEM)
        return None, _portable(error)


def _portable(error: Exception) -> Exception:
    """An exception that can travel, and brings along where it was raised."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
