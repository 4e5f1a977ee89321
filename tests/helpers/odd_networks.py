"""Networks that are not ours: with tensors of every type and shape, with frozen layers, and in half precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Odd(nn.Module):
    """A perceptron with BatchNorm that carries tensors which nobody trains. half: the type of its numbers."""

    def __init__(self, shape: tuple[int, ...], classes: int, half: str = "float32", whole: bool = True):
        super().__init__()
        self.first = nn.Linear(torch.Size(shape).numel(), 8, dtype=getattr(torch, half))
        self.norm = nn.BatchNorm1d(8, dtype=getattr(torch, half))
        self.last = nn.Linear(8, classes, dtype=getattr(torch, half))
        for name, buffer in odd_tensors().items():
            self.register_buffer(name, buffer)
        if whole:
            self.places = nn.Parameter(torch.tensor([3, 4]), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(inputs.flatten(1).to(self.first.weight.dtype)))))


def odd_tensors() -> dict[str, Tensor]:
    """A tensor of every type and shape that a buffer may have."""
    return {
        "causal": torch.triu(torch.full((3, 3), -torch.inf), 1),
        "unknown": torch.tensor([torch.nan, 1.0]),
        "empty": torch.zeros(0),
        "flat": torch.zeros(3, 0, dtype=torch.int32),
        "expanded": torch.ones(1).expand(5),
        "transposed": torch.arange(6.0).view(2, 3).t(),
        "pixels": torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last),
        "one": torch.tensor(2.5),
        "huge": torch.tensor([2**60 + 1]),
        "flags": torch.tensor([True, False]),
        "octets": torch.tensor([255], dtype=torch.uint8),
        "in_float16": torch.tensor([1.5, 65504.0], dtype=torch.float16),
        "in_bfloat16": torch.tensor([1.5], dtype=torch.bfloat16),
        "in_float64": torch.tensor([1e-300], dtype=torch.float64),
        "in_complex64": torch.tensor([1 + 2j], dtype=torch.complex64),
        "in_complex128": torch.tensor([1 + 2j], dtype=torch.complex128),
    }


class Frozen(nn.Sequential):
    """A convolution that nobody trains before a head that is trained. norm: whether BatchNorm comes between them."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int = 6, norm: bool = False):
        super().__init__()
        self.backbone = nn.Conv2d(shape[0], width, 3).requires_grad_(False)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.act, self.flat = nn.ReLU(), nn.Flatten()
        self.head = nn.Linear(width * (shape[1] - 2) * (shape[2] - 2), classes)
