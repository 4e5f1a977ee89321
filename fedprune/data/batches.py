"""A client's examples as batches: gathered by index from the data set's tensors, normalised, on the device. No DataLoader."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients

CHUNK = 2048  # examples that are gathered and normalised at once: a large client must not copy its whole data
CACHED = 128  # images that a CPU evaluates at once: beyond it their activations leave its caches, and 2,000 take twice the time
PLACES = 5_120  # of sequences that are evaluated at once: each is an example to the layers inside, and beyond it gets slower

Batch = tuple[Tensor, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Slice:
    """A stretch of evaluation data: examples `start` to `stop` of `part`.

    part: `global` is the server's test set; `train`, `val` and `test` are the own parts of the clients that are looked
    at (Clients.seen), one client after the other.
    """

    part: str
    start: int
    stop: int


@dataclass(frozen=True)
class Again:
    """Batches that can be gone through more than once, made anew each time: no client's data is held twice."""

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


@dataclass(frozen=True)
class Batches:
    """Where batches come from, and where they go."""

    dataset: Dataset
    clients: Clients
    device: torch.device

    def of(self, indices: Tensor, size: int, smallest: int = 1) -> Iterator[Batch]:
        """These examples of the training pool, in this order. Fewer than `smallest` at the end join the batch before them."""
        rest = len(indices) % size
        if not 0 < rest < smallest or len(indices) < size:
            return self._gathered(self.dataset.x, self.dataset.y, indices, size)
        last = size + rest
        parts = [(indices[:-last], size), (indices[-last:], last)]
        gathered = (self._gathered(self.dataset.x, self.dataset.y, part, of) for part, of in parts if len(part))
        return itertools.chain.from_iterable(gathered)

    def shuffled(
        self,
        indices: Tensor,
        size: int,
        epochs: int | None,
        steps: int | None,
        generator: torch.Generator,
        smallest: int = 1,
        drop_last: bool = False,
    ) -> Iterator[Batch]:
        """`epochs` passes, or `steps` batches of as many passes as needed; each pass in a new order.

        drop_last: whether the last batch of a pass is left out if it is smaller than the others.
        """
        passes = itertools.count() if epochs is None else range(epochs)
        seen = len(indices) - len(indices) % size if drop_last else len(indices)
        orders = (indices[torch.randperm(len(indices), generator=generator)[:seen]] for _ in passes)
        batches = (self.of(order, size, smallest) for order in orders)
        return itertools.islice(itertools.chain.from_iterable(batches), steps)

    def evaluation(self, where: Slice) -> Iterator[Batch]:
        """A stretch of evaluation data."""
        if where.part == "global":
            places = torch.arange(where.start, where.stop)
            return self._gathered(self.dataset.test_x, self.dataset.test_y, places, self.evaluated)
        return self.of(self._end_to_end[where.part][where.start : where.stop], self.evaluated)

    def by_client(self, where: Slice) -> list[tuple[int, Slice]]:
        """Cut a stretch of evaluation data where a client's examples end. Returns (place of the client among those that are
        looked at, its part of the stretch); the global test set is nobody's (-1)."""
        if where.part == "global":
            return [(-1, where)]
        ends = [0, *itertools.accumulate(len(getattr(self.clients, where.part)[client]) for client in self.clients.seen)]
        cut = ((max(a, where.start), min(b, where.stop)) for a, b in itertools.pairwise(ends))
        return [(place, Slice(where.part, start, stop)) for place, (start, stop) in enumerate(cut) if start < stop]

    @functools.cached_property
    def _end_to_end(self) -> dict[str, Tensor]:
        """The parts of the clients that are looked at, one after the other: made once, for each may be evaluated by itself."""
        parts = {part: getattr(self.clients, part) for part in ("train", "val", "test")}
        return {part: torch.cat([of_all[client] for client in self.clients.seen]) for part, of_all in parts.items()}

    @property
    def evaluated(self) -> int:
        """How many examples are evaluated at once."""
        x, y = self.dataset.x, self.dataset.y
        if y.dim() > 1 and y.shape == x.shape:  # a label for every place of a sequence
            return max(PLACES // y[0].numel(), 1)
        return CACHED if self.device.type == "cpu" else CHUNK

    def _gathered(self, x: Tensor, y: Tensor, indices: Tensor, size: int) -> Iterator[Batch]:
        """Gather and normalise chunk by chunk, so that a batch is a view. Labels that are whole numbers (of sequences: bytes)
        become int64 here, which losses of classes take; real numbers keep their type."""
        dtype = label_dtype(y)
        for chunk in indices.split(max(CHUNK // size, 1) * size):
            inputs = self.dataset.normalise(x.index_select(0, chunk).to(self.device))  # x[chunk] takes ten times as long
            labels = y.index_select(0, chunk).to(self.device, dtype)
            yield from zip(inputs.split(size), labels.split(size), strict=True)


def label_dtype(y: Tensor) -> torch.dtype:
    """Return the type of labels in a batch: whole numbers as int64, real ones as they are."""
    return y.dtype if y.is_floating_point() or y.is_complex() else torch.int64


def first_examples(dataset: Dataset, number: int) -> Batch:
    """Return the first examples of the training pool as a batch, to try things on."""
    y = dataset.y[:number]
    return dataset.normalise(dataset.x[:number]), y.to(label_dtype(y))


def interrupted(batches: Iterable[T], after: int, do: Callable[[], None]) -> Iterator[T]:
    """The same batches; `do` is called once the step on batch number `after` is done, when the next one is asked for."""
    for number, batch in enumerate(batches):
        if number == after:
            do()
        yield batch
