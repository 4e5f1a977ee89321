"""The residual networks for small images: `(shape: (C, H, W), classes, norm) -> nn.Module`, logits [B, classes]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fedprune.errors import ConfigError
from fedprune.models.layers import initialise, normalisation, offering, require_norm, require_size

NORMS = ("group", "batch")


def resnet20(shape: tuple[int, int, int], classes: int, norm: str = "group", width: int = 1) -> nn.Module:
    """Return 3x3 convolutions in three stages of three blocks, 16, 32 and 64 channels, then an average and one linear layer.

    It has 269,722 parameters on 3x32x32 with 10 classes, with either norm (He et al. 2016, section 4.2: shortcuts without
    parameters). norm: `batch` as in the paper, or `group`, which has no running statistics that differ between clients (Hsieh
    et al. 2020). width: a factor of all channels; 10 makes 26.8 million parameters (Zagoruyko & Komodakis 2016). Weights are
    Gaussian of variance 2 / fan_in, the bias zero (He et al. 2015). Raises ConfigError for images below 4x4,
    another norm, or a width below 1.
    """
    if width < 1:
        raise ConfigError([f"model.width={width} is no multiple of the channels: type a whole number from 1"])
    require_norm("resnet20", norm, NORMS)
    require_size("resnet20", shape, 4, ("lenet_300_100",))
    net = Resnet(shape[0], classes, norm, blocks=3, narrowest=16 * width)
    return offering(initialise(net, nn.init.kaiming_normal_), NORMS)


class Resnet(nn.Module):
    """`blocks` residual blocks in each of three stages, of `narrowest`, twice and four times as many channels."""

    def __init__(self, channels: int, classes: int, norm: str, blocks: int, narrowest: int) -> None:
        super().__init__()
        wider, widest = 2 * narrowest, 4 * narrowest
        self.conv1 = nn.Conv2d(channels, narrowest, 3, padding=1, bias=False)
        self.norm1 = normalisation(norm, narrowest)
        self.stage1 = _stage(narrowest, narrowest, norm, blocks)
        self.stage2 = _stage(narrowest, wider, norm, blocks)
        self.stage3 = _stage(wider, widest, norm, blocks)
        self.fc = nn.Linear(widest, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of x [B, C, H, W]."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Block(nn.Module):
    """relu(shortcut(x) + two normalised convolutions of x); where channels grow, the image is halved."""

    def __init__(self, channels: int, out: int, norm: str) -> None:
        super().__init__()
        self.grown = out - channels
        self.conv1 = nn.Conv2d(channels, out, 3, stride=2 if self.grown else 1, padding=1, bias=False)
        self.norm1 = normalisation(norm, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = normalisation(norm, out)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out, H, W] of x [B, C, H, W], or [B, out, H/2, W/2] (rounded up) where channels grow."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        # Option A of He et al.: every second pixel, and zeros for the new channels.
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.grown)) if self.grown else x


def _stage(channels: int, out: int, norm: str, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(channels, out, norm), *(Block(out, out, norm) for _ in range(blocks - 1)))
