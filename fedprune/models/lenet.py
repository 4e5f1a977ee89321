"""The LeNets of the pruning literature: `(shape: (C, H, W), classes) -> nn.Module`, logits [B, classes]."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedprune.models.layers import after_valid_convs, initialise, require_size

_FOR_SMALL_IMAGES = ("lenet_300_100", "cnn_fedavg", "resnet20")


def lenet_300_100(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a fully connected network, C*H*W - 300 - 100 - classes, with ReLU (LeCun et al. 1998).

    It has 266,610 parameters on 1x28x28. Weights are Gaussian Glorot, biases zero (Frankle & Carbin 2019, appendix). It takes
    images of any size.
    """
    require_size("lenet_300_100", shape, 1, ())
    channels, height, width = shape
    return initialise(Lenet300100(channels * height * width, classes), nn.init.xavier_normal_)


def lenet1(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return two 5x5 convolutions of 4 and 12 channels without padding, tanh and average pooling, then `classes` linear
    outputs.

    It has 3,246 parameters, 3,220 of them weights, on 1x28x28. The network of Optimal Brain Damage (LeCun et al. 1990) has this
    layout and 2,578 parameters, as its second convolution sees only some of the maps and its pooling has weights. Weights are
    Gaussian Glorot, biases zero. Raises ConfigError for images below 16x16.
    """
    require_size("lenet1", shape, 16, _FOR_SMALL_IMAGES)
    channels, height, width = shape
    return initialise(Lenet1(channels, after_valid_convs(height) * after_valid_convs(width), classes), nn.init.xavier_normal_)


def lenet5(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return two 5x5 convolutions of 6 and 16 channels without padding, ReLU and max pooling, then 120 - 84 - classes.

    It has 44,426 parameters on 1x28x28. It is the modern reading of LeNet-5 (LeCun et al. 1998: there padded to 32x32, with
    other nonlinearities and partial connections). Weights are Gaussian Glorot, biases zero (as Frankle & Carbin 2019 for their
    networks). Raises ConfigError for images below 16x16.
    """
    require_size("lenet5", shape, 16, _FOR_SMALL_IMAGES)
    channels, height, width = shape
    return initialise(Lenet5(channels, after_valid_convs(height) * after_valid_convs(width), classes), nn.init.xavier_normal_)


def lenet5_caffe(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return two 5x5 convolutions of 20 and 50 channels without padding, each max pooled, then 500 - classes.

    It has 431,080 parameters, 430,500 of them weights, on 1x28x28. It is the LeNet of Caffe's MNIST example (Jia et al. 2014),
    which Han et al. 2015 and SNIP prune. Its only ReLU follows fc1, as there. Weights are Caffe's "xavier", uniform within
    sqrt(3 / fan_in), and biases zero, as there. Raises ConfigError for images below 16x16.
    """
    require_size("lenet5_caffe", shape, 16, _FOR_SMALL_IMAGES)
    channels, height, width = shape
    network = Lenet5Caffe(channels, after_valid_convs(height) * after_valid_convs(width), classes)
    return initialise(network, partial(nn.init.kaiming_uniform_, nonlinearity="linear"))  # its bound is Caffe's


class Lenet300100(nn.Module):
    """`inputs` -> 300 -> 100 -> `classes`."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of x [B, C, H, W]."""
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits


class Lenet1(nn.Module):
    """`channels` -> 4 -> 12 channels of `pixels` pixels -> `classes`."""

    def __init__(self, channels: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 5)
        self.conv2 = nn.Conv2d(4, 12, 5)
        self.fc1 = nn.Linear(12 * pixels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs [B, classes] of x [B, C, H, W]."""
        x = F.avg_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.conv2(x)), 2)
        outputs: Tensor = self.fc1(x.flatten(1))
        return outputs


class Lenet5(nn.Module):
    """`channels` -> 6 -> 16 channels of `pixels` pixels -> 120 -> 84 -> `classes`."""

    def __init__(self, channels: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * pixels, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of x [B, C, H, W]."""
        # ReLU after pooling gives the same values as before it, on a quarter of the entries.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits


class Lenet5Caffe(nn.Module):
    """`channels` -> 20 -> 50 channels of `pixels` pixels -> 500 -> `classes`."""

    def __init__(self, channels: int, pixels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * pixels, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of x [B, C, H, W]."""
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits
