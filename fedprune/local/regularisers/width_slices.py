"""Width slices: the leading units of every hidden layer, as a mask of all tensors. Diao et al. 2021 (HeteroFL), section 3.

leading: (network, capacity) -> Mask. Of a hidden layer with n units the first ceil(capacity x n) live; a layer's inputs live
if a living unit, or the data, is behind them; the output layer keeps all of its units. What belongs to a unit goes with it:
its bias, and the entries of the normalisation that takes in its layer. So the masked network computes what the smaller one
does, the slices of all capacities nest, and what lives is what the smaller one has.

Which inputs a unit feeds (through flattening, pooling, residual additions) is read from the network, see
pruning/connectivity.py.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from fedprune.errors import Incompatible
from fedprune.pruning.connectivity import effective, unfollowed
from fedprune.pruning.evidence.data_free import Network, batch_or, normalised
from fedprune.pruning.evidence.gates import is_companion
from fedprune.pruning.plain_layers import is_plain
from fedprune.pruning.what import CHANNELLED, LAYERS, prunable
from fedprune.pruning.what.layer_order import LayerOrder, by_definition
from fedprune.tensors import shared, tensors_of
from fedprune.types import Mask

CUT = tuple(kind for name in CHANNELLED for kind in LAYERS[name])
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm)
INSTEAD = "choose whose.by=magnitude"


@functools.lru_cache(maxsize=256)
def leading(network: Network, capacity: float) -> Mask:
    """The slice of all tensors that have units, in the order of the network's. Raises Incompatible, naming the layers, if the
    network has others, or one in which this is no slice."""
    problems = _unknown(network.net)
    problem = "" if problems else unfollowed(network.net, network.shape)
    if problem:
        problems = [f"whose.by=width: {problem}: {INSTEAD}"]
    if problems:
        raise Incompatible(*problems)
    weights = _weights(network, capacity)
    rows = {name: _any(alive, 0) for name, alive in weights.items()}
    norms = _norms(network, rows)
    units = {name.removesuffix(".weight"): alive for name, alive in rows.items()} | norms
    state = tensors_of(network.net)
    return {
        name: weights[own] if (own := _weight_of(name)) in weights else units[layer]
        for name, tensor in state.items()
        if (layer := name.rpartition(".")[0]) in units and tensor.dim() > 0
    }


def width(units: int, capacity: float) -> int:
    """How many of a layer's units a capacity carries: ceil(capacity x units), unharmed by float error; one at least."""
    return max(1, math.ceil(capacity * units - 1e-9))


def output_layers(net: nn.Module, order: LayerOrder | None = None) -> tuple[str, ...]:
    """Return the weights of the layers whose units are the network's outputs: the last to run on the way to each of them.
    order: None: layers run as they are defined."""
    layers = prunable(net)
    return (order or by_definition(layers)).last([weight for weights in layers.values() for weight in weights])


def sliced(net: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that have units to cut, by the name of their weight, in the order of definition."""
    return {f"{name}.weight": layer for name, layer in net.named_modules() if isinstance(layer, CUT)}


def _weight_of(name: str) -> str:
    """The weight that a companion belongs to, whose shape it has; any other name as it is."""
    return f"{name.rpartition('.')[0]}.weight" if is_companion(name) else name


def _weights(network: Network, capacity: float) -> Mask:
    """The weights of all layers: living units x living inputs."""
    layers, last = sliced(network.net), output_layers(network.net, network.order)
    wide = {}
    for name, layer in layers.items():
        weight: Tensor = layer.weight  # type: ignore[assignment]
        alive = torch.arange(len(weight)) < (len(weight) if name in last else width(len(weight), capacity))
        wide[name] = alive.view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape)
    reached = effective(network.net, wide, network.shape)
    cut = {name: _box(alive) for name, alive in reached.items()}
    astray = [name for name, alive in cut.items() if not _is_slice(alive, reached[name], wide[name])]
    if astray:
        layers_astray = ", ".join(name.removesuffix(".weight") for name in astray)
        raise Incompatible(f"whose.by=width: what is left of {layers_astray} would be no leading slice: {INSTEAD}")
    return cut


def _box(reached: Tensor) -> Tensor:
    """Units x inputs that anything passes through, with all places of a kernel (some may only ever see padding)."""
    rows, columns = _any(reached, 0), _any(reached, 1)
    return (rows[:, None] & columns).view(*reached.shape[:2], *[1] * (reached.dim() - 2)).expand(reached.shape).contiguous()


def _is_slice(box: Tensor, reached: Tensor, wide: Tensor) -> bool:
    """Whether its units are those that should live, its inputs are the first ones, and each unit reads all of them."""
    columns = _any(box, 1)
    whole = torch.equal(box.flatten(2).any(2), reached.flatten(2).any(2)) if box.dim() > 2 else torch.equal(box, reached)
    return torch.equal(_any(box, 0), _any(wide, 0)) and bool(columns[: int(columns.sum())].all()) and whole


def _any(alive: Tensor, dim: int) -> Tensor:
    return alive.transpose(0, dim).flatten(1).any(1)


def _norms(network: Network, rows: Mask) -> Mask:
    """The living channels of each normalisation. Raises Incompatible for one that would mix them with the dead."""
    of = {norm: rows[name] for name, norm in normalised(network, tuple(rows)).items()}
    problems = []
    for name, layer in network.net.named_modules():
        if not is_plain(layer, NORMS) or getattr(layer, "weight", None) is None:
            continue
        if name not in of:
            problems.append(f"whose.by=width: {name} normalises what is no layer's own output: {INSTEAD}")
        elif isinstance(layer, nn.GroupNorm) and int(of[name].sum()) % (layer.num_channels // layer.num_groups):
            problems.append(
                f"whose.by=width: {int(of[name].sum())} channels are no whole number of the groups of {name}: "
                f"choose {batch_or(network.net)}whose.by=magnitude"
            )
    if problems:
        raise Incompatible(*problems)
    return of


def _unknown(net: nn.Module) -> list[str]:
    """Layers with parameters that have no units to cut, or not by themselves."""
    tied = shared(net, (name for name, _ in net.named_parameters()))
    return [f"whose.by=width cuts each layer by itself, and {tied}: {INSTEAD}"] * bool(tied) + [
        f"whose.by=width slices linear and convolutional layers with their normalisation, and {name} is a "
        f"{type(layer).__name__}: {INSTEAD}"
        for name, layer in net.named_modules()
        if any(True for _ in layer.parameters(recurse=False))
        and not (is_plain(layer, (*CUT, *NORMS)) and getattr(layer, "groups", 1) == 1)
    ]
