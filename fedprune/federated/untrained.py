"""Tensors that no client trains: of layers with requires_grad=False, and BatchNorm's statistics if federated.batchnorm=frozen.

Such tensors are the same throughout a run, whatever it prunes or rewinds, so they go down once, to each client that has not got
them yet (State.reached says who has), and never come up. Those that a mask covers (what.frozen=true, or whose.by=width, which
cuts every tensor) change with the mask, and travel like all others. A worker has them from its beginning, for those of its
clients that have them.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from fedprune.local.train import is_batchnorm
from fedprune.tensors import tensors_of


def untrained_names(net: nn.Module, batchnorm: str, others: Collection[str]) -> tuple[str, ...]:
    """Return the names of the tensors that no client trains, in the network's order. others: those that do not count."""
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    if batchnorm == "frozen":
        layers = {name for name, layer in net.named_modules() if is_batchnorm(layer)}
        frozen |= {name for name, _ in net.named_buffers() if name.rpartition(".")[0] in layers}
    return tuple(name for name in tensors_of(net) if name in frozen and name not in others)
