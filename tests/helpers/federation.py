"""Federations so small that numpy can follow them: one hidden layer, a few examples for each client, full-batch steps of SGD.

`federation` makes an experiment of clients with just these examples, `published` one of conf/experiment. What they should come
to is worked out by in_numpy.py, which shares no code with fedprune.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import nn

from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients
from fedprune.experiment import build as builder
from fedprune.experiment import ground
from fedprune.experiment.experiment import Experiment
from fedprune.federated.sampling import cohort as drawn
from fedprune.pruning.mask import unpack
from fedprune.types import Mask, State
from fedprune.wire.frame import length
from helpers.composed import assemble
from helpers.in_numpy import RATE, STEPS, Arrays

SCALE = 4.0  # features are whole numbers from 0 to 15, divided by this

PUBLISHED = (
    *("executor=serial", "logger=none", "partition=quantity_skew", "partition.min_examples=8", "partition.val=0"),
    *("partition.test=0", "federated.clients=3", "federated.cohort=3", f"local.epochs={STEPS}", "local.batch_size=1000"),
    *(f"local.optimizer.lr={RATE}", "local.optimizer.momentum=0.0", "local.optimizer.weight_decay=0.0", "eval_every=100"),
)
"""Three clients of different sizes, all of them in every round; two steps of gradient descent on all that a client has."""

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


def spread() -> Dataset:
    """90 examples of six numbers and three classes, and 12 to test on, spread widely enough that no two scores tie."""
    rng = np.random.default_rng(7)
    labels = np.arange(102) % 3
    centres = rng.normal(size=(3, 6))
    values = 128 + 40 * (centres[labels] + 0.7 * rng.normal(size=(102, 6)))
    x = torch.from_numpy(values.clip(0, 255).astype(np.uint8))[:, None, None]
    y = torch.from_numpy(labels)
    return Dataset("spread", x[:90], y[:90], x[90:], y[90:], 3, (128.0,), (40.0,))


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
    parts = (tuple(torch.tensor([*part], dtype=torch.int64) for part in parts) for parts in (train, val, test))
    with pytest.MonkeyPatch.context() as patch:
        those = Clients(*parts, torch.empty(0, dtype=torch.int64))
        patch.setattr(ground, "federate", lambda *_: those)
        return builder.build(config, names)


def published(compose: Callable, name: str, *overrides: str) -> Experiment:
    """An experiment of conf/experiment with plain SGD on 90 examples in parts of different sizes, and the network 6 - 5 - 3."""
    config, names = compose(f"+experiment={name}", *PUBLISHED, *overrides)
    config.data = {"_target_": f"{__name__}.spread"}
    config.model = {"_target_": f"{__name__}.mlp", "hidden": 5}
    return builder.build(config, names)


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
                self.down, self.up = self.down + length(task[1][0]), self.up + length(answer[0])
            yield answer

    def counted(self) -> tuple[int, int]:
        found, self.down, self.up = (self.down, self.up), 0, 0
        return found

    def close(self, now: bool = False) -> None:
        self.executor.close(now)


def arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    """Copies, in float64 where they are numbers."""
    return {name: t.numpy().astype(bool if t.dtype == torch.bool else float) for name, t in tensors.items()}


def inputs(experiment: Experiment, indices: torch.Tensor) -> tuple[NDArray, NDArray]:
    """(features [N, F], labels [N]) of these examples."""
    data = experiment.dataset
    (mean,), (std,) = data.mean, data.std
    return (data.x[indices].numpy().reshape(len(indices), -1) - mean) / std, data.y[indices].numpy()


def data_of(experiment: Experiment) -> dict[int, tuple[NDArray, NDArray]]:
    """(features [N, F], labels [N]) of each client's training part."""
    return {k: inputs(experiment, part) for k, part in enumerate(experiment.clients.train)}


def cohort_of(experiment: Experiment, clock: int) -> tuple[int, ...]:
    """Who takes part in a round."""
    federated = experiment.config.federated
    return drawn(experiment.config.seed, clock, federated.clients, federated.cohort)


def assert_same(state: State, w: Arrays, mask: Arrays, atol: float = 1e-5) -> None:
    """The server's network is these weights under this mask, and its dead weights are zero."""
    for name, alive in mask.items():
        np.testing.assert_array_equal(state.server.mask[name].numpy(), alive, err_msg=f"mask of {name}")
        assert not state.server.params[name].numpy()[~alive].any()
    for name, values in w.items():
        np.testing.assert_allclose(state.server.params[name].numpy(), values, atol=atol, err_msg=name)


def assert_personal(state: State, masks: Mapping[int, Arrays], events: Mapping[int, int]) -> None:
    """Just these clients have masks of their own, these ones, after so many events each."""
    assert {client: own.events for client, own in state.personal.items()} == events
    assert masks.keys() == events.keys()
    for client, found in masks_of(state).items():
        assert found.keys() == masks[client].keys()
        for name, alive in found.items():
            np.testing.assert_array_equal(alive.numpy(), masks[client][name], err_msg=f"{name} of client {client}")


def masks_of(state: State) -> dict[int, Mask]:
    """The masks that clients have for themselves."""
    shapes = {name: alive.shape for name, alive in state.server.mask.items()}
    return {client: unpack(own.mask, shapes) for client, own in state.personal.items()}
