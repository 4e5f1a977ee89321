"""The networks of the benchmark once more, in plain torch: the same layers in the same order, so the same parameters."""

from __future__ import annotations

from torch import nn


def lenet5() -> nn.Module:
    """Two 5x5 convolutions of 6 and 16 channels, max pooled, then 120 - 84 - 10."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def lenet_300_100() -> nn.Module:
    """Fully connected, 784 - 300 - 100 - 10."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def cnn_fedavg() -> nn.Module:
    """Two padded 5x5 convolutions of 32 and 64 channels, max pooled, then 512 - 10."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


NETWORKS = {"lenet5": lenet5, "lenet_300_100": lenet_300_100, "cnn_fedavg": cnn_fedavg}
