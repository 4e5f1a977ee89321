"""The process that launched a sweep, as its jobs know it, in whatever process they run.

It travels in an environment variable, since a launcher may run the jobs in other processes, or on other machines.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass

LAUNCH = "FEDPRUNE_LAUNCH"


@dataclass(frozen=True)
class Launch:
    """The process that does a sweep. passes_over: whether its jobs leave out for now what another process does."""

    host: str
    pid: int
    passes_over: bool

    @property
    def token(self) -> str:
        """Return what tells this sweep from the same one in another terminal."""
        return f"{self.host}-{self.pid}"


def begin(passes_over: bool) -> None:
    """Note that this process does a sweep from now on."""
    os.environ[LAUNCH] = json.dumps(asdict(Launch(socket.gethostname(), os.getpid(), passes_over)))


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
