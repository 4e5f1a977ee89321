"""The network at each of its initialisations."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from torch import nn

from fedprune.config.instantiate import make_network
from fedprune.data.datasets import Dataset
from fedprune.federated.client import Work
from fedprune.local.memory_format import in_own_memory
from fedprune.local.regularisers.base import Regulariser, add_companions
from fedprune.randomness import torch_seed, torch_stream
from fedprune.tensors import tensors_of
from fedprune.types import Params


def initial_net(config: DictConfig, dataset: Dataset, number: int) -> nn.Module:
    """Return the network at its `number`-th independent initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(config.seed, "initialisation", number))
        return in_own_memory(make_network(config.model, dataset.shape, dataset.classes))


def fresh_params(
    config: DictConfig,
    dataset: Dataset,
    prunable: tuple[str, ...],
    regularisers: tuple[Regulariser, ...],
    work: Work,
    untrained: Params,
    number: int,
) -> Params:
    """Return the parameters and buffers of the `number`-th initialisation; what nobody trains is as the run began."""
    net = initial_net(config, dataset, number)
    work.prepare(net, prunable)
    add_companions(net, prunable, regularisers, torch_stream(config.seed, "companions", number))
    return {name: tensor.clone() for name, tensor in tensors_of(net).items()} | untrained
