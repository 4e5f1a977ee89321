"""The data of one party of a federation, in a file of its own: a client's examples, or the server's test set.

A file is safetensors. Its metadata say what all parties have to agree on: the shape and type of an example, the number of
classes, and the mean and standard deviation by which inputs are normalised.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedprune.data.datasets import Dataset
from fedprune.data.divide import Parts
from fedprune.data.federate import Clients
from fedprune.data.partition import Division
from fedprune.errors import ConfigError, DataError
from fedprune.storage import digest
from fedprune.storage.checkpoint import write_tensors

PARTS = ("train", "val", "test")
SERVER_FILE = "server.safetensors"
AGREED = ("name", "classes", "mean", "std")
"""The keys of a file's metadata that every party has alike."""

Examples = tuple[Tensor, Tensor]
"""(x, y)."""


def client_file(client: int) -> str:
    """Return the name of a client's file in the folder that `split` writes."""
    return f"client_{client}.safetensors"


def save_client(path: Path, client: int, like: Dataset, parts: Sequence[Examples]) -> None:
    """Write a client's own examples. parts: those to train on, to validate on and to test on; the last two may be empty. like:
    a data set with the name, classes, mean and std on which all parties agree; its examples are not written."""
    tensors = dict[str, Tensor]()
    for part, (x, y) in zip(PARTS, parts, strict=True):
        tensors |= {f"{part}_x": x, f"{part}_y": y}
    _save(tensors, like, {"client": client}, path)


def save_server(path: Path, like: Dataset) -> None:
    """Write the server's own examples: the test set of a data set."""
    _save({"test_x": like.test_x, "test_y": like.test_y}, like, {}, path)


def _save(tensors: dict[str, Tensor], like: Dataset, more: dict[str, int], path: Path) -> None:
    facts = {"name": like.name, "classes": like.classes, "mean": like.mean, "std": like.std} | more
    write_tensors(tensors, {"fedprune": json.dumps(facts)}, path)


def split(dataset: Dataset, clients: Clients, folder: Path) -> list[Path]:
    """Write a data set as one file for the server and one for each client, and return their paths.

    Raises DataError for data that no such file holds.
    """
    if type(dataset) is not Dataset:
        raise DataError(f"data={dataset.name} is no plain set of examples, and cannot be split into files: choose data=digits")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / SERVER_FILE, *(folder / client_file(client) for client in range(len(clients.train)))]
    save_server(paths[0], dataset)
    for client, path in enumerate(paths[1:]):
        parts = [(dataset.x[part[client]], dataset.y[part[client]]) for part in (clients.train, clients.val, clients.test)]
        save_client(path, client, dataset, parts)
    return paths


@dataclass(frozen=True)
class LocalData:
    """The content of a file. client: whose it is (None: the server's). sizes: of the client's train, val and test part."""

    dataset: Dataset
    client: int | None
    sizes: tuple[int, int, int]

    @property
    def agreed(self) -> dict[str, object]:
        """Return what all parties of a federation have to have alike."""
        d = self.dataset
        kinds = {"shape": list(d.shape), "inputs": str(d.x.dtype), "labels": [str(d.y.dtype), *d.y.shape[1:]]}
        return {"classes": d.classes, "mean": list(d.mean), "std": list(d.std)} | kinds


def read(path: Path) -> LocalData:
    """Return a file's content. A client's examples are its training pool, part after part; the server's test set is also its
    training pool, on which a composition is rehearsed before the first round. Raises DataError."""
    try:
        digest.check(path)
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["fedprune"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        whole = functools.partial(Dataset, classes=int(facts["classes"]), mean=tuple(facts["mean"]), std=tuple(facts["std"]))
        name, client = str(facts["name"]), facts.get("client")
        test_x, test_y = tensors["test_x"], tensors["test_y"]
        if client is None:
            return LocalData(whole(name, test_x, test_y, test_x, test_y), None, (0, 0, len(test_y)))
        x, y = (torch.cat([tensors[f"{part}_{of}"] for part in PARTS]) for of in "xy")
        train, val, test = (len(tensors[f"{part}_y"]) for part in PARTS)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as failure:
        raise DataError(
            f"data.local={path} is not a file of a party of a federation ({type(failure).__name__}: {failure}): write one with "
            "python -m fedprune.deployment split FOLDER, or with fedprune.deployment.local_data.save_client"
        ) from failure
    return LocalData(whole(name, x, y, x[:0], y[:0]), int(client), (train, val, test))


def party(local: str) -> Dataset:
    """Return the data set of one party, from its file `local`. Raises DataError."""
    return read(Path(local).expanduser()).dataset


@dataclass(frozen=True)
class Declared(Division):
    """Clients that have their data already. Each says how many examples it has of each part.

    sizes: (train, val, test) of each client. own: the client whose examples this party has (None: the server). Of other clients
    a party has the numbers alone; in the place of their examples stand its own, in a cycle, on which a composition is rehearsed
    before the first round. No party trains for another one (see node.py and executor.py).
    """

    by: ClassVar[str] = "nothing"
    disjoint: ClassVar[bool] = False  # not to be saved: the parties do not tell which examples they have

    sizes: tuple[tuple[int, int, int], ...] = ()
    own: int | None = None

    def divide(self, labels: np.ndarray, pool: np.ndarray, clients: int, seed: int) -> Parts:
        """Return the positions of each client's examples in this party's pool. Raises ConfigError."""
        if len(self.sizes) != clients:
            raise ConfigError([f"partition.sizes is of {len(self.sizes)} clients, and federated.clients={clients}"])
        if len(pool) != len(labels):
            raise ConfigError(["where.proxy: in a federation of Flower the server has no proxy set: choose where=cohort"])
        parts = [self._parts(client, len(pool)) for client in range(clients)]
        train, val, test = ([part[number] for part in parts] for number in range(3))
        return train, val, test

    def _parts(self, client: int, examples: int) -> list[Tensor]:
        sizes = self.sizes[client]
        if client == self.own and sum(sizes) != examples:
            raise ConfigError([f"partition.sizes: client {client} has {examples} examples, and is said to have {sum(sizes)}"])
        return [part % examples for part in torch.arange(sum(sizes)).split(list(sizes))]
