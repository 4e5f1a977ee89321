"""What the families share: initial values, normalisation layers, and the refusal of images that are too small."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fedprune.errors import ConfigError

CHANNELS_PER_GROUP = 16


def initialise(network: nn.Module, draw: Callable[[Tensor], Tensor]) -> nn.Module:
    """Draw the weights of all conv and linear layers with `draw`, in place, from torch's global generator; biases become 0.

    Normalisation layers keep scale 1 and shift 0, with which torch creates them. Returns the network.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network


def normalisation(norm: str, channels: int) -> nn.Module:
    """`batch`: BatchNorm (Ioffe & Szegedy 2015). `group`: GroupNorm with 16 channels per group (Wu & He 2018, table 3).

    GroupNorm has no running statistics, so it is the same in training and evaluation and has nothing extra to average.
    """
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels)


def require_norm(model: str, norm: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError unless `norm` is one of `known`."""
    if norm not in known:
        raise ConfigError([f"model.norm={norm} is not known to model={model}: type model.norm={' or model.norm='.join(known)}"])


def require_size(model: str, shape: tuple[int, int, int], smallest: int, instead: tuple[str, ...]) -> None:
    """Raise ConfigError, naming the models that would do, if images of `shape` (C, H, W) are below smallest x smallest."""
    channels, height, width = shape
    if min(height, width) < smallest:
        raise ConfigError(
            [
                f"model={model} takes images of {smallest}x{smallest} pixels or more, and the data set's have the shape "
                f"{channels}x{height}x{width}: type model={' or model='.join(instead)}, or choose data with larger images"
            ]
        )


def after_valid_convs(side: int) -> int:
    """The side length after two stages of [5x5 convolution without padding, 2x2 pooling]; 28 -> 4, 16 -> 1."""
    return ((side - 4) // 2 - 4) // 2
