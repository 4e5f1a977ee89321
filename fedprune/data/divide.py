"""Divide examples among clients by a partition, drawn again until every client has enough; and stratified samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import DataError
from fedprune.randomness import numpy_stream

if TYPE_CHECKING:
    from fedprune.data.partition import Partition

DRAWS = 100
"""A partition is drawn at most so many times."""

Parts = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]
"""(train, val, test): a tensor of indices for each client, int64 and ascending."""


def divide(how: Partition, labels: np.ndarray, pool: np.ndarray, clients: int, seed: int) -> Parts:
    """Return the parts of every client, as indices into the training pool.

    labels: what the partition goes by, of the whole training pool. pool: the indices that clients may have. Raises DataError if
    no draw gives every client enough.
    """
    rng = numpy_stream(seed, "partition")
    drawn = _draw(labels[pool], how, clients, rng)
    split = [_split(pool[rng.permutation(indices)], how) for indices in drawn]
    train, val, test = (tuple(map(ascending, column)) for column in zip(*split, strict=True))
    return train, val, test


def stratified(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` random indices into `labels` [N], each class in its share of N to within one example.

    Systematic sampling: within its shuffled class the i-th example stands at (i + u) / size, with one random u per class
    (which decides the classes that get the odd ones); the `count` lowest are taken.
    """
    shuffled = rng.permutation(len(labels))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, group, sizes = np.unique(labels[grouped], return_inverse=True, return_counts=True)
    rank = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[group]
    standing = (rank + rng.random(len(sizes))[group]) / sizes[group]
    return grouped[np.argsort(standing, kind="stable")[:count]]


def ascending(indices: np.ndarray) -> Tensor:
    """Return indices as an int64 tensor in ascending order.

    The order has no meaning (batches shuffle), but a saved partition is then read back as it was.
    """
    return torch.from_numpy(np.sort(indices).astype(np.int64))


def _draw(labels: np.ndarray, how: Partition, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    needed = how.needed
    if clients * needed > len(labels) and how.by != "groups":  # natural clients raise an error of their own
        raise DataError(
            f"partition {how}: {clients} clients with at least {needed} examples each need {clients * needed}, "
            f"and there are {len(labels)}. {_remedies(how, needed, '')}"
        )
    best: list[np.ndarray] = []
    for _ in range(DRAWS):
        drawn = how(labels, clients, rng)
        if min(map(len, drawn)) >= needed:
            return drawn
        best = max(best, drawn, key=lambda candidate: min(map(len, candidate), default=-1))
    raise DataError(_too_few(how, needed, [len(indices) for indices in best]))


def _too_few(how: Partition, needed: int, sizes: list[int]) -> str:
    poorest = int(np.argmin(sizes))
    return (
        f"partition {how}: {sum(size < needed for size in sizes)} of {len(sizes)} clients get fewer than {needed} examples "
        f"in the best of {DRAWS} draws; client {poorest} gets {sizes[poorest]}. {_remedies(how, needed, how.remedy)}"
    )


def _remedies(how: Partition, needed: int, evener: str) -> str:
    lower = f"lower partition.min_examples (now {needed})"
    fewer = lower if needed == how.min_examples else "set partition.val=0 or partition.test=0"
    return "Try one of: " + ", ".join(filter(None, [evener, "lower federated.clients", fewer])) + "."


def _split(indices: np.ndarray, how: Partition) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (train, val, test) of a client's shuffled examples."""
    _, val, test = how.split(len(indices))
    return indices[val + test :], indices[:val], indices[val : val + test]
