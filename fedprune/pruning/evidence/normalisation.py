"""The normalisation that takes in a layer's outputs directly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedprune.plain_layers import is_plain
from fedprune.pruning.evidence.network import Call, Network, blank, calls, owners
from fedprune.tensors import tensors_of, tied_parameter

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)

SCALED = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
"""Normalisations that multiply by their weight. A subclass may do something else with it, such as 1 + weight."""


def normalised(network: Network, names: tuple[str, ...]) -> dict[str, str]:
    """Return the normalisation with a scale that takes in the outputs of the layer of each name, where there is one."""
    names = tuple(name for name in names if not tied_parameter(network.net, (name,)))  # of several layers, nothing follows all
    layers = owners(network.net, names)
    norms = {name: norm for name, norm in normalisations(network.net).items() if is_plain(norm, SCALED)}
    with torch.no_grad(), calls(layers | norms) as seen:
        network.run(tensors_of(network.net), blank(network.net, network.shape))
    return followers(seen, names, tuple(norms))


def normalisations(net: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that scale each unit by a parameter, by name."""
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, NORMS) and layer.weight is not None}


def followers(seen: Mapping[str, list[Call]], names: tuple[str, ...], norms: tuple[str, ...]) -> dict[str, str]:
    """Return which of `norms` takes in exactly the outputs of the layer of a name, where there is one."""
    makers = {id(call.passed): name for name in names for call in seen[name]}
    pairs = ((makers.get(id(call.inputs)), norm) for norm in norms for call in seen[norm])
    return {name: norm for name, norm in pairs if name is not None}
