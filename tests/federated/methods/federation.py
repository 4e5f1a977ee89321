"""Federations so small that numpy can follow them: one hidden layer, a few examples for each client, full-batch steps of SGD.

`federation` makes the experiment. `train`, `accuracy` and `largest` are its numpy, which shares no code with fedprune.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from conftest import assemble
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import nn

from fedprune.build import build
from fedprune.data.client import Clients
from fedprune.data.datasets import Dataset
from fedprune.experiment import Experiment

Arrays = dict[str, NDArray]

SCALE = 4.0  # features are whole numbers from 0 to 15, divided by this

PLAIN = (
    *("logger=none", "executor=serial", "eval_every=1", "local.epochs=1", "local.batch_size=1000"),
    *("local.optimizer.lr=0.1", "local.optimizer.momentum=0.0", "federated.weighting=uniform"),
)


def examples(seed: int = 0, number: int = 60, features: int = 6, classes: int = 3) -> Dataset:
    """Features [1, 1, F], larger where the class says so, so that there is something to learn."""
    random = np.random.default_rng(seed)
    y = np.arange(number) % classes
    x = random.integers(0, 8, (number, 1, 1, features)) + 8 * (np.arange(features) % classes == y[:, None, None, None])
    images, labels = torch.from_numpy(x.astype(np.uint8)), torch.from_numpy(y)
    return Dataset("examples", images, labels, images[:9], labels[:9], classes, (0.0,), (SCALE,))


class Mlp(nn.Module):
    """F - hidden - classes, ReLU between; with hidden = 0 one linear layer."""

    def __init__(self, features: int, hidden: int, classes: int):
        super().__init__()
        if hidden:
            self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden or features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        return self.fc2(torch.relu(self.fc1(x)) if hasattr(self, "fc1") else x)


def mlp(shape: tuple[int, int, int], classes: int, hidden: int = 5) -> nn.Module:
    """What `model._target_` names."""
    return Mlp(shape[-1], hidden, classes)


def federation(
    *overrides: str,
    train: Sequence[Sequence[int]] = (range(0, 12), range(12, 30), range(30, 36)),
    val: Sequence[Sequence[int]] = (range(36, 42), range(42, 48), range(48, 51)),
    test: Sequence[Sequence[int]] = (range(51, 54), range(54, 57), range(57, 60)),
    model: Mapping[str, object] | None = None,
    cohort: int | None = None,
    **data: int,
) -> Experiment:
    """The experiment in which each client has just these examples, and all take part in every round unless `cohort` says so."""
    clients = len(train)
    numbers = (f"federated.clients={clients}", f"federated.cohort={cohort or clients}")
    config, names = assemble(*PLAIN, *numbers, *overrides)
    OmegaConf.update(config, "data", {"_target_": f"{__name__}.examples", **data}, merge=False)
    OmegaConf.update(config, "model", model or {"_target_": f"{__name__}.mlp", "hidden": 5}, merge=False)
    config.partition.min_examples = 0
    parts = (tuple(torch.tensor([*part], dtype=torch.int64) for part in parts) for parts in (train, val, test))
    return replace(build(config, names), clients=Clients(*parts, torch.empty(0, dtype=torch.int64)))


# --- the same in numpy -----------------------------------------------------------------------------------------------------


def arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    """Copies, in float64 where they are numbers."""
    return {name: t.numpy().astype(bool if t.dtype == torch.bool else float) for name, t in tensors.items()}


def inputs(experiment: Experiment, indices: torch.Tensor) -> tuple[NDArray, NDArray]:
    """(features [N, F], labels [N]) of these examples."""
    data = experiment.dataset
    return data.x[indices].numpy().reshape(len(indices), -1) / SCALE, data.y[indices].numpy()


def logits(w: Arrays, x: NDArray) -> tuple[NDArray, NDArray]:
    """(what goes into the last layer, its outputs)."""
    hidden = np.maximum(x @ w["fc1.weight"].T + w["fc1.bias"], 0) if "fc1.weight" in w else x
    return hidden, hidden @ w["fc2.weight"].T + w["fc2.bias"]


def gradient(w: Arrays, x: NDArray, y: NDArray) -> Arrays:
    """Of the mean cross-entropy, by the chain rule written out."""
    hidden, out = logits(w, x)
    p = np.exp(out - out.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    found = {"fc2.weight": p.T @ hidden, "fc2.bias": p.sum(0)}
    if "fc1.weight" in w:
        back = (p @ w["fc2.weight"]) * (hidden > 0)
        found |= {"fc1.weight": back.T @ x, "fc1.bias": back.sum(0)}
    return found


def train(w: Arrays, mask: Arrays, x: NDArray, y: NDArray, steps: int, lr: float = 0.1, momentum: float = 0.0) -> Arrays:
    """Full-batch SGD; what is dead stays zero."""
    w, v = dict(w), {name: np.zeros_like(value) for name, value in w.items()}
    for _ in range(steps):
        g = gradient(w, x, y)
        v = {name: momentum * v[name] + g[name] for name in w}
        w = {name: (w[name] - lr * v[name]) * mask.get(name, 1.0) for name in w}
    return w


def accuracy(w: Arrays, x: NDArray, y: NDArray) -> float:
    return float((logits(w, x)[1].argmax(1) == y).mean())


def largest(values: NDArray, alive: NDArray, number: int) -> NDArray:
    """The `number` largest |values| of the living, by sorting them."""
    order = np.argsort(-np.where(alive, np.abs(values), -1.0), axis=None, kind="stable")[:number]
    kept = np.zeros(values.size, bool)
    kept[order] = True
    return kept.reshape(values.shape) & alive


def held_mean(server: Arrays, updates: Sequence[tuple[Arrays, Arrays, float]]) -> Arrays:
    """sum_k a_k m_k w_k / sum_k a_k m_k, entry by entry; the server's where nobody holds it. updates: (w, mask, a)."""
    found = {}
    for name, old in server.items():
        total = sum(a * m.get(name, np.ones_like(old)) for _, m, a in updates)
        above = sum(a * m.get(name, np.ones_like(old)) * w[name] for w, m, a in updates)
        found[name] = np.where(total > 0, above / np.where(total > 0, total, 1), old)
    return found
