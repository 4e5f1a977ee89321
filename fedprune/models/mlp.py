"""Fully connected networks: `(shape, classes, hidden) -> nn.Module` for inputs of any shape, logits [B, classes]."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from fedprune.errors import ConfigError
from fedprune.models.layers import initialise


def mlp(shape: tuple[int, ...], classes: int, hidden: Sequence[int] = (64, 32)) -> nn.Module:
    """Return linear layers of `hidden` units with ReLU between them, on all numbers of an input in one row.

    On 30 inputs and 2 classes the default has 30*64 + 64 + 64*32 + 32 + 32*2 + 2 = 4,130 parameters. Weights are Gaussian
    Glorot, biases zero. Raises ConfigError if `hidden` is no list of whole numbers from 1.
    """
    if isinstance(hidden, (int, str)) or any(not isinstance(size, int) or size < 1 for size in hidden):
        raise ConfigError([f"model.hidden={hidden} is a list of numbers of units: type model.hidden=[64,32]"])
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (inputs, outputs) in enumerate(itertools.pairwise((math.prod(shape), *hidden, classes)), start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
        if number <= len(hidden):
            layers[f"relu{number}"] = nn.ReLU()
    return initialise(nn.Sequential(layers), nn.init.xavier_normal_)
