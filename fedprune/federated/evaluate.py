"""Accuracy: the server's network on the global test set, and on every client's own validation and test parts.

Clients that share a network are evaluated together; a client that keeps tensors to itself, with those; one with a mask of its
own, under that mask. Slices have a fixed
length, so that the numbers do not depend on the number of workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedprune.data.batches import Slice
from fedprune.federated.arrays import arrays_of
from fedprune.federated.exchange import Exchange
from fedprune.federated.executor import Task, certain
from fedprune.federated.own_values import joined, trained
from fedprune.types import SERVER, Mask, State
from fedprune.wire.frame import Piece, array

LENGTH = 2000  # examples per task


@dataclass(frozen=True)
class Evaluation:
    """test: the size of the global test set. clients: those whose own parts are looked at; val, local: how many examples each
    of them has in its validation and test part. held: a client's own mask at a state, packed to bits (empty: it has that of
    the server). common: the entries whose values are the server's (None: all are)."""

    exchange: Exchange
    test: int
    clients: Sequence[int]
    val: Sequence[int]
    local: Sequence[int]
    held: Callable[[State, int], bytes]
    common: Callable[[State], Mask | None]

    def __call__(self, state: State) -> dict[str, float]:
        """Metrics of the server's network: test/*, val/*, client/* (those whose part is empty are absent)."""
        block, kept = self._block(state), self.exchange.kept_by(state, SERVER)
        tasks = [("evaluate", (block, kept, b"", part)) for part in _cut("global", 0, self.test)]
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

    def _block(self, state: State) -> Piece:
        return array(self.exchange.wire.subnet_block(state.server))

    def _outcomes(self, tasks: list[Task]) -> tuple[np.ndarray, np.ndarray]:
        """(loss, correct) of every example, in the order of the tasks."""
        outcomes = list(certain(self.exchange.executor.map(tasks, [0] * len(tasks))))
        return np.concatenate([loss for loss, _ in outcomes]), np.concatenate([correct for _, correct in outcomes])

    def _client_tasks(self, state: State, block: Piece, part: str, sizes: Sequence[int]) -> Iterator[tuple[str, tuple]]:
        ends = [0, *np.cumsum(sizes).tolist()]
        shared = self.common(state)
        for alike in self._alike(state, shared is not None):
            client = self.clients[alike[0]]
            kept = self.exchange.kept_by(state, client) if self.exchange.own else {}
            kept = {name: kept[name] for name in self.exchange.own}  # an optimizer that is kept too has no part in it
            if shared is not None:
                own = joined(state.server.params, trained(state, client), shared)
                kept |= arrays_of(own)
            held = self.held(state, client)
            pieces = _cut(part, ends[alike[0]], ends[alike[-1] + 1])
            yield from (("evaluate", (block, kept, held, piece)) for piece in pieces)

    def _alike(self, state: State, values: bool) -> Iterator[list[int]]:
        """Places in a row whose clients have one and the same network. values: whether some have values of their own."""
        places = range(len(self.clients))
        if self.exchange.own or values:
            return ([place] for place in places)
        return (list(group) for _, group in itertools.groupby(places, key=lambda place: self.held(state, self.clients[place])))


def _cut(part: str, start: int, stop: int) -> list[Slice]:
    return [Slice(part, place, min(place + LENGTH, stop)) for place in range(start, stop, LENGTH)]


def _by_client(correct: np.ndarray, sizes: Sequence[int]) -> dict[str, float]:
    """Mean, 10th percentile and least over the clients of the accuracy on their own test part."""
    ends = np.cumsum(sizes)
    accuracies = [part.mean() for part in np.split(correct, ends[:-1]) if len(part)]
    if not accuracies:
        return {}
    worst = {"client/accuracy_p10": float(np.percentile(accuracies, 10)), "client/accuracy_min": float(min(accuracies))}
    return {"client/accuracy_mean": float(np.mean(accuracies)), **worst}
