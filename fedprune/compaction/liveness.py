"""The live, constant and idle units of a network that is trained under a mask.

A unit is `reached` if it depends on the network's input through living entries, and `read` if the network's output depends on
it through living entries.

    live       reached and read: computed for every example
    constant   read, but not reached: its value, from its bias or BatchNorm shift, is the same for every example. The bias is
               trained, and so are the entries that read the constant: they stay, but one example is enough for all
    idle       not read: no gradient comes to it, whatever it is

Biases and norms are never dead, so a filter whose entries are all dead is constant, and not nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedprune.compaction.fx_graph import ChannelGraph, Layer
from fedprune.types import Mask


class Parts(NamedTuple):
    """Three masks of units, [units + 1] each. The last place stands for values that are no units; it is live."""

    live: Tensor
    constant: Tensor
    idle: Tensor


def divide(graph: ChannelGraph, alive: Mask, tracked: bool) -> Parts:
    """Divide the units into parts. alive: [outputs, inputs] of each layer's weight, see `matrices`.

    tracked: whether BatchNorm takes statistics of the batches. It then needs all units that it sees, read or not. It also
    normalises a constant that zero padding has made different from place to place: such a unit counts as reached.
    """
    fixed = torch.cat([graph.fixed, torch.ones(1, dtype=torch.bool)])
    normed = torch.zeros_like(fixed)
    for units in graph.norms.values() if tracked else ():
        normed[units] = True
    reached, read = fixed.clone(), fixed | normed
    for name, layer in graph.layers.items():
        any_entry, from_reached = anything(alive[name], 1), anything(alive[name] & reached[layer.reads], 1)
        reached[layer.makes] |= torch.where(normed[layer.makes], any_entry, from_reached)
    for name, layer in reversed(list(graph.layers.items())):
        read[layer.reads[anything(alive[name][read[layer.makes]], 0)]] = True
    return Parts(reached & read, ~reached & read, ~read)


def matrices(graph: ChannelGraph, mask: Mask) -> Mask:
    """Return whether anything lives between an output and an input channel, [outputs, inputs], by layer."""
    return {name: _matrix(layer, mask.get(f"{name}.weight")) for name, layer in graph.layers.items()}


def _matrix(layer: Layer, alive: Tensor | None) -> Tensor:
    """Return the matrix of one layer. alive: the mask of its weight; None: nothing is dead."""
    outputs, inputs = len(layer.makes), len(layer.reads)
    if alive is None:
        return torch.ones(outputs, inputs, dtype=torch.bool)
    return anything(alive.reshape(outputs, inputs, -1), 2)


def anything(alive: Tensor, dim: int) -> Tensor:
    """Return alive.any(dim), in a thirtieth of the time."""
    return torch.from_numpy(alive.numpy().any(dim))


def saved(graph: ChannelGraph, parts: Parts, remaining: Mapping[str, float]) -> float:
    """Return the number of the layers' products that are saved for each example where only live units are computed.

    Channels are counted by eights: for fewer, kernels take no less time. remaining: the fraction that is left of that, of
    layers that are sparse.
    """
    return sum(
        layer.products * (1 - _eights(parts.live[layer.makes]) * _eights(parts.live[layer.reads]) * remaining.get(name, 1.0))
        for name, layer in graph.layers.items()
    )


def _eights(live: Tensor) -> float:
    return math.ceil(int(live.sum()) / 8) / math.ceil(len(live) / 8)
