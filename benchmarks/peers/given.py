"""What the benchmark writes down for its peers (job.py there writes it), and how a peer takes turns with the others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Client, Connection
from pathlib import Path

import numpy as np
import torch
from networks import NETWORKS
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Given:
    """limit: how many batches a client takes at most (None: all). inputs: float32 [N, 1, 28, 28], normalised. labels: int64
    [N]. begin: float32, all parameters before the first round, end to end. order: int64, what all clients of all rounds train
    on, end to end. ends: where each client's part ends, int64 [rounds, clients of a round], the client with the most first."""

    model: str
    batch: int
    lr: float
    momentum: float
    limit: int | None
    inputs: Tensor
    labels: Tensor
    begin: Tensor
    order: Tensor
    ends: np.ndarray

    def indices(self, number: int, place: int) -> Tensor:
        """What a client of a round trains on, in this order: examples [n]."""
        which = number * self.ends.shape[1] + place
        ends = self.ends.ravel()
        return self.order[ends[which - 1] if which else 0 : ends[which]]

    def examples(self, number: int) -> list[int]:
        """How many examples each client of a round trains on."""
        return [len(self.indices(number, place)) for place in range(self.ends.shape[1])]

    def net(self) -> nn.Module:
        """The network before the first round."""
        net = NETWORKS[self.model]()
        torch.nn.utils.vector_to_parameters(self.begin.clone(), net.parameters())
        return net


def read(folder: str) -> Given:
    """What lies in `folder`; tensors are mapped from their files, so that processes share them."""
    arrays = {name: np.load(Path(folder) / f"{name}.npy", mmap_mode="c") for name in ("inputs", "labels", "begin", "order")}
    return Given(
        **json.loads((Path(folder) / "job.json").read_text(encoding="utf-8")),
        **{name: torch.from_numpy(array) for name, array in arrays.items()},
        ends=np.load(Path(folder) / "ends.npy"),
    )


def connect() -> Connection:
    """The line to the benchmark, which says whose turn it is."""
    return Client(os.environ["BENCHMARK_ADDRESS"], "AF_UNIX")


def my_turn(line: Connection, parameters: Callable[[], np.ndarray], *packages: str) -> bool:
    """Say that a round is done (or that all is ready), and wait. Returns True to train the next one, False to stop.

    parameters: the network after this round, float32, end to end; it is asked for while no clock runs. packages: whose versions
    the benchmark is told.
    """
    line.send({name: version(name) for name in packages})
    while (word := line.recv()) == "parameters":
        line.send_bytes(np.ascontiguousarray(parameters()))
    return word == "train"
