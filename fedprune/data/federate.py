"""What each client has: its own train, validation and test examples, as indices into the data set's training pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedprune.data.datasets import Dataset
from fedprune.data.partition import Holdings, Partition, stratified
from fedprune.data.population import ClassMix
from fedprune.errors import ConfigError, DataError
from fedprune.randomness import numpy_stream
from fedprune.types import SERVER

DRAWS = 100

TRAIN, VAL, TEST, PROXY, UNUSED = range(5)
"""The codes of `split` in partition.safetensors."""


@dataclass(frozen=True, eq=False)
class Clients:
    """Which training examples belong to whom: int64 index tensors into Dataset.x, each in ascending order.

    train, val, test: one tensor per client; disjoint, unless clients are drawn from a population (population.py). server: the
    proxy set that the server holds back; may be empty. evaluated: the clients whose own validation and test parts are looked
    at (None: all).
    """

    train: Sequence[Tensor]
    val: Sequence[Tensor]
    test: Sequence[Tensor]
    server: Tensor
    evaluated: tuple[int, ...] | None = None

    @property
    def seen(self) -> Sequence[int]:
        """The clients whose own validation and test parts are looked at."""
        return range(len(self.train)) if self.evaluated is None else self.evaluated


def federate(
    dataset: Dataset, how: Partition | ClassMix, clients: int, seed: int, proxy: int = 0, evaluated: int | None = None
) -> Clients:
    """The clients' data: a function of the arguments and of nothing else.

    `proxy` examples are held back for the server first, each class (of text: each group) in its share; `how` divides the rest,
    drawn again (up to 100 times) while a client has too few; each client's part is shuffled and split. Fractions are rounded
    down, but a fraction that is not zero takes one example at least, and training keeps one at least. Of more than `evaluated`
    clients, so many are drawn whose own parts are evaluated (None: all are).

    Raises ConfigError if `clients` or `proxy` is no such number, DataError if the data cannot be divided as asked.
    """
    _check_numbers(clients, proxy, len(dataset.y))
    goes_by, rng = _goes_by(dataset, how), numpy_stream(seed, "partition")
    server = stratified(_strata(dataset), proxy, numpy_stream(seed, "proxy"))
    rest, seen = np.delete(np.arange(len(goes_by)), server), _evaluated(clients, evaluated, seed)
    if isinstance(how, ClassMix):
        return Clients(*how.population(goes_by, rest, clients, seed), _ascending(server), seen)
    parts = _draw(goes_by[rest], how, clients, rng)
    split = [_split(rest[rng.permutation(part)], how) for part in parts]
    train, val, test = (tuple(map(_ascending, column)) for column in zip(*split, strict=True))
    return Clients(train, val, test, _ascending(server), seen)


def _evaluated(clients: int, number: int | None, seed: int) -> tuple[int, ...] | None:
    if number is None or clients <= number:
        return None
    return tuple(sorted(numpy_stream(seed, "evaluated").choice(clients, size=number, replace=False).tolist()))


def _strata(dataset: Dataset) -> np.ndarray:
    """Return what a draw of examples should have its share of: classes; where examples have none, groups; else nothing."""
    if _no_classes(dataset.y) is None:
        return dataset.y.numpy()
    return _zeros(dataset) if dataset.groups is None else dataset.groups.numpy()


def _no_classes(labels: Tensor) -> str | None:
    """Return why labels do not sort examples into classes, or None if they do."""
    if labels.is_floating_point() or labels.is_complex():
        return f"its labels are real numbers ({str(labels.dtype).removeprefix('torch.')}), not classes"
    if labels.dim() != 1:
        return f"it has {math.prod(labels.shape[1:])} labels for each example"
    return None


def _zeros(dataset: Dataset) -> np.ndarray:
    return np.zeros(len(dataset.y), np.int64)


def _goes_by(dataset: Dataset, how: Holdings) -> np.ndarray:
    """Return what the partition is called with: a row per training example. Raises ConfigError if the data set has no such."""
    obstacle = _no_classes(dataset.y)
    if how.by == "groups":
        if dataset.groups is None:
            others = "partition=iid" if obstacle else "partition=dirichlet"
            raise ConfigError([f"data={dataset.name} has no natural clients: choose {others}, or data=shakespeare"])
        return dataset.groups.numpy()
    if how.by == "labels" and obstacle is not None:
        natural = "partition=natural, " * (dataset.groups is not None)
        raise ConfigError(
            [
                f"data={dataset.name} has no class for each example ({obstacle}), which {how} goes by: "
                f"choose {natural}partition=iid, or partition=quantity_skew"
            ]
        )
    return dataset.y.numpy() if how.by in ("labels", "targets") else _zeros(dataset)


def label_histogram(clients: Clients, labels: Tensor, classes: int) -> np.ndarray:
    """int64 [clients, classes]: how many examples of each class a client has (train, val and test together).

    labels: those of the whole training pool, [N]; of sequences [N, T], and then every character counts. Raises DataError if
    they are real numbers.
    """
    if labels.is_floating_point():
        raise DataError("there is no histogram of labels that are real numbers: draw one of classes")
    parts = zip(clients.train, clients.val, clients.test, strict=True)
    return np.stack([torch.bincount(labels[torch.cat(part)].flatten(), minlength=classes).numpy() for part in parts])


def save_partition(clients: Clients, labels: Tensor, path: str | Path) -> None:
    """Write who has which example, and the labels, as safetensors: three tensors [N] over the training pool.

    owner: int32, the client, or -1 for the server and for nobody. split: uint8, 0 train, 1 val, 2 test, 3 the server's
    proxy set, 4 nobody's. label: as it is, of sequences [N, T]; so the file can be drawn without the data set.
    """
    owner = torch.full((len(labels),), SERVER, dtype=torch.int32)
    split = torch.full((len(labels),), UNUSED, dtype=torch.uint8)
    for code, parts in ((TRAIN, clients.train), (VAL, clients.val), (TEST, clients.test)):
        indices = torch.cat(list(parts))
        owner[indices] = torch.repeat_interleave(
            torch.arange(len(parts), dtype=torch.int32), torch.tensor([len(part) for part in parts])
        )
        split[indices] = code
    split[clients.server] = PROXY
    save_file({"owner": owner, "split": split, "label": labels.contiguous()}, path)


def load_partition(path: str | Path) -> tuple[Clients, Tensor]:
    """What `save_partition` wrote: the clients and the labels. Raises DataError for a missing or damaged file."""
    try:
        tensors = load_file(path)
        owner, split, labels = (tensors[name] for name in ("owner", "split", "label"))
    except (OSError, SafetensorError, KeyError) as failure:
        raise DataError(f"{path} is not a saved partition ({failure}): run again to write it anew.") from failure
    clients = int(owner.max()) + 1
    train, val, test = (_owned(owner, split == code, clients) for code in (TRAIN, VAL, TEST))
    return Clients(train, val, test, torch.nonzero(split == PROXY)[:, 0]), labels


def _owned(owner: Tensor, wanted: Tensor, clients: int) -> tuple[Tensor, ...]:
    indices = torch.nonzero(wanted)[:, 0]
    order = torch.argsort(owner[indices], stable=True)
    return torch.split(indices[order], torch.bincount(owner[indices], minlength=clients).tolist())


def _check_numbers(clients: int, proxy: int, examples: int) -> None:
    if clients < 1:
        raise ConfigError([f"federated.clients={clients} is no number of clients: type a whole number from 1"])
    if not 0 <= proxy < examples:
        raise ConfigError(
            [f"where.proxy={proxy} examples cannot be held back for the server from {examples}: choose 0 to {examples - 1}"]
        )


def _draw(labels: np.ndarray, how: Partition, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    needed = how.needed
    if clients * needed > len(labels) and how.by != "groups":  # natural clients are counted by themselves
        raise DataError(
            f"partition {how}: {clients} clients with at least {needed} examples each need {clients * needed}, "
            f"and there are {len(labels)}. {_remedies(how, needed, '')}"
        )
    best: list[np.ndarray] = []
    for _ in range(DRAWS):
        parts = how(labels, clients, rng)
        if min(map(len, parts)) >= needed:
            return parts
        best = max(best, parts, key=lambda candidate: min(map(len, candidate), default=-1))
    raise DataError(_too_few(how, needed, [len(part) for part in best]))


def _too_few(how: Partition, needed: int, sizes: list[int]) -> str:
    poorest = int(np.argmin(sizes))
    return (
        f"partition {how}: {sum(size < needed for size in sizes)} of {len(sizes)} clients get fewer than {needed} examples "
        f"in the best of {DRAWS} draws; client {poorest} gets {sizes[poorest]}. {_remedies(how, needed, how.remedy)}"
    )


def _remedies(how: Partition, needed: int, evener: str) -> str:
    fewer = (
        f"lower partition.min_examples={needed}" if needed == how.min_examples else "set partition.val=0 or partition.test=0"
    )
    return "Try one of: " + ", ".join(filter(None, [evener, "lower federated.clients", fewer])) + "."


def _split(part: np.ndarray, how: Partition) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(train, val, test) of a client's shuffled examples."""
    _, val, test = how.split(len(part))
    return part[val + test :], part[:val], part[val : val + test]


def _ascending(indices: np.ndarray) -> Tensor:
    # The order carries no meaning (batches shuffle); sorted, a saved partition is read back as it was.
    return torch.from_numpy(np.sort(indices).astype(np.int64))
