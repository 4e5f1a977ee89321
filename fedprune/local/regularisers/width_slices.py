"""Width slices: the leading units of every hidden layer, as a mask of all tensors. Diao et al. 2021 (HeteroFL), section 3.

leading: (network, capacity) -> Mask. Of a hidden layer with n units the first ceil(capacity x n) live; an input of a layer
lives if a living unit or the data feeds it; the output layer keeps all of its units. The tensors of a unit go with it: its
bias, and the entries of the normalisation of its layer. So the masked network computes what the smaller one computes, the
slices of all capacities nest, and as many entries live as the smaller network has.

Which inputs a unit feeds (through flattening, pooling, residual additions) is found by running the network, see
pruning/connectivity.
"""

from __future__ import annotations

import functools
import math
from typing import cast

import torch
from torch import Tensor, nn

from fedprune.errors import Incompatible
from fedprune.plain_layers import is_plain
from fedprune.pruning.connectivity import effective, unfollowed
from fedprune.pruning.evidence.gates import is_companion
from fedprune.pruning.evidence.network import Network, batch_or
from fedprune.pruning.evidence.normalisation import normalised
from fedprune.pruning.what.layer_order import LayerOrder, by_definition
from fedprune.pruning.what.layers import CHANNELLED, LAYERS, prunable
from fedprune.tensors import tensors_of, tied_parameter
from fedprune.types import Mask

CUT = tuple(kind for name in CHANNELLED for kind in LAYERS[name])
"""The classes of layers that have units to cut."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm)
INSTEAD = "choose whose.by=magnitude"


@functools.lru_cache(maxsize=256)
def leading(network: Network, capacity: float) -> Mask:
    """Return the slice of all tensors that have units, in the order of the network's. Raises Incompatible, naming the layers,
    for a network with other layers, or one of which leading units are no slice."""
    _check(network)
    weights = _weights(network, capacity)
    rows = {name: _any(alive, 0) for name, alive in weights.items()}
    units = {name.removesuffix(".weight"): alive for name, alive in rows.items()} | _norms(network, rows)
    mask: Mask = {}
    for name, tensor in tensors_of(network.net).items():
        layer, weight = name.rpartition(".")[0], _weight_of(name)
        if layer in units and tensor.dim() > 0:
            mask[name] = weights[weight] if weight in weights else units[layer]
    return mask


def _check(network: Network) -> None:
    problems = _unknown(network.net)
    problem = "" if problems else unfollowed(network.net, network.shape)
    if problem:
        problems = [f"whose.by=width: {problem}: {INSTEAD}"]
    if problems:
        raise Incompatible(*problems)


def width(units: int, capacity: float) -> int:
    """Return how many of a layer's units a capacity has: ceil(capacity x units), guarded against float error; at least 1."""
    return max(1, math.ceil(capacity * units - 1e-9))


def output_layers(net: nn.Module, order: LayerOrder | None = None) -> tuple[str, ...]:
    """Return the weights of the layers whose units are the network's outputs: the last to run on the way to each of them.
    order: None: layers run as they are defined."""
    layers = prunable(net)
    return (order or by_definition(layers)).last([weight for weights in layers.values() for weight in weights])


def sliced(net: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that have units to cut, by the name of their weight, in the order of definition."""
    return {f"{name}.weight": layer for name, layer in net.named_modules() if isinstance(layer, CUT)}


def ungrouped(layer: nn.Module) -> bool:
    """Return whether each unit of a layer reads all inputs: whether it is no grouped convolution."""
    return not isinstance(layer, nn.modules.conv._ConvNd) or layer.groups == 1


def _weight_of(name: str) -> str:
    """Return the weight that a companion belongs to, whose shape it has; any other name as it is."""
    return f"{name.rpartition('.')[0]}.weight" if is_companion(name) else name


def _weights(network: Network, capacity: float) -> Mask:
    """Return the mask of the weights of all layers: living units x living inputs."""
    asked = _living_units(network, capacity)
    reached = effective(network.net, asked, network.shape)
    cut = {name: _box(alive) for name, alive in reached.items()}
    wrong = [name for name, alive in cut.items() if not _is_slice(alive, reached[name], asked[name])]
    if wrong:
        layers = ", ".join(name.removesuffix(".weight") for name in wrong)
        raise Incompatible(f"whose.by=width: what is left of {layers} would be no leading slice: {INSTEAD}")
    return cut


def _living_units(network: Network, capacity: float) -> Mask:
    """Return the mask of the weights in which living units read all of their inputs."""
    outputs, masks = output_layers(network.net, network.order), {}
    for name, layer in sliced(network.net).items():
        weight = cast(Tensor, layer.weight)
        living = len(weight) if name in outputs else width(len(weight), capacity)
        alive = torch.arange(len(weight)) < living
        masks[name] = alive.view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape)
    return masks


def _box(reached: Tensor) -> Tensor:
    """Return units x inputs that anything passes through, with all places of a kernel (some may only ever see padding)."""
    rows, columns = _any(reached, 0), _any(reached, 1)
    return (rows[:, None] & columns).view(*reached.shape[:2], *[1] * (reached.dim() - 2)).expand(reached.shape).contiguous()


def _is_slice(box: Tensor, reached: Tensor, asked: Tensor) -> bool:
    """Return whether its units are those asked for, its inputs are the first ones, and each unit reads all of them."""
    columns = _any(box, 1)
    whole = torch.equal(box.flatten(2).any(2), reached.flatten(2).any(2)) if box.dim() > 2 else torch.equal(box, reached)
    return torch.equal(_any(box, 0), _any(asked, 0)) and bool(columns[: int(columns.sum())].all()) and whole


def _any(alive: Tensor, dim: int) -> Tensor:
    return alive.transpose(0, dim).flatten(1).any(1)


def _norms(network: Network, rows: Mask) -> Mask:
    """Return the living channels of each normalisation. Raises Incompatible for one that would mix them with dead ones."""
    channels = {norm: rows[name] for name, norm in normalised(network, tuple(rows)).items()}
    problems = []
    for name, layer in network.net.named_modules():
        if not is_plain(layer, NORMS) or next(layer.parameters(recurse=False), None) is None:
            continue
        if name not in channels:
            problems.append(f"whose.by=width: {name} normalises what is no layer's own output: {INSTEAD}")
        elif isinstance(layer, nn.GroupNorm) and int(channels[name].sum()) % (layer.num_channels // layer.num_groups):
            problems.append(
                f"whose.by=width: {int(channels[name].sum())} channels are no whole number of the groups of {name}: "
                f"choose {batch_or(network.net)}whose.by=magnitude"
            )
    if problems:
        raise Incompatible(*problems)
    return channels


def _unknown(net: nn.Module) -> list[str]:
    """Return the problems with layers that have parameters but no units to cut, or that cannot be cut by themselves."""
    tied = tied_parameter(net, (name for name, _ in net.named_parameters()))
    problems = [f"whose.by=width cuts each layer by itself, and {tied}: {INSTEAD}"] if tied else []
    for name, layer in net.named_modules():
        owns_parameters = next(layer.parameters(recurse=False), None) is not None
        if owns_parameters and not (is_plain(layer, (*CUT, *NORMS)) and ungrouped(layer)):
            problems.append(
                f"whose.by=width slices linear and convolutional layers with their normalisation, and {name} is a "
                f"{type(layer).__name__}: {INSTEAD}"
            )
    return problems
