"""The job of the benchmark: FedAvg on Fashion-MNIST, 100 clients, Dirichlet 0.5, 10 per round, one local epoch, batch 32.

All contestants train the same clients in every round, each on the same batches in the same order, from the same parameters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from fedprune import run_id
from fedprune.config import CONF
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from fedprune.federated.sampling import cohort
from fedprune.randomness import torch_stream

MODELS = ("lenet5", "lenet_300_100", "cnn_fedavg")
CLIENTS, COHORT = 100, 10
BATCH, LR, MOMENTUM = 32, 0.05, 0.9


def configuration(model: str, density: float) -> DictConfig:
    """The job, as a user would type it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "config",
            [
                *("data=fashion_mnist", f"model={model}", "partition=dirichlet", "partition.alpha=0.5"),
                *(f"federated.clients={CLIENTS}", f"federated.cohort={COHORT}", "local.epochs=1", f"local.batch_size={BATCH}"),
                *(f"local.optimizer.lr={LR}", f"local.optimizer.momentum={MOMENTUM}", "rounds=1000000", "eval_every=1000000"),
                *("when=before_training", "how_often=one_shot", f"density={density}", "logger=none", "device=cpu"),
            ],
        )


def experiment(model: str, density: float) -> Experiment:
    """The job as fedprune has it."""
    return build(configuration(model, density), dict.fromkeys(run_id.GROUPS, "") | {"rewind": "none"})


@dataclass(frozen=True, eq=False)
class Job:
    """inputs: float32 [N, C, H, W], normalised; labels: int64 [N]. begin: float32, all parameters before the first round, end
    to end. orders: by round and client, the one with the most first, what it trains on in this order, int64 [n]. limit: how
    many batches of that a client takes at most (None: all)."""

    model: str
    inputs: Tensor
    labels: Tensor
    begin: Tensor
    orders: Sequence[Sequence[Tensor]]
    limit: int | None = None

    def steps(self, number: int) -> int:
        """How many steps the clients of a round take together."""
        return sum(-(-len(order) // BATCH) for order in self.orders[number])

    def write(self, folder: Path) -> None:
        """What peers/given.py reads."""
        ends = np.cumsum([len(order) for orders in self.orders for order in orders]).reshape(len(self.orders), -1)
        order = torch.cat([order for orders in self.orders for order in orders])
        arrays = {"inputs": self.inputs, "labels": self.labels, "begin": self.begin, "order": order, "ends": ends}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", np.asarray(array))
        given = {"model": self.model, "batch": BATCH, "lr": LR, "momentum": MOMENTUM, "limit": self.limit}
        (folder / "job.json").write_text(json.dumps(given), encoding="utf-8")


def job_of(made: Experiment, model: str, rounds: int) -> Job:
    """What an experiment is going to do in its first rounds, down to the order of its batches."""
    dataset, seed, orders = made.dataset, made.config.seed, []
    for number in range(rounds):
        parts = {client: made.clients.train[client] for client in cohort(seed, number, CLIENTS, COHORT)}
        drawn = [
            part[torch.randperm(len(part), generator=torch_stream(seed, "batches", number, client))]
            for client, part in parts.items()
        ]
        orders.append(sorted(drawn, key=len, reverse=True))
    begin = torch.nn.utils.parameters_to_vector(made.net.parameters()).detach()
    return Job(model, dataset.normalise(dataset.x), dataset.y, begin, orders)
