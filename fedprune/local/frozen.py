"""Layers that are kept as they are while the others are trained: `local.fixed`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from fedprune.errors import ConfigError
from fedprune.pruning.what.layers import LAYERS, prunable
from fedprune.pruning.what.scope import as_text


@contextmanager
def frozen(net: nn.Module, layers: Sequence[str | float]) -> Iterator[None]:
    """Inside, the parameters of these layers require no gradient. Raises ConfigError on a layer that the network has not."""
    chosen = [layer for key in layers for layer in layers_of(net, key)]
    parameters = [parameter for layer in chosen for parameter in layer.parameters() if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def layers_of(net: nn.Module, key: str | float) -> list[nn.Module]:
    """Return the layers of a kind (conv, linear, ...: see pruning/what), or the layer of a name.

    key: a float is a name such as 0.10 that YAML read as a number. Raises ConfigError if no layer, or more than one, has it.
    """
    name = as_text(key, [name for name, _ in net.named_parameters()], "local.fixed")
    of_kind = prunable(net, (name,))
    layers = [layer for path, layer in net.named_modules() if path == name or path in of_kind]
    if not layers:
        names = ", ".join(prunable(net))
        raise ConfigError([f"local.fixed: no layer {name!r}; the kinds are {', '.join(LAYERS)}, the layers {names}"])
    return layers
