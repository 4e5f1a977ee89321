"""Networks as users write them: what our own models do not have. Configs of tests name them as helpers.user_networks.CLASS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.local.module import LocalModule


class Strided(nn.Sequential):
    """Two convolutions whose strides are in no tensor's shape, like the activation; `block` is a dict."""

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        strides: Sequence[int] = (1, 2),
        act: str = "relu",
        block: dict | None = None,
        make: Callable[[], nn.Module] = nn.Identity,
    ):
        super().__init__(
            *(nn.Conv2d(shape[0], 4, 3, strides[0], padding=1), {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[act]()),
            *(nn.Conv2d(4, (block or {"width": 4})["width"], 3, strides[1], padding=1), make()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear((block or {"width": 4})["width"], classes)),
        )


class Tied(nn.Module):
    """Two layers with one matrix: `back.weight` is `there.weight`."""

    def __init__(self, shape: Sequence[int] = (1, 2, 3), classes: int = 3):
        super().__init__()
        width = math.prod(shape)
        self.there, self.back = nn.Linear(width, width), nn.Linear(width, width)
        self.fc = nn.Linear(width, classes)
        self.back.weight = self.there.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.back(self.there(x.flatten(1)).relu()).relu())


class Spelled(Tied):
    """Tied, spelled out: one layer, and its weight used once more with another bias. It begins from the same numbers."""

    def __init__(self, shape: Sequence[int] = (1, 2, 3), classes: int = 3):
        super().__init__(shape, classes)
        bias, self.back = self.back.bias, nn.Identity()
        self.back.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.there(x.flatten(1)).relu()
        return self.fc(F.linear(hidden, self.there.weight, self.back.bias).relu())


class OnePath(nn.Module):
    """A convolution with BatchNorm, and a linear layer."""

    def __init__(self, shape: Sequence[int], classes: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(shape[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).flatten(1))


class TwoPaths(OnePath):
    """The same, with further names: of the body and of its convolution."""

    def __init__(self, shape: Sequence[int], classes: int):
        super().__init__(shape, classes)
        self.encoder, self.first = self.body, self.body[0]


class Named(nn.Module):
    """A linear layer by any name. `extra` is a parameter beside its weight."""

    def __init__(self, shape: Sequence[int], classes: int, name: str = "fc", extra: str = ""):
        super().__init__()
        self.name, layer = name, nn.Linear(math.prod(shape), classes)
        if extra:
            layer.register_parameter(extra, nn.Parameter(torch.ones(1)))
        self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self._modules[self.name](x.flatten(1))


class Normed(nn.Module):
    """BatchNorm under any key of a ModuleDict, of the inputs as they are, before a linear layer."""

    def __init__(self, shape: Sequence[int], classes: int, key: str = "norm"):
        super().__init__()
        self.key, self.layers = key, nn.ModuleDict({key: nn.BatchNorm2d(shape[0])})
        self.fc = nn.Linear(math.prod(shape), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers[self.key](x).flatten(1))


def lazy(shape: Sequence[int], classes: int) -> nn.Module:
    """Layers that learn their sizes from the first input."""
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


def in_one_memory(shape: Sequence[int], classes: int) -> nn.Module:
    """A parameter that was made of another one's data: two objects, one memory."""
    net = Tied(shape, classes)
    net.back.weight = nn.Parameter(net.there.weight.data)
    return net


def buffer_of_weight(shape: Sequence[int], classes: int) -> nn.Module:
    """A buffer that is a row of a weight."""
    net = OnePath(shape, classes)
    net.register_buffer("row", net.fc.weight.data[2])
    return net


def quantised(shape: Sequence[int], classes: int) -> nn.Module:
    """A layer of integers that are no parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4), torch.ao.nn.quantized.Linear(4, classes))


def normed(shape: Sequence[int], classes: int, how: str = "weight_norm", old: bool = False) -> nn.Module:
    """The first layer's weight is computed from others at every call."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4), nn.ReLU(), nn.Linear(4, classes))
    getattr(nn.utils if old else nn.utils.parametrizations, how)(net[1])
    return net


def other_arguments(size: Sequence[int], outputs: int) -> nn.Module:
    """What does not take shape and classes."""
    return nn.Linear(math.prod(size), outputs)


def no_network(shape: Sequence[int], classes: int) -> tuple[int, ...]:
    """What is no network."""
    return (*shape, classes)


def no_parameters(shape: Sequence[int], classes: int) -> nn.Module:
    """A network with nothing to train."""
    return nn.Flatten()


def no_layer(shape: Sequence[int], classes: int) -> nn.Module:
    """A network with nothing to prune."""
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(math.prod(shape)))


def embedded(shape: Sequence[int], classes: int) -> nn.Module:
    """A network whose one layer is an embedding."""
    return nn.Sequential(nn.Flatten(), nn.Embedding(classes, 3))


class Uncalled(nn.Module):
    """A lazy layer that no forward of one example calls."""

    def __init__(self, shape: Sequence[int], classes: int):
        super().__init__()
        self.fc, self.extra = nn.Linear(math.prod(shape), classes), nn.LazyLinear(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Telling(OnePath):
    """Puts out a dict: logits, features and a text."""

    def forward(self, x: Tensor) -> dict[str, object]:  # type: ignore[override]
        features = self.body(x).flatten(1)
        return {"logits": self.fc(features), "features": features, "text": "seen"}


class OfLogits(LocalModule):
    """Classification by one of the outputs of a dict."""

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0])["logits"], batch[1], "mean")

    def outcome(self, batch):
        logits = self.net(batch[0])["logits"]
        return self.loss(logits, batch[1], "none"), logits.argmax(1) == batch[1]


class OfMany(OfLogits):
    """A step that takes no fewer than three examples."""

    def training_step(self, batch, batch_idx):
        if len(batch[0]) < 3:
            raise ValueError("three examples at least")
        return super().training_step(batch, batch_idx)
