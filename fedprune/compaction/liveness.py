"""Into which parts a mask divides the units of a network that is being trained. A unit is `reached` if it depends on the
network's input through living entries, and `read` if the network's output depends on it through living entries.

    live       reached and read: computed for every example
    constant   read, but not reached: it gives every example the same, what its bias or BatchNorm shift comes to. The bias is
               trained, and so are the entries that read the constant: they stay, but one example is enough for all
    idle       not read: no gradient comes to it, whatever it is

Biases and norms are never dead, so a dead filter (all of its entries are) is constant, and not nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedprune.compaction.fx_graph import Wiring
from fedprune.types import Mask


class Parts(NamedTuple):
    """[units + 1], each: whether a unit belongs to the part. The last place stands for what is no unit, and is live."""

    live: Tensor
    constant: Tensor
    idle: Tensor


def parts(wired: Wiring, alive: Mask, tracked: bool) -> Parts:
    """The parts. alive: [outputs, inputs] of each layer's weight, see `matrices`. tracked: whether BatchNorm learns of every
    unit that it sees, read or not, from the batches' statistics: then all that it sees has to be there. It also tells apart
    what is the same in all examples and not in all places (zero padding makes that of a constant): such a unit counts as
    reached.
    """
    fixed = torch.cat([wired.fixed, torch.ones(1, dtype=torch.bool)])
    normed = torch.zeros_like(fixed)
    for units in wired.norms.values() if tracked else ():
        normed[units] = True
    reached, read = fixed.clone(), fixed | normed
    for name, layer in wired.layers.items():
        whole, some = anything(alive[name], 1), anything(alive[name] & reached[layer.reads], 1)
        reached[layer.makes] |= torch.where(normed[layer.makes], whole, some)
    for name, layer in reversed(list(wired.layers.items())):
        read[layer.reads[anything(alive[name][read[layer.makes]], 0)]] = True
    return Parts(reached & read, ~reached & read, ~read)


def matrices(wired: Wiring, mask: Mask) -> Mask:
    """Of each layer, by name, whether anything lives between an output and an input channel: [outputs, inputs]."""
    return {
        name: anything(mask[f"{name}.weight"].reshape(len(layer.makes), len(layer.reads), -1), 2)
        if f"{name}.weight" in mask
        else torch.ones(len(layer.makes), len(layer.reads), dtype=torch.bool)
        for name, layer in wired.layers.items()
    }


def anything(alive: Tensor, dim: int) -> Tensor:
    """alive.any(dim), in a thirtieth of the time."""
    return torch.from_numpy(alive.numpy().any(dim))


def saved(wired: Wiring, divided: Parts, remaining: Mapping[str, float]) -> float:
    """How many of the layers' products are saved for each example where only what is live is computed.

    Channels are counted by eights: for fewer, kernels take no less time. remaining: what is left of that, of some layers.
    """
    return sum(
        layer.products
        * (1 - _eights(divided.live[layer.makes]) * _eights(divided.live[layer.reads]) * remaining.get(name, 1.0))
        for name, layer in wired.layers.items()
    )


def _eights(live: Tensor) -> float:
    return math.ceil(int(live.sum()) / 8) / math.ceil(len(live) / 8)
