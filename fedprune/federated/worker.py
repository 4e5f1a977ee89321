"""A process that performs tasks one after the other, and the way to it and back.

What goes wrong in a task is raised where it was asked for; a process that is gone (killed, or out of memory) is a `Died`, and
the same task may be asked of another one. A worker ends with the process that it works for.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

import torch

from fedprune.federated.shared_memory import Receiver, Sender, room

Task = tuple[str, tuple]
"""The method to call of what the worker has made, and its arguments."""

Factory = Callable[[], Any]
"""Makes the object whose methods are the tasks: a ClientRound."""

STOPS = (signal.SIGINT, signal.SIGTERM)
ENDS = {errno.ENOMEM: "out of memory"}
"""What a worker's exit code means."""


class Died(Exception):
    """A worker is gone, and with it what it was doing."""


class Worker:
    """One process, in which the factory is called once, and this end of the way to it."""

    def __init__(self, context: BaseContext, factory: Factory):
        self._pipe, theirs = context.Pipe()
        rooms = (room(), room()) if context.get_start_method() == "fork" else (None, None)  # others have none of its memory
        self._sender, self._receiver = Sender(self._pipe, rooms[0]), Receiver(self._pipe, rooms[1], bytearray)
        self._process = context.Process(target=_work, args=(theirs, rooms, factory, os.getpid()), daemon=True)  # type: ignore[attr-defined]
        with _held_back():
            self._process.start()
        theirs.close()  # or its death could not be seen from here

    def perform(self, method: str, arguments: tuple) -> Any:
        """The task's result. Raises what it raises, and Died."""
        try:
            self._sender.send((method, arguments))
            result, error = self._receiver.receive()
        except (EOFError, OSError) as gone:
            raise Died(self._how()) from gone
        if error is not None:
            raise error
        return result

    def _how(self) -> str:
        """How the process came to its end."""
        self._process.join(1)
        code = self._process.exitcode or 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else ENDS.get(code, f"exit code {code}")

    def kill(self) -> None:
        """End the process at once, whatever it is doing; who waits for its result sees it die."""
        self._process.kill()

    def end(self) -> None:
        """The same, and let go of what it took. Nobody may be waiting for it."""
        self.kill()
        self._process.join()
        self._pipe.close()


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Ctrl-C has to wait: a process that has just been forked would take it for its own."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the process of its own ---------------------------------------------------------------------------------------------


def _work(pipe: Connection, rooms: tuple[mmap.mmap | None, ...], factory: Factory, parent: int) -> None:
    """Perform what comes until nothing does."""
    _settle(parent)
    made, error = _attempt(factory)
    receiver, sender = Receiver(pipe, rooms[0], memoryview), Sender(pipe, rooms[1])
    with contextlib.suppress(EOFError, OSError):  # then there is nobody left to work for
        while True:
            _perform(receiver, sender, made, error)


def _settle(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle,
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and what it made of SIGTERM is not for its workers
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker must not outlive the process that it works for, which may have been killed without a chance to say so."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _perform(receiver: Receiver, sender: Sender, made: Any, error: Exception | None) -> None:
    method, arguments = receiver.receive()
    outcome = (None, error) if error else _attempt(getattr(made, method), *arguments)
    try:
        sender.send(outcome)
    except (EOFError, OSError):
        raise
    except Exception as unsent:  # a result that cannot travel is a mistake of the task's, too
        sender.send((None, _portable(unsent)))


def _attempt(call: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """(result, None), or (None, what was raised). Without memory the process ends: a fresh one may have enough."""
    try:
        return call(*arguments), None
    except Exception as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the latter: torch's, a RuntimeError
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
