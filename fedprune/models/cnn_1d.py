"""The CNN for time series: `(shape: (C, 1, T), classes, width) -> nn.Module`, logits [B, classes]."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from fedprune.errors import ConfigError
from fedprune.models.layers import initialise, require_positive

SHORTEST = 4


def cnn_1d(shape: tuple[int, ...], classes: int, width: int = 32) -> nn.Module:
    """Return three convolutions over 5 steps of time, of `width`, 2 width and 2 width channels with ReLU, and a linear layer.

    The first two are followed by max pooling of 2, and the last by the mean over time, so series of any length from 4 are
    taken. It has 32,295 parameters on 6x1x128 with 7 classes. Initial values are He's (He et al. 2015), biases zero. Data of
    shape (C, H, T) are H series side by side. Raises ConfigError for other data, and for a width below 1.
    """
    require_positive(width=width)
    if len(shape) != 3 or shape[2] < SHORTEST:
        raise ConfigError(
            [
                f"model=cnn_1d takes series of the shape Cx1xT with T from {SHORTEST}, and the data set's examples have the "
                f"shape {'x'.join(map(str, shape))}: type model=mlp, or model=char_lstm for text"
            ]
        )
    return initialise(Cnn1d(shape[0], classes, width), partial(nn.init.kaiming_normal_, nonlinearity="relu"))


class Cnn1d(nn.Module):
    """`channels` -> `width` -> 2 width -> 2 width channels -> `classes`."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, (1, 5), padding=(0, 2))
        self.conv2 = nn.Conv2d(width, 2 * width, (1, 5), padding=(0, 2))
        self.conv3 = nn.Conv2d(2 * width, 2 * width, (1, 5), padding=(0, 2))
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of x [B, C, 1, T]."""
        # ReLU after pooling gives the same values as before it, on half of the entries.
        x = F.relu(F.max_pool2d(self.conv1(x), (1, 2)))
        x = F.relu(F.max_pool2d(self.conv2(x), (1, 2)))
        logits: Tensor = self.fc(F.relu(self.conv3(x)).mean((2, 3)))
        return logits
