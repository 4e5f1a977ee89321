"""An executor that notes every message that crosses the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fedprune.execution import Task
from fedprune.types import SERVER, Job
from fedprune.wire.frame import Message, length
from fedprune.wire.message import Wire


class Spy:
    """Passes tasks on, and notes every message that crosses the wire: (job, its bytes, the bytes of the answer)."""

    def __init__(self, inner: Any, wire: Wire, spoil: Callable[[Job, Message], Message] = lambda job, answer: answer):
        self._inner, self._wire, self._spoil = inner, wire, spoil
        self.seen: list[tuple[Job, int, int]] = []

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
        for (method, arguments), answer in zip(tasks, self._inner.map(tasks, sizes), strict=True):
            if method == "run":
                job = self._wire.decode_job(arguments[0], arguments[2])
                spoiled = self._spoil(job, answer[0])
                self.seen.append((job, length(arguments[0]), length(spoiled)))
                answer = (spoiled, *answer[1:])
            yield answer

    def close(self, now: bool = False) -> None:
        self._inner.close(now)

    def bytes_of(self, round: int, measured: bool | None = None) -> tuple[int, int]:
        """(down, up) in a round; of measuring or of training only."""
        crossed = [(d, u) for job, d, u in self.seen if job.round == round and job.client != SERVER]
        if measured is not None:
            crossed = [
                (d, u)
                for job, d, u in self.seen
                if (job.round, bool(job.measure)) == (round, measured) and job.client != SERVER
            ]
        return sum(d for d, _ in crossed), sum(u for _, u in crossed)


def spied(experiment, spoil=None) -> Spy:
    return Spy(experiment.executor(), experiment.wire, *([spoil] if spoil else []))
