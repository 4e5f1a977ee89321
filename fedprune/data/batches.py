"""Batches of a client's examples: gathered by index from the data set's tensors, normalised, on the device. No DataLoader."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fedprune.data.augment import Change
from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients

CHUNK = 2048  # examples gathered and normalised at once, so that a large client does not copy all its data
CACHED = 128  # images that a CPU evaluates at once: with more, activations leave its caches, and 2,000 take twice the time
PLACES = 5_120  # places of sequences that are evaluated at once: each counts as an example to the layers, and more is slower

Batch = tuple[Tensor, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Slice:
    """A stretch of evaluation data: examples `start` to `stop` of `part`.

    part: `global` is the server's test set; `train`, `val` and `test` are the parts of the evaluated clients (Clients.seen),
    one client after the other; `unseen` are the test parts of the unseen (Clients.newcomers).
    """

    part: str
    start: int
    stop: int


@dataclass(frozen=True)
class Repeatable:
    """Batches to iterate over more than once. They are made anew each time, so that no client's data is in memory twice."""

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


@dataclass(frozen=True)
class Batches:
    """The source of all batches: a data set, the indices of every client, and the device that batches are put on."""

    dataset: Dataset
    clients: Clients
    device: torch.device

    def of(self, indices: Tensor, size: int, smallest: int = 1, change: Change | None = None) -> Iterator[Batch]:
        """Yield these examples of the training pool in this order, `size` a batch; a rest of fewer than `smallest` joins the
        batch before it. change: what augments the inputs of a batch before they are normalised."""
        gathered = functools.partial(self._gathered, self.dataset.x, self.dataset.y, change=change)
        rest = len(indices) % size
        if not 0 < rest < smallest or len(indices) < size:
            return gathered(indices, size)
        last = size + rest
        before = gathered(indices[:-last], size) if len(indices) > last else iter(())
        return itertools.chain(before, gathered(indices[-last:], last))

    def shuffled(
        self,
        indices: Tensor,
        size: int,
        epochs: int | None,
        steps: int | None,
        generator: torch.Generator,
        smallest: int = 1,
        drop_last: bool = False,
        change: Change | None = None,
    ) -> Iterator[Batch]:
        """Yield `epochs` passes, or `steps` batches of as many passes as needed; each pass in a new order.

        drop_last: whether the last batch of a pass is left out if it is smaller than the others. change: see `of`.
        """
        passes = itertools.count() if epochs is None else range(epochs)
        used = len(indices) - len(indices) % size if drop_last else len(indices)
        orders = (indices[torch.randperm(len(indices), generator=generator)[:used]] for _ in passes)
        batches = (self.of(order, size, smallest, change) for order in orders)
        return itertools.islice(itertools.chain.from_iterable(batches), steps)

    def evaluation(self, where: Slice) -> Iterator[Batch]:
        """Yield the batches of a stretch of evaluation data."""
        if where.part == "global":
            indices = torch.arange(where.start, where.stop)
            return self._gathered(self.dataset.test_x, self.dataset.test_y, indices, self.evaluated)
        return self.of(self._end_to_end[where.part][where.start : where.stop], self.evaluated)

    def by_client(self, where: Slice) -> list[tuple[int, Slice]]:
        """Return a stretch of evaluation data client by client: (index of the client, its part of the stretch).

        The index is that in Clients.evaluated_on(part). The global test set belongs to no client, so its index is -1.
        """
        if where.part == "global":
            return [(-1, where)]
        part = self.clients.parts[where.part]
        ends = [0, *itertools.accumulate(len(part[client]) for client in self.clients.evaluated_on(where.part))]
        cut = ((max(first, where.start), min(end, where.stop)) for first, end in itertools.pairwise(ends))
        return [(index, Slice(where.part, start, stop)) for index, (start, stop) in enumerate(cut) if start < stop]

    @functools.cached_property
    def _end_to_end(self) -> dict[str, Tensor]:
        """Return each part of the evaluated clients in one tensor, one client after the other. It is made once."""
        nobody, clients = torch.empty(0, dtype=torch.int64), self.clients
        return {
            name: torch.cat([nobody, *(part[client] for client in clients.evaluated_on(name))])
            for name, part in clients.parts.items()
        }

    @property
    def evaluated(self) -> int:
        """Return how many examples are evaluated at once."""
        x, y = self.dataset.x, self.dataset.y
        if y.dim() > 1 and y.shape == x.shape:  # a label for every place of a sequence
            return max(PLACES // y[0].numel(), 1)
        return CACHED if self.device.type == "cpu" else CHUNK

    def _gathered(self, x: Tensor, y: Tensor, indices: Tensor, size: int, change: Change | None = None) -> Iterator[Batch]:
        """Gather and normalise chunk by chunk, so that a batch is a view; batches that are changed are normalised one by one.

        Labels that are whole numbers (bytes, of sequences) become int64, which losses of classes take; real numbers keep their
        type.
        """
        dtype = label_dtype(y)
        for chunk in indices.split(max(CHUNK // size, 1) * size):
            raw = x.index_select(0, chunk).to(self.device)  # x[chunk] takes ten times as long
            labels = y.index_select(0, chunk).to(self.device, dtype)
            if change is None:
                yield from zip(self.dataset.normalise(raw).split(size), labels.split(size), strict=True)
                continue
            for part, of_part in zip(raw.split(size), labels.split(size), strict=True):
                yield self.dataset.normalise(change(part)), of_part


def label_dtype(y: Tensor) -> torch.dtype:
    """Return the type of labels in a batch: int64 for whole numbers, else their own."""
    return y.dtype if y.is_floating_point() or y.is_complex() else torch.int64


def first_examples(dataset: Dataset, number: int) -> Batch:
    """Return the first examples of the training pool as a batch, to try things on."""
    y = dataset.y[:number]
    return dataset.normalise(dataset.x[:number]), y.to(label_dtype(y))


def calling_after(batches: Iterable[T], steps: int, do: Callable[[], None]) -> Iterator[T]:
    """Yield the batches, and call `do` after so many steps, when the next batch is asked for."""
    for number, batch in enumerate(batches):
        if number == steps:
            do()
        yield batch
