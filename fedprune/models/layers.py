"""Initial values, normalisation layers, and checks of shapes and sizes, for all models."""

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
    """Return a normalisation layer. norm: `batch` for BatchNorm (Ioffe & Szegedy 2015), `group` for GroupNorm with 16 channels
    per group (Wu & He 2018, table 3), or a single group of fewer.

    GroupNorm has no running statistics, so it is the same in training and evaluation, and clients have none to average.
    """
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(max(channels // CHANNELS_PER_GROUP, 1), channels)


def require_norm(model: str, norm: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError unless `norm` is one of `known`."""
    if norm not in known:
        raise ConfigError([f"model.norm={norm} is not known to model={model}: type model.norm={' or model.norm='.join(known)}"])


def offering(net: nn.Module, norms: tuple[str, ...]) -> nn.Module:
    """Note on a network the values of its model's key `norm`, for messages that advise another one. Return the network."""
    net.norms = norms  # type: ignore[assignment]  # nn.Module takes any attribute
    return net


def require_size(model: str, shape: tuple[int, ...], smallest: int, instead: tuple[str, ...]) -> None:
    """Raise ConfigError if `shape` is (T,), of rows, or if images of `shape` (C, H, W) are below smallest x smallest.

    instead: models that take such images, for the message.
    """
    if len(shape) == 1:
        raise ConfigError(
            [
                f"model={model} takes images, and the data set's examples are rows of {shape[0]} numbers or characters: "
                "type model=char_lstm or model=char_transformer (of numbers model=mlp), or choose data of images"
            ]
        )
    channels, height, width = shape
    if min(height, width) < smallest:
        raise ConfigError(
            [
                f"model={model} takes images of {smallest}x{smallest} pixels or more, and the data set's have the shape "
                f"{channels}x{height}x{width}: type model={' or model='.join(instead)}, or choose data with larger images"
            ]
        )


def require_sequence(model: str, shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless `shape` is (T,), of sequences of T characters."""
    if len(shape) != 1:
        raise ConfigError(
            [
                f"model={model} takes sequences of characters, and the data set's examples have the shape "
                f"{'x'.join(map(str, shape))}: type data=shakespeare, or model=cnn_small or model=lenet_300_100"
            ]
        )


def require_positive(**sizes: int) -> None:
    """Raise ConfigError, which names the model's keys, if one of these sizes is below 1."""
    wrong = [f"model.{key}={size}: type a whole number from 1" for key, size in sizes.items() if size < 1]
    if wrong:
        raise ConfigError(wrong)


def after_valid_convs(side: int) -> int:
    """Return the side length after two stages of [5x5 convolution without padding, 2x2 pooling]; 28 -> 4, 16 -> 1."""
    return ((side - 4) // 2 - 4) // 2
