"""Accuracy: the server's network on the global test set, and on every client's own validation and test parts.

Clients that share a network are evaluated together; a client that keeps tensors to itself, with those. Slices have a fixed
length, so that the numbers do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedprune.federated.client import Slice
from fedprune.federated.exchange import Exchange
from fedprune.federated.executor import Task
from fedprune.types import State

LENGTH = 2000  # examples per task


@dataclass(frozen=True)
class Evaluation:
    """test: the size of the global test set. val, local: how many examples each client has in its validation and test part."""

    exchange: Exchange
    test: int
    val: Sequence[int]
    local: Sequence[int]

    def __call__(self, state: State) -> dict[str, float]:
        """Metrics of the server's network: test/*, val/*, client/* (those whose part is empty are absent)."""
        block = self._block(state)
        tasks = [("evaluate", (block, self._servers(state), part)) for part in _cut("global", 0, self.test)]
        for part, sizes in (("val", self.val), ("test", self.local)):
            tasks += self._client_tasks(state, block, part, sizes)
        losses, correct = self._outcomes(tasks)
        ends = np.cumsum([self.test, sum(self.val)])
        metrics: dict[str, float] = {}
        for name, loss, hits in zip(("test", "val"), np.split(losses, ends), np.split(correct, ends), strict=False):
            if len(hits):
                metrics |= {f"{name}/accuracy": float(hits.mean()), f"{name}/loss": float(loss.mean())}
        return metrics | _by_client(correct[ends[1] :], self.local)

    def val_accuracy(self, state: State) -> float:
        """The metric val/accuracy alone. There have to be validation examples."""
        _, correct = self._outcomes([*self._client_tasks(state, self._block(state), "val", self.val)])
        return float(correct.mean())

    def _block(self, state: State) -> bytes:
        return self.exchange.wire.subnet_block(state.server)

    def _servers(self, state: State) -> dict[str, np.ndarray]:
        """The server's copy of what clients keep to themselves."""
        return {name: state.server.params[name].numpy() for name in self.exchange.own}

    def _outcomes(self, tasks: list[Task]) -> tuple[np.ndarray, np.ndarray]:
        """(loss, correct) of every example, in the order of the tasks."""
        outcomes = list(self.exchange.executor.map(tasks, [0] * len(tasks)))
        return np.concatenate([loss for loss, _ in outcomes]), np.concatenate([correct for _, correct in outcomes])

    def _client_tasks(self, state: State, block: bytes, part: str, sizes: Sequence[int]) -> Iterator[tuple[str, tuple]]:
        if not self.exchange.own:
            yield from (("evaluate", (block, {}, piece)) for piece in _cut(part, 0, sum(sizes)))
            return
        for client, end in enumerate(np.cumsum(sizes)):
            kept = self.exchange.kept_by(state, client)
            kept = {name: kept[name] for name in self.exchange.own}  # an optimizer that is kept too has no part in it
            yield from (("evaluate", (block, kept, piece)) for piece in _cut(part, int(end) - sizes[client], int(end)))


def _cut(part: str, start: int, stop: int) -> list[Slice]:
    return [Slice(part, place, min(place + LENGTH, stop)) for place in range(start, stop, LENGTH)]


def _by_client(correct: np.ndarray, sizes: Sequence[int]) -> dict[str, float]:
    """Mean and 10th percentile over the clients of the accuracy on their own test part."""
    ends = np.cumsum(sizes)
    accuracies = [part.mean() for part in np.split(correct, ends[:-1]) if len(part)]
    if not accuracies:
        return {}
    return {"client/accuracy_mean": float(np.mean(accuracies)), "client/accuracy_p10": float(np.percentile(accuracies, 10))}
