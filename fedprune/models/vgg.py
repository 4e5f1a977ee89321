"""The VGG networks for small images: `(shape: (C, H, W), classes, norm) -> nn.Module`, logits [B, classes]."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fedprune.models.layers import initialise, normalisation, offering, require_norm, require_size

Widths = tuple[tuple[int, ...], ...]

NORMS = ("none", "batch", "group")

_VGG11: Widths = ((64,), (128,), (256, 256), (512, 512), (512, 512))
_SMALL: Widths = ((8,), (16,), (32, 32))


def vgg11(shape: tuple[int, int, int], classes: int, norm: str = "none") -> nn.Module:
    """Return eight 3x3 convolutions in five stages, each ended by max pooling, then an average and one linear layer.

    It is configuration A of Simonyan & Zisserman 2015, without the three linear layers for 224x224 pixels, as is usual for
    CIFAR. It has 9,225,610 parameters on 3x32x32 with 10 classes; 9,228,362 with a norm, whose shift replaces the biases of the
    convolutions. norm: `none` as in the paper, `batch` or `group`. Weights are Gaussian of variance 2 / fan_in, biases zero
    (He et al. 2015). Raises ConfigError for images below 32x32 or another norm.
    """
    require_norm("vgg11", norm, NORMS)
    require_size("vgg11", shape, 32, ("cnn_fedavg", "resnet20"))
    return _vgg(_VGG11, shape, classes, norm)


def vgg_small(shape: tuple[int, int, int], classes: int, norm: str = "batch") -> nn.Module:
    """Return four 3x3 convolutions of 8, 16, 32 and 32 channels in three stages, each ended by max pooling; then as vgg11.

    It has 15,554 parameters on 1x28x28 with a norm, and trains in minutes on a CPU. Because of its average, no layer but the
    output layer depends on the data set. norm: `batch`, `group` or `none`. Raises ConfigError for images below 8x8 or another
    norm.
    """
    require_norm("vgg_small", norm, NORMS)
    require_size("vgg_small", shape, 8, ("cnn_fedavg", "resnet20"))
    return _vgg(_SMALL, shape, classes, norm)


def _vgg(stages: Widths, shape: tuple[int, int, int], classes: int, norm: str) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, number = shape[0], 0
    for stage, widths in enumerate(stages, start=1):
        for out in widths:
            number += 1
            layers.update(_conv(number, channels, out, norm))
            channels = out
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers.update(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, classes))
    return offering(initialise(nn.Sequential(layers), nn.init.kaiming_normal_), NORMS)


def _conv(number: int, channels: int, out: int, norm: str) -> dict[str, nn.Module]:
    conv = nn.Conv2d(channels, out, 3, padding=1, bias=norm == "none")
    normed = {} if norm == "none" else {f"norm{number}": normalisation(norm, out)}
    return {f"conv{number}": conv, **normed, f"relu{number}": nn.ReLU()}
