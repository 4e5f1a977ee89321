"""Networks as users write them: what our own models do not have. Configs of tests name them as networks.CLASS."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn


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
