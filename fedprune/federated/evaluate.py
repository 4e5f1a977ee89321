"""The task's metrics: of the server's network on the global test set, and on every client's own validation and test parts.

client/<metric>_* is of the network with which a client begins its next round, before it trains (metrics/tuned.py has it after).

Clients with equal networks are evaluated together. A client with private tensors is evaluated with those, and one with a mask
of its own under that mask. Slices have a fixed length, so that the numbers do not depend on the number of workers. The bytes of
an evaluation are not counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fedprune.data.batches import Slice
from fedprune.execution import certain
from fedprune.execution.arrays import arrays_of
from fedprune.execution.worker import Task
from fedprune.federated.client.private_values import joined
from fedprune.federated.exchange import Exchange
from fedprune.local.outcomes import Outcomes, TaskMetrics, concatenated
from fedprune.types import Mask, Params, State
from fedprune.wire.frame import Piece, array

LENGTH = 2000  # examples per task
UNSEEN = "_unseen"


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a state.

    test: the size of the global test set. clients: those that are evaluated on their own parts; val, local: the number of
    examples in each one's validation and test part. client_mask: a client's own mask at a state, packed to bits (empty: it has
    that of the server). common_entries: (state) -> (client) -> the entries whose values are the server's (None: all are).
    task: what is measured.
    unseen: clients that are in no cohort, evaluated with what they would be sent if they came for the first time; newly: the
    number of examples in each one's test part.
    """

    exchange: Exchange
    test: int
    clients: Sequence[int]
    val: Sequence[int]
    local: Sequence[int]
    client_mask: Callable[[State, int], bytes]
    common_entries: Callable[[State], Callable[[int], Mask] | None]
    task: TaskMetrics
    unseen: Sequence[int] = ()
    newly: Sequence[int] = ()

    def __call__(self, state: State) -> dict[str, float]:
        """Return the metrics test/*, val/*, client/* and client/*_unseen_* (those whose part is empty are absent)."""
        block = self._block(state)
        private = arrays_of({name: state.server.params[name] for name in self.exchange.private})
        server = [("evaluate", (block, private, b"", part)) for part in _cut("global", 0, self.test)]
        parts = (("val", self.clients, self.val), ("test", self.clients, self.local), ("unseen", self.unseen, self.newly))
        val, local, newly = ([*self._client_tasks(state, block, *part)] for part in parts)
        outcomes = iter(self._outcomes([*server, *val, *local, *newly]))
        metrics: dict[str, float] = {}
        for name, tasks in (("test", server), ("val", val)):
            means = self.task.means(concatenated([*itertools.islice(outcomes, len(tasks))])) if tasks else {}
            metrics |= {f"{name}/{metric}": value for metric, value in means.items()}
        for moment, tasks, sizes in (("", local, self.local), (UNSEEN, newly, self.newly)):
            found = [*itertools.islice(outcomes, len(tasks))]
            metrics |= self.task.by_client(concatenated(found), sizes, moment) if found else {}
        return metrics

    def outcomes(self, state: State) -> dict[str, float]:
        """Return what gates may ask for of validation data (pruning/evidence). There have to be validation examples."""
        outcomes = self._outcomes([*self._client_tasks(state, self._block(state), "val", self.clients, self.val)])
        return self.task.validated(self.task.means(concatenated(outcomes)))

    def _block(self, state: State) -> Piece:
        return array(self.exchange.wire.subnet_block(state.server))

    def _outcomes(self, tasks: list[Task]) -> list[Outcomes]:
        """Return what every task measures, in the order of the tasks."""
        return list(certain(self.exchange.executor.map(tasks, [0] * len(tasks))))

    def _client_tasks(
        self, state: State, block: Piece, part: str, clients: Sequence[int], sizes: Sequence[int]
    ) -> Iterator[Task]:
        ends = [0, *itertools.accumulate(sizes)]
        common = self.common_entries(state)
        for alike in self._alike(state, clients, common is not None):
            client = clients[alike[0]]
            private = arrays_of(self._private(state, client, common))
            client_mask = self.client_mask(state, client)
            pieces = _cut(part, ends[alike[0]], ends[alike[-1] + 1])
            yield from (("evaluate", (block, private, client_mask, piece)) for piece in pieces)

    def _private(self, state: State, client: int, common: Callable[[int], Mask] | None) -> Params:
        """Return the tensors of a client's network that are not the server's. common: (client) -> the entries whose
        values are."""
        kept = self.exchange.kept_by(state, client)
        if common is not None:
            return kept.batchnorm | joined(state.server.params, kept.weights, common(client))
        return kept.batchnorm | kept.weights

    def _alike(self, state: State, clients: Sequence[int], values: bool) -> Iterator[list[int]]:
        """Yield consecutive positions whose clients have the same network. values: whether some keep values of theirs."""
        positions = range(len(clients))
        if self.exchange.private or values:
            return ([position] for position in positions)
        masks = itertools.groupby(positions, key=lambda position: self.client_mask(state, clients[position]))
        return (list(group) for _, group in masks)


def _cut(part: str, start: int, stop: int) -> list[Slice]:
    return [Slice(part, first, min(first + LENGTH, stop)) for first in range(start, stop, LENGTH)]
