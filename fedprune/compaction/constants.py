"""The constants that reach a layer whatever the input is: dead filters emit them through their biases and norms' shifts.

One forward pass on an input of NaN finds them: a value that is still a number does not depend on the input. A dead filter stops
NaN (0 x NaN would not); activations, pooling, additions, concatenation and normalisation pass it on.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

Alive = dict[str, Tensor]
"""The mask of each layer's weight, by the layer's name."""


def constants(net: nn.Module, alive: Alive, example: Tensor) -> dict[str, Tensor]:
    """Return each layer's input for one example, NaN where it depends on the network's input. The network is not changed."""
    probe, seen = copy.deepcopy(net).eval(), dict[str, Tensor]()
    for name, layer in probe.named_modules():
        if name in alive:
            layer.register_forward_hook(_Stop(name, alive[name], seen))
    with torch.no_grad():
        probe(torch.full_like(example[:1], torch.nan))
    return seen


class _Stop:
    """A forward hook that leaves NaN in a layer's output only where a living weight meets one."""

    def __init__(self, name: str, alive: Tensor, seen: dict[str, Tensor]):
        self.name, self.alive, self.seen = name, alive, seen

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        unknown = x.isnan()
        # A layer that is called twice may see two constants: it is treated as if it saw none.
        self.seen[self.name] = torch.full_like(x, torch.nan) if self.name in self.seen else x
        reached = with_weight(layer, unknown.to(x.dtype), self.alive.to(x.dtype)) > 0.5
        weight = torch.where(self.alive, cast(Tensor, layer.weight), 0)
        bias = cast(Tensor | None, layer.bias)
        return with_weight(layer, x.masked_fill(unknown, 0), weight, bias).masked_fill(reached, torch.nan)


def with_weight(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the output of a layer with another weight and bias; stride, padding and the rest are the layer's."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    output: Tensor = cast(nn.Conv2d, layer)._conv_forward(x, weight, bias)
    return output


def contribution(layer: nn.Module, x: Tensor, places: list[int]) -> Tensor:
    """Return the sum that these input channels of x add to each output channel: [positions, outputs]."""
    weight = cast(Tensor, layer.weight)[:, places]
    if isinstance(layer, nn.Linear):
        return (x[..., places] @ weight.T).flatten(0, -2)
    return with_weight(layer, x[:, places], weight)[0].flatten(1).T


def values(layer: nn.Module, x: Tensor, places: list[int]) -> Tensor:
    """Return the values of these input channels: [positions, channels]."""
    return x[..., places].flatten(0, -2) if isinstance(layer, nn.Linear) else x[0, places].flatten(1).T


def uniform(entries: Tensor) -> bool:
    """Return whether all rows are equal, up to rounding of double precision."""
    if not entries.numel():
        return True
    difference = (entries - entries[0]).abs().amax()
    return bool(difference <= 1e-10 * entries.abs().amax().clamp_min(1.0))
