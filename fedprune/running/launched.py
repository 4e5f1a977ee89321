"""The process that launched a sweep, as its jobs know it, in whatever process they run.

It travels in an environment variable, since a launcher may run the jobs in other processes, or on other machines.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from fedprune.parent_process import began, lives, when

LAUNCH = "FEDPRUNE_LAUNCH"

INTERRUPTED = 130
"""The status of a process that Ctrl-C has ended."""

GRACE = 5.0
"""Seconds that a job has to write down where it is, once nobody waits for it."""


@dataclass(frozen=True)
class Launch:
    """The process that does a sweep. began: what tells it from a later one of its number; "" if that cannot be known.
    passes_over: whether its jobs leave out for now what another process does."""

    host: str
    pid: int
    began: str
    passes_over: bool

    @property
    def has_ended(self) -> bool:
        """Return whether the process is gone. It is on this machine."""
        return not lives(self.pid) or began(self.pid) != self.began

    @property
    def token(self) -> str:
        """Return what tells this sweep from the same one in another terminal."""
        return f"{self.host}-{self.pid}"


def begin(passes_over: bool) -> None:
    """Note that this process does a sweep from now on."""
    os.environ[LAUNCH] = json.dumps(asdict(Launch(socket.gethostname(), os.getpid(), began(os.getpid()), passes_over)))


def end() -> None:
    """Note that the sweep has ended."""
    os.environ.pop(LAUNCH, None)


def launch() -> Launch | None:
    """Return the sweep that this process does, or does a job of; None if there is none."""
    with suppress(KeyError, ValueError, TypeError):
        return Launch(**json.loads(os.environ[LAUNCH]))
    return None


def passes_over() -> bool:
    """Return whether a job leaves its run out for now if another process does it."""
    going_on = launch()
    return going_on is not None and going_on.passes_over


@contextmanager
def ends_with_its_launcher() -> Iterator[None]:
    """In a process that a launcher has started for jobs: end the job in the context, as Ctrl-C does, once the launching process
    is gone. At Ctrl-C end the process, too: the next job in its queue is not for it to begin.

    Jobs of Slurm go on without the process that has sent them.
    """
    going_on = launch()
    if going_on is None or going_on.pid == os.getpid() or not _is_watched(going_on):
        yield
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job would not have
    _watch(going_on)
    try:
        yield
    except KeyboardInterrupt:
        sys.stdout.flush()
        os._exit(INTERRUPTED)


def _is_watched(going_on: Launch) -> bool:
    return going_on.host == socket.gethostname() and os.environ.get("SUBMITIT_EXECUTOR") != "slurm"


@functools.cache
def _watch(going_on: Launch) -> None:
    """Watch the launching process from now on, once for all jobs of this process."""
    when(lambda: going_on.has_ended, _stop)


def _stop() -> None:
    """Interrupt the job, and end the process soon in any case."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    os._exit(INTERRUPTED)
