"""The small CNNs of the federated literature: `(shape: (C, H, W), classes) -> nn.Module`, logits [B, classes]."""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fedprune.errors import ConfigError
from fedprune.models.layers import after_valid_convs, initialise, offering, require_norm, require_size
from fedprune.pruning.what.top_k import nearest

NORMS = ("none", "batch")

WIDTHS = (10, 20, 50)
"""The channels of cnn_small's two convolutions, and its hidden units."""


def cnn_fedavg(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return two padded 5x5 convolutions of 32 and 64 channels, ReLU and max pooling, then 512 - classes (McMahan et al. 2017).

    It has 1,663,370 parameters on 1x28x28. Weights are uniform Glorot, biases zero: the default of TensorFlow's layers, as the
    paper does not state its initial values (Glorot & Bengio 2010). Raises ConfigError for images below 4x4.
    """
    require_size("cnn_fedavg", shape, 4, ("lenet_300_100", "resnet20"))
    channels, height, width = shape
    return initialise(
        _TwoConvs(channels, 32, 64, 512, (height // 4) * (width // 4), classes, padding=2), nn.init.xavier_uniform_
    )


def cnn_small(shape: tuple[int, int, int], classes: int, norm: str = "none") -> nn.Module:
    """Return two 5x5 convolutions of 10 and 20 channels without padding, ReLU and max pooling, then 50 - classes.

    norm: `none`, or `batch` for BatchNorm after each convolution, as Sub-FedAvg (Hy) needs, with 60 parameters more.

    It has 21,840 parameters on 1x28x28. It is the network of Li et al. 2021 (LotteryFL) and Vahidian et al. 2021 (Sub-FedAvg),
    without dropout as in the latter. Weights are uniform within 1 / sqrt(fan_in), PyTorch's default that their code relies on;
    but biases are zero. Raises ConfigError for images below 16x16 or another norm.
    """
    require_norm("cnn_small", norm, NORMS)
    return offering(_cnn_small("cnn_small", shape, classes, WIDTHS, batchnorm=norm == "batch"), NORMS)


def cnn_small_narrow(shape: tuple[int, int, int], classes: int, fraction: float = 1.0) -> nn.Module:
    """Return the widest narrowed `cnn_small` with at most `fraction` of its parameters.

    With k of the 50 hidden units the convolutions have 10 k / 50 and 20 k / 50 channels, each to the nearest and at least 1; k
    is the largest for which the parameters, biases too, are at most fraction times those of cnn_small. On 1x28x28 and 10
    classes a fraction of 0.1 (2,184 parameters) gives k = 15: 3 and 6 channels, 15 units, 2,149 parameters.
    Raises ConfigError if not even k = 1 is small enough, or for images below 16x16.
    """
    require_size("cnn_small_narrow", shape, 16, ("lenet_300_100", "cnn_fedavg", "resnet20"))
    if not 0 < fraction <= 1:
        raise ConfigError([f"model.fraction={fraction} is of the parameters of cnn_small: more than 0, at most 1"])
    most = fraction * _parameters(shape, classes, WIDTHS) + 1e-6  # 0.1 of a round number may be slightly below it
    fits = [k for k in range(1, WIDTHS[-1] + 1) if _parameters(shape, classes, _narrowed(k)) <= most]
    if not fits:
        least = _parameters(shape, classes, _narrowed(1)) / _parameters(shape, classes, WIDTHS)
        least = math.ceil(least * 1e4) / 1e4
        raise ConfigError([f"model.fraction={fraction} is less than one channel in each layer takes: type at least {least}"])
    return _cnn_small("cnn_small_narrow", shape, classes, _narrowed(fits[-1]))


def _narrowed(hidden: int) -> tuple[int, int, int]:
    first, second, most = WIDTHS
    return max(nearest(first * hidden / most), 1), max(nearest(second * hidden / most), 1), hidden


def _parameters(shape: tuple[int, int, int], classes: int, widths: tuple[int, int, int]) -> int:
    channels, height, width = shape
    first, second, hidden = widths
    pixels = after_valid_convs(height) * after_valid_convs(width)
    convolutions = (25 * channels + 1) * first + (25 * first + 1) * second
    return convolutions + (second * pixels + 1) * hidden + (hidden + 1) * classes


def _cnn_small(
    name: str, shape: tuple[int, int, int], classes: int, widths: tuple[int, int, int], batchnorm: bool = False
) -> nn.Module:
    require_size(name, shape, 16, ("lenet_300_100", "cnn_fedavg", "resnet20"))
    channels, height, width = shape
    pixels = after_valid_convs(height) * after_valid_convs(width)
    network = _TwoConvs(channels, *widths, pixels, classes, padding=0, batchnorm=batchnorm)
    return initialise(network, partial(nn.init.kaiming_uniform_, a=5**0.5))


class _TwoConvs(nn.Module):
    def __init__(
        self,
        channels: int,
        first: int,
        second: int,
        hidden: int,
        pixels: int,
        classes: int,
        padding: int,
        batchnorm: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, first, 5, padding=padding)
        self.conv2 = nn.Conv2d(first, second, 5, padding=padding)
        self.norm1, self.norm2 = (nn.BatchNorm2d(size) if batchnorm else None for size in (first, second))
        self.fc1 = nn.Linear(second * pixels, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        # ReLU after pooling gives the same values as before it, on a quarter of the entries.
        x = F.relu(F.max_pool2d(_normalised(self.conv1(x), self.norm1), 2))
        x = F.relu(F.max_pool2d(_normalised(self.conv2(x), self.norm2), 2))
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


def _normalised(x: Tensor, norm: nn.Module | None) -> Tensor:
    normed: Tensor = x if norm is None else norm(x)
    return normed
