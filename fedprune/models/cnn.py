"""The small CNNs of the federated literature: `(shape: (C, H, W), classes) -> nn.Module`, logits [B, classes]."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fedprune.models.layers import after_valid_convs, initialise, require_norm, require_size


def cnn_fedavg(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two padded 5x5 convolutions of 32 and 64 channels, ReLU and max pooling, then 512 - classes (McMahan et al. 2017).

    1,663,370 parameters on 1x28x28. Uniform Glorot weights, zero biases: the default of TensorFlow's layers, as the paper
    does not state its own (Glorot & Bengio 2010). Raises ConfigError for images below 4x4.
    """
    require_size("cnn_fedavg", shape, 4, ("lenet_300_100", "resnet20"))
    channels, height, width = shape
    return initialise(
        _TwoConvs(channels, 32, 64, 512, (height // 4) * (width // 4), classes, padding=2), nn.init.xavier_uniform_
    )


def cnn_small(shape: tuple[int, int, int], classes: int, norm: str = "none") -> nn.Module:
    """Two 5x5 convolutions of 10 and 20 channels without padding, ReLU and max pooling, then 50 - classes.

    norm: `batch` puts BatchNorm after each convolution, as Sub-FedAvg (Hy) needs, with 60 parameters more; or `none`.

    21,840 parameters on 1x28x28; the network of LotteryFL (Li et al. 2021) and Sub-FedAvg (Vahidian et al. 2021), without
    dropout as in the latter, which prunes instead. Weights uniform within 1 / sqrt(fan_in), PyTorch's default that their
    code relies on; but zero biases. Raises ConfigError for images below 16x16 or another norm.
    """
    require_norm("cnn_small", norm, ("none", "batch"))
    require_size("cnn_small", shape, 16, ("lenet_300_100", "cnn_fedavg", "resnet20"))
    channels, height, width = shape
    pixels = after_valid_convs(height) * after_valid_convs(width)
    network = _TwoConvs(channels, 10, 20, 50, pixels, classes, padding=0, batchnorm=norm == "batch")
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
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def _normalised(x: Tensor, norm: nn.Module | None) -> Tensor:
    return x if norm is None else norm(x)
