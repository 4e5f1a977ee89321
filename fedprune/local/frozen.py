"""Layers that stay as they are while the others are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from fedprune.errors import ConfigError
from fedprune.pruning.what.layers import LAYERS, prunable


@contextmanager
def held(net: nn.Module, layers: Sequence[str]) -> Iterator[None]:
    """Inside, the parameters of these layers are not trained. Raises ConfigError on a layer that is not there."""
    fixed = [p for name in layers for layer in of_kind(net, name) for p in layer.parameters() if p.requires_grad]
    try:
        for parameter in fixed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in fixed:
            parameter.requires_grad_(True)


def of_kind(net: nn.Module, name: str) -> list[nn.Module]:
    """The layers of a kind (conv, linear, ...: see pruning/what), or the layer of a name."""
    found = [layer for own, layer in net.named_modules() if own == name or own in prunable(net, (name,))]
    if not found:
        names = ", ".join(prunable(net))
        raise ConfigError([f"local.fixed: no layer {name!r}; the kinds are {', '.join(LAYERS)}, the layers {names}"])
    return found
