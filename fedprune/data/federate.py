"""Each client's own train, validation and test examples, as indices into the data set's training pool."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fedprune.data.datasets import Dataset
from fedprune.data.divide import ascending, stratified
from fedprune.data.own.users import too_few
from fedprune.data.partition import Division
from fedprune.errors import ConfigError, DataError
from fedprune.randomness import numpy_stream
from fedprune.storage import digest
from fedprune.storage.checkpoint import write_tensors
from fedprune.storage.origin import another_run
from fedprune.types import SERVER

log = logging.getLogger(__name__)

TRAIN, VAL, TEST, PROXY, UNUSED = range(5)
"""The codes of `split` in partition.safetensors."""


@dataclass(frozen=True, eq=False)
class Clients:
    """The training examples of every client: int64 index tensors into Dataset.x, each in ascending order.

    train, val, test: one tensor per client. server: the proxy set that the server holds back; may be empty. evaluated: the
    clients that are evaluated on their own parts (None: all). disjoint: whether no example has two owners. unseen: the clients
    that are in no cohort, in ascending order.
    """

    train: Sequence[Tensor]
    val: Sequence[Tensor]
    test: Sequence[Tensor]
    server: Tensor
    evaluated: tuple[int, ...] | None = None
    disjoint: bool = True
    unseen: tuple[int, ...] = ()

    @property
    def parts(self) -> dict[str, Sequence[Tensor]]:
        """Return the parts by name: train, val and test; and `unseen`, the test parts of unseen clients."""
        return {"train": self.train, "val": self.val, "test": self.test, "unseen": self.test}

    def evaluated_on(self, part: str) -> Sequence[int]:
        """Return the clients that are evaluated on this part of theirs."""
        return self.newcomers if part == "unseen" else self.seen

    @functools.cached_property
    def seen(self) -> Sequence[int]:
        """Return the clients that are evaluated on their own validation and test parts: none of the unseen."""
        if not self.unseen:
            return self._evaluated
        unseen = {*self.unseen}
        return tuple(client for client in self._evaluated if client not in unseen)

    @functools.cached_property
    def newcomers(self) -> Sequence[int]:
        """Return the unseen clients that are evaluated on their own test parts."""
        evaluated = self._evaluated if self.evaluated is None else {*self.evaluated}
        return tuple(client for client in self.unseen if client in evaluated)

    @property
    def _evaluated(self) -> Sequence[int]:
        return range(len(self.train)) if self.evaluated is None else self.evaluated


def federate(
    dataset: Dataset,
    how: Division,
    clients: int,
    seed: int,
    proxy: int = 0,
    evaluated: int | None = None,
    unseen: tuple[int, ...] = (),
) -> Clients:
    """Return the clients' data: a function of the arguments and of nothing else.

    First `proxy` examples are held back for the server, each class (of text: each group) in its share. `how` divides the rest.
    If there are more than `evaluated` clients, so many are drawn to be evaluated on their own parts (None: all are). unseen:
    the clients that are in no cohort.

    Raises ConfigError if `clients` or `proxy` is not a possible number, DataError if the data cannot be divided as asked.
    """
    _check_numbers(clients, proxy, len(dataset.y))
    labels = _goes_by(dataset, how)
    server = stratified(_strata(dataset), proxy, numpy_stream(seed, "proxy"))
    pool = np.delete(np.arange(len(labels)), server)
    poor = too_few(labels[pool], dataset.users, how) if how.by == "groups" else None
    try:
        train, val, test = how.divide(labels, pool, clients, seed)
    except DataError as error:
        raise DataError(f"{error}; {poor}" if poor else str(error)) from error
    if poor:
        log.warning("data=%s: %s", dataset.name, poor)
    return Clients(train, val, test, ascending(server), _evaluated(clients, evaluated, seed), how.disjoint, unseen)


def _evaluated(clients: int, number: int | None, seed: int) -> tuple[int, ...] | None:
    if number is None or clients <= number:
        return None
    return tuple(sorted(numpy_stream(seed, "evaluated").choice(clients, size=number, replace=False).tolist()))


def _strata(dataset: Dataset) -> np.ndarray:
    """Return the strata of which a draw has its share: classes; the groups if examples have no class; else a single one."""
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


def _goes_by(dataset: Dataset, how: Division) -> np.ndarray:
    """Return the rows that the partition goes by, one per training example. Raises ConfigError if the data set has none."""
    obstacle = _no_classes(dataset.y)
    if how.by == "groups":
        if dataset.groups is None:
            others = "partition=iid" if obstacle else "partition=dirichlet"
            raise ConfigError(
                [
                    f"data={dataset.name} has no natural clients (data=table and data=image_folder have them by data.users): "
                    f"choose {others}, or data=shakespeare or data=watch"
                ]
            )
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
    """Return the number of examples of each class that each client has in all its parts, int64 [clients, classes].

    labels: those of the whole training pool, [N]; of sequences [N, T], and then every character counts. Raises DataError if
    they are real numbers.
    """
    if labels.is_floating_point():
        raise DataError("there is no histogram of labels that are real numbers: draw one of classes")
    parts = zip(clients.train, clients.val, clients.test, strict=True)
    return np.stack([torch.bincount(labels[torch.cat(part)].flatten(), minlength=classes).numpy() for part in parts])


def save_partition(clients: Clients, labels: Tensor, path: str | Path, run: str = "") -> None:
    """Write the owner of each example, and the labels, as safetensors: three tensors [N] over the training pool.

    owner: int32, the client, or -1 for the server and for nobody. split: uint8, 0 train, 1 val, 2 test, 3 the server's
    proxy set, 4 nobody's. label: as it is, of sequences [N, T]; with it the file can be drawn without the data set. run: the id
    of the run, in the metadata.
    """
    owner = torch.full((len(labels),), SERVER, dtype=torch.int32)
    split = torch.full((len(labels),), UNUSED, dtype=torch.uint8)
    for code, parts in ((TRAIN, clients.train), (VAL, clients.val), (TEST, clients.test)):
        indices = torch.cat(list(parts))
        sizes = torch.tensor([len(part) for part in parts])
        owner[indices] = torch.repeat_interleave(torch.arange(len(parts), dtype=torch.int32), sizes)
        split[indices] = code
    split[clients.server] = PROXY
    write_tensors({"owner": owner, "split": split, "label": labels}, {"run": run}, Path(path))


def load_partition(path: str | Path) -> tuple[Clients, Tensor]:
    """Return (clients, labels) as `save_partition` wrote them. Raises DataError for a missing or damaged file."""
    try:
        digest.check(Path(path))
        tensors = load_file(path)
        owner, split, labels = (tensors[name] for name in ("owner", "split", "label"))
        with safe_open(path, "pt") as file:
            if problem := another_run(Path(path).parent, (file.metadata() or {}).get("run")):
                raise ValueError(problem)
    except (OSError, SafetensorError, KeyError, ValueError) as failure:
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
