"""A federation small enough to be followed in numpy: two layers, a few examples a client, plain SGD on all of them at once.

What stands below the line shares no code with fedprune: float64, no torch, one straight line.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fedprune.build import build
from fedprune.data.datasets import Dataset
from fedprune.experiment import Experiment
from fedprune.federated.sampling import cohort
from fedprune.types import State

PLAIN = (
    *("executor=serial", "logger=none", "partition=quantity_skew", "partition.min_examples=8", "partition.val=0"),
    *("partition.test=0", "federated.clients=3", "federated.cohort=3", "local.epochs=2", "local.batch_size=1000"),
    *("local.optimizer.lr=0.2", "local.optimizer.momentum=0.0", "local.optimizer.weight_decay=0.0", "eval_every=100"),
)
"""Three clients of different sizes, all of them in every round; two steps of gradient descent on all that a client has."""

RATE, STEPS = 0.2, 2


def few(root: str = "") -> Dataset:
    """90 examples of six numbers and three classes, and 12 to test on."""
    rng = np.random.default_rng(7)
    labels = np.arange(102) % 3
    centres = rng.normal(size=(3, 6))
    values = 128 + 40 * (centres[labels] + 0.7 * rng.normal(size=(102, 6)))
    x = torch.from_numpy(values.clip(0, 255).astype(np.uint8))[:, None, None]
    y = torch.from_numpy(labels)
    return Dataset("few", x[:90], y[:90], x[90:], y[90:], classes=3, mean=(128.0,), std=(40.0,))


class TwoLayers(nn.Module):
    """6 - 5 - 3 with ReLU: 45 prunable weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def two_layers(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return TwoLayers()


def federation(compose: Callable, experiment: str, *overrides: str) -> Experiment:
    """An experiment of conf/experiment on this data and network, with plain SGD."""
    config, names = compose(f"+experiment={experiment}", *PLAIN, *overrides)
    config.data = {"_target_": "numpy_federation.few", "root": ""}
    config.model = {"_target_": "numpy_federation.two_layers"}
    return build(config, names)


def played(experiment: Experiment, rounds: int) -> list[State]:
    """The states of a run: at the start, and after each round. What crossed the wire is counted as it was really encoded."""
    loop = experiment.loop(executor := _Counted(experiment.executor()))
    states = [loop.start()]
    for _ in range(rounds):
        state, metrics = loop.round(states[-1])
        assert (metrics["wire/down_bytes"], metrics["wire/up_bytes"]) == executor.counted()
        states.append(state)
    executor.close()
    return states


class _Counted:
    """An executor that adds up the lengths of the messages that it carries, both ways."""

    def __init__(self, executor) -> None:
        self.executor, self.down, self.up = executor, 0, 0

    def map(self, tasks, sizes):
        for task, answer in zip(tasks, self.executor.map(tasks, sizes), strict=True):
            if task[0] == "run":
                self.down, self.up = self.down + len(task[1][0]), self.up + len(answer[0])
            yield answer

    def counted(self) -> tuple[int, int]:
        found, self.down, self.up = (self.down, self.up), 0, 0
        return found

    def close(self, now: bool = False) -> None:
        self.executor.close(now)


def data_of(experiment: Experiment) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """(inputs [n, 6], labels [n]) of each client's training part."""
    dataset = experiment.dataset
    inputs = dataset.normalise(dataset.x).flatten(1).double().numpy()
    return {k: (inputs[part.numpy()], dataset.y[part].numpy()) for k, part in enumerate(experiment.clients.train)}


def cohort_of(experiment: Experiment, clock: int) -> tuple[int, ...]:
    """Who takes part in a round."""
    federated = experiment.config.federated
    return cohort(experiment.config.seed, clock, federated.clients, federated.cohort)


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """As float64, or as bool."""
    return {n: t.numpy().copy() if t.dtype == torch.bool else t.double().numpy().copy() for n, t in tensors.items()}


def assert_same(state: State, w: Weights, mask: Weights, atol: float = 1e-5) -> None:
    """The server's network is these weights under this mask, and its dead weights are zero."""
    for name, alive in mask.items():
        np.testing.assert_array_equal(state.server.mask[name].numpy(), alive, err_msg=f"mask of {name}")
        assert not state.server.params[name].numpy()[~alive].any()
    for name, values in w.items():
        np.testing.assert_allclose(state.server.params[name].numpy(), values, atol=atol, err_msg=name)


# --- numpy alone -------------------------------------------------------------------------------------------------------------

Weights = dict[str, np.ndarray]
PRUNABLE = ("fc1.weight", "fc2.weight")


def dense(w: Weights) -> Weights:
    """The mask of a network in which everything lives."""
    return {name: np.ones(w[name].shape, bool) for name in PRUNABLE}


def masked(w: Weights, mask: Weights) -> Weights:
    """The network with zeros where it is dead."""
    return {name: value * mask[name] if name in mask else value for name, value in w.items()}


def gradient(w: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    """Of the mean cross-entropy, by hand."""
    before = x @ w["fc1.weight"].T + w["fc1.bias"]
    hidden = np.maximum(before, 0)
    scores = hidden @ w["fc2.weight"].T + w["fc2.bias"]
    odds = np.exp(scores - scores.max(1, keepdims=True))
    slope = odds / odds.sum(1, keepdims=True)
    slope[np.arange(len(y)), y] -= 1
    slope /= len(y)
    back = (slope @ w["fc2.weight"]) * (before > 0)
    return {
        "fc1.weight": back.T @ x,
        "fc1.bias": back.sum(0),
        "fc2.weight": slope.T @ hidden,
        "fc2.bias": slope.sum(0),
    }


def descend(w: Weights, mask: Weights, x: np.ndarray, y: np.ndarray, steps: int = STEPS, rate: float = RATE) -> Weights:
    """Gradient descent on all examples; the dead stay zero."""
    for _ in range(steps):
        slope = gradient(w, x, y)
        w = masked({name: value - rate * slope[name] for name, value in w.items()}, mask)
    return w


def averaged(parts: list[Weights], sizes: list[int]) -> Weights:
    """The mean by sizes."""
    return {name: sum(size * part[name] for size, part in zip(sizes, parts, strict=True)) / sum(sizes) for name in parts[0]}


def best(scores: Weights, number: int) -> Weights:
    """The mask of the `number` highest of all layers together."""
    flat = np.concatenate([scores[name].ravel() for name in PRUNABLE])
    kept = np.zeros(len(flat), bool)
    kept[np.argsort(-flat, kind="stable")[:number]] = True
    ends = np.cumsum([scores[name].size for name in PRUNABLE])[:-1]
    return {name: part.reshape(scores[name].shape) for name, part in zip(PRUNABLE, np.split(kept, ends), strict=True)}


def best_of_layers(scores: Weights, numbers: dict[str, int]) -> Weights:
    """The mask of so many highest of each layer."""
    found = {}
    for name in PRUNABLE:
        kept = np.zeros(scores[name].size, bool)
        kept[np.argsort(-scores[name].ravel(), kind="stable")[: numbers[name]]] = True
        found[name] = kept.reshape(scores[name].shape)
    return found


def seats(weights: dict[str, float], sizes: dict[str, int], total: int) -> dict[str, int]:
    """`total` seats in proportion to the weights, one after the other to the layer whose weight / (seats + 1/2) is highest."""
    taken = dict.fromkeys(sizes, 0)
    for _ in range(total):
        open_ = [name for name in sizes if taken[name] < sizes[name]]
        taken[max(open_, key=lambda name: weights[name] / (taken[name] + 0.5))] += 1
    return taken


def erk(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Erdos-Renyi: a layer of in x out weights gets a number in proportion to in + out. Here 6 x 5 and 5 x 3: 11 to 8."""
    return seats({"fc1.weight": 11.0, "fc2.weight": 8.0}, sizes, total)


SIZES = {"fc1.weight": 30, "fc2.weight": 15}
