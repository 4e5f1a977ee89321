"""Into which parts a mask divides the units of a network that is being trained. A unit is `reached` if it depends on the
network's input through living entries, and `read` if the network's output depends on it through living entries.

    live       reached and read: computed for every example
    constant   read, but not reached: it gives every example the same, what its bias or BatchNorm shift comes to. The bias is
               trained, and so are the entries that read the constant: they stay, but one example is enough for all
    idle       not read: no gradient comes to it, whatever it is

Biases and norms are never dead, so a dead filter (all of its entries are) is constant, and not nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedprune.pruning.wiring import Wiring
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
        whole, some = alive[name].any(1), alive[name][:, reached[layer.reads]].any(1)
        reached[layer.makes] |= torch.where(normed[layer.makes], whole, some)
    for name, layer in reversed(list(wired.layers.items())):
        read[layer.reads[alive[name][read[layer.makes]].any(0)]] = True
    return Parts(reached & read, ~reached & read, ~read)


def matrices(wired: Wiring, mask: Mask) -> Mask:
    """Of each layer, by name, whether anything lives between an output and an input channel: [outputs, inputs]."""
    return {
        name: mask[f"{name}.weight"].flatten(1).view(len(layer.makes), len(layer.reads), -1).any(2)
        if f"{name}.weight" in mask
        else torch.ones(len(layer.makes), len(layer.reads), dtype=torch.bool)
        for name, layer in wired.layers.items()
    }


def share(wired: Wiring, divided: Parts) -> float:
    """The fraction of the layers' products that is left of them where only what is live is computed for every example."""
    left = sum(
        layer.products * float(divided.live[layer.makes].float().mean()) * float(divided.live[layer.reads].float().mean())
        for layer in wired.layers.values()
    )
    return left / sum(layer.products for layer in wired.layers.values())
