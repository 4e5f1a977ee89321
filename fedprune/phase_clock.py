"""Where a round's time goes, by phase. One clock per round, in its tally; and one per job, in a worker.

The clock always stands in one phase. What a server waits for is shared out among what its workers did meanwhile, in proportion:
so the seconds of all phases add up to those of the round, however many workers there are.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

PHASES = ("sampling", "broadcast", "decode", "train", "encode", "merge", "prune", "evaluate", "other")
"""sampling: who takes part. broadcast: the server encodes its jobs. decode: clients their jobs, the server what comes back.
train, encode: what clients do. merge: the aggregate, and the step that is made of it. prune: all that events and gates take,
what clients measure for them included. evaluate: likewise. other: metrics."""

PREFIX = "profile/"


class Clock:
    """Adds up the seconds of each phase; it begins with the one that is called other."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._of_workers: dict[str, float] = defaultdict(float)
        self._phase, self._since, self._whole = "other", time.perf_counter(), False

    @contextmanager
    def phase(self, name: str, whole: bool = False) -> Iterator[None]:
        """What is done inside, without the phases that are inside it; if `whole`, these too."""
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
        """The same results; that they have to be waited for is for `train`, or for what workers say that they did."""
        each = iter(results)
        while True:
            with self.phase("train"):
                result = next(each, self)
            if result is self:
                return
            yield result  # type: ignore[misc]

    def add(self, of_worker: Mapping[str, float]) -> None:
        """Take up how a worker spent the time in which it was waited for."""
        if not self._whole:
            for name, seconds in of_worker.items():
                self._of_workers[name] += seconds

    def seconds(self) -> dict[str, float]:
        """So far, by phase; those that took no time are absent."""
        self._turn(self._phase)
        found, worked = dict(self._seconds), sum(self._of_workers.values())
        waited = found.pop("train", 0.0) if worked else 0.0
        for name, spent in self._of_workers.items():
            found[name] = found.get(name, 0.0) + waited * spent / worked
        return found

    def metrics(self) -> dict[str, float]:
        """profile/<phase>_s of every phase."""
        seconds = self.seconds()
        return {f"{PREFIX}{name}_s": seconds.get(name, 0.0) for name in PHASES}

    def _turn(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = name, now
