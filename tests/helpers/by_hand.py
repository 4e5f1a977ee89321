"""A federation for pencil and paper: two clients of one and three examples, a linear layer of three features and two classes.

The features of an example are one 1 among zeros, so that its gradient is p - y in that one column of the weights and in the
biases. p is (1/2, 1/2) where the two logits are equal. One step on all examples makes a client's round, and the server takes
the mean by examples: together a step along the gradient of the four examples in one pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp

import torch

from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from fedprune.federated.loop import FederatedLoop
from fedprune.pruning.mask import ones
from fedprune.types import Params, State, Subnet
from helpers.federation import PUBLISHED

S, T = 1 / (1 + exp(1)), 1 / (1 + exp(4))  # what the lesser of two logits gets that are 1, or 4, apart

Examples = Sequence[tuple[int | None, int]]
"""(the feature that is 1, or None where all are 0; the class) of each."""

ONE: Examples = ((0, 0),)
THREE: Examples = ((0, 1), (1, 0), (2, 1))


def two_clients(
    compose: Callable, name: str, *overrides: str, examples: tuple[Examples, Examples] = (ONE, THREE), hidden: int = 0
) -> Experiment:
    """An experiment of conf/experiment with these clients and this layer; with `hidden`, one feature and so many units."""
    fixed = ("federated.clients=2", "federated.cohort=2", "partition.min_examples=0", "local.epochs=1", "local.lr_decay=1")
    config, names = compose(f"+experiment={name}", *PUBLISHED, *fixed, *overrides)
    config.data = {"_target_": f"{__name__}.rows", "examples": [*examples[0], *examples[1]], "features": 1 if hidden else 3}
    config.model = {"_target_": "helpers.federation.mlp", "hidden": hidden}
    cut, nothing = len(examples[0]), torch.empty(0, dtype=torch.int64)
    train = torch.arange(cut + len(examples[1])).tensor_split([cut])
    return replace(build(config, names), clients=Clients(train, (nothing,) * 2, (nothing,) * 2, nothing))


def rows(examples: Examples, features: int) -> Dataset:
    """What `data._target_` names."""
    x = torch.tensor([[feature == column for column in range(features)] for feature, _ in examples]).to(torch.uint8)
    images, labels = x.view(-1, 1, 1, features), torch.tensor([label for _, label in examples])
    return Dataset("rows", images, labels, images, labels, 2, (0.0,), (1.0,))


def begun(experiment: Experiment, **weights: list) -> tuple[FederatedLoop, State]:
    """The run before its first round, from these weights: fc2_bias is what the network calls fc2.bias."""
    params: Params = {name.replace("_", "."): torch.tensor(value, dtype=torch.float32) for name, value in weights.items()}
    loop = experiment.loop(experiment.executor())
    start = loop.start()
    assert params.keys() == start.server.params.keys()
    return loop, replace(start, server=Subnet(params, ones(params, experiment.axes.what.names)), init=params, ticket=params)


def assert_weights(state: State, **weights: list) -> None:
    """The server's network is this one, as near as float32 comes to it."""
    for name, value in weights.items():
        found, expected = state.server.params[name.replace("_", ".")], torch.tensor(value, dtype=torch.float32)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")
