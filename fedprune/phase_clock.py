"""The time of a round by phase. There is one clock per round, in its tally, and one per job, in a worker.

The clock is always in exactly one phase. The time that a server waits for its workers is divided among the phases of the
workers, in proportion. So the seconds of all phases add up to those of the round, however many workers there are.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

PHASES = ("sampling", "broadcast", "decode", "train", "encode", "merge", "prune", "evaluate", "other")
"""sampling: the cohort is drawn. broadcast: the server encodes its jobs. decode: clients decode jobs, the server updates.
train, encode: the work of clients. merge: the aggregate and the server's step. prune: events and gates, with the measurements
of clients for them. evaluate: evaluation, with the measurements of clients. other: metrics."""

PREFIX = "profile/"


class Clock:
    """A clock that adds up the seconds of each phase. It begins in the phase `other`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._of_workers: dict[str, float] = defaultdict(float)
        self._phase, self._since, self._whole = "other", time.perf_counter(), False

    @contextmanager
    def phase(self, name: str, whole: bool = False) -> Iterator[None]:
        """Count the time inside as this phase, without the phases that are entered inside it; with them if `whole`."""
        if self._whole:
            yield
            return
        before, self._whole = self._phase, whole
        self._turn(name)
        try:
            yield
        finally:
            self._turn(before)
            self._whole = False

    def waiting(self, results: Iterable[T]) -> Iterator[T]:
        """Yield the results; the time until each comes counts as `train`, or as the phases that workers report by `add`."""
        each = iter(results)
        while True:
            with self.phase("train"):
                try:
                    result = next(each)
                except StopIteration:
                    return
            yield result

    def add(self, of_worker: Mapping[str, float]) -> None:
        """Add the seconds by phase of a worker that the server waited for."""
        if not self._whole:
            for name, seconds in of_worker.items():
                self._of_workers[name] += seconds

    def seconds(self) -> dict[str, float]:
        """Return the seconds so far by phase; a phase that took no time is absent."""
        self._turn(self._phase)
        seconds, worked = dict(self._seconds), sum(self._of_workers.values())
        waited = seconds.pop("train", 0.0) if worked else 0.0
        for name, spent in self._of_workers.items():
            seconds[name] = seconds.get(name, 0.0) + waited * spent / worked
        return seconds

    def metrics(self) -> dict[str, float]:
        """Return `profile/<phase>_s` of every phase."""
        seconds = self.seconds()
        return {f"{PREFIX}{name}_s": seconds.get(name, 0.0) for name in PHASES}

    def _turn(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = name, now
