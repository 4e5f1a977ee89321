"""What reaches a layer whatever the input is: the constants that dead filters emit through their biases and norms' shifts.

One forward pass on an input that is not a number: whatever is still a number does not depend on the input. A dead filter stops
NaN (0 x NaN would not), everything else hands it on: activations, pooling, additions, concatenation, normalisation.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

Alive = dict[str, Tensor]
"""By layer: which entries of its weight are alive."""


def constants(net: nn.Module, alive: Alive, example: Tensor) -> dict[str, Tensor]:
    """By layer: its input for one example, NaN where it depends on the network's input. The network is not changed."""
    probe, seen = copy.deepcopy(net).eval(), dict[str, Tensor]()
    for name, layer in probe.named_modules():
        if name in alive:
            layer.register_forward_hook(_Stop(name, alive[name], seen))
    with torch.no_grad():
        probe(torch.full_like(example[:1], torch.nan))
    return seen


class _Stop:
    """A forward hook: the layer's output with NaN only where a living weight meets one."""

    def __init__(self, name: str, alive: Tensor, seen: dict[str, Tensor]):
        self.name, self.alive, self.seen = name, alive, seen

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        unknown = x.isnan()
        # A layer that is called twice may see two constants: it is treated as if it saw none.
        self.seen[self.name] = torch.full_like(x, torch.nan) if self.name in self.seen else x
        reached = apply(layer, unknown.to(x.dtype), self.alive.to(x.dtype)) > 0.5
        weight = torch.where(self.alive, layer.weight, 0)  # type: ignore[arg-type]
        return apply(layer, x.masked_fill(unknown, 0), weight, layer.bias).masked_fill(reached, torch.nan)  # type: ignore[arg-type]


def apply(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer's own function with another weight: stride, padding and the rest are its own."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)  # type: ignore[operator]


def contribution(layer: nn.Module, x: Tensor, places: list[int]) -> Tensor:
    """What these input channels of x add to each output channel: [positions, outputs]."""
    weight: Tensor = layer.weight[:, places]  # type: ignore[index,assignment]
    if isinstance(layer, nn.Linear):
        return (x[..., places] @ weight.T).flatten(0, -2)
    return apply(layer, x[:, places], weight)[0].flatten(1).T


def values(layer: nn.Module, x: Tensor, places: list[int]) -> Tensor:
    """The values of these input channels: [positions, channels]."""
    return x[..., places].flatten(0, -2) if isinstance(layer, nn.Linear) else x[0, places].flatten(1).T


def uniform(entries: Tensor) -> bool:
    """Whether rows do not differ (up to rounding of double precision)."""
    spread = (entries - entries[0]).abs().amax() if entries.numel() else entries.new_zeros(())
    return bool(spread <= 1e-10 * entries.abs().amax().clamp_min(1.0)) if entries.numel() else True
