"""The transformer for text: `(shape: (T,), classes) -> nn.Module`, from int64 [B, T] to logits [B, classes, T]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedprune.errors import ConfigError
from fedprune.models.layers import require_positive, require_sequence


def char_transformer(shape: tuple[int, ...], classes: int, width: int = 64, heads: int = 4, layers: int = 2) -> nn.Module:
    """Return a decoder, in which each place attends to itself and earlier places. It has learned positions, and pre-norm blocks
    of attention and two linear layers with ReLU (width - 4 width - width); 114,762 parameters on sequences of 80 of 74
    characters.

    Source: Vaswani et al. 2017, in the arrangement of GPT-2 (Radford et al. 2019). Weights are Gaussian of variance 1 / inputs
    (of embeddings 1 / width); those that end a block's two branches are divided by sqrt(2 layers), as there; biases are 0.
    (GPT-2's deviation of 0.02 goes with a width of 768: at 64 it learns later.) There is no dropout, and the output layer's
    weights are not tied to the embedding. Raises ConfigError on images, on sizes below 1, and on heads that do not divide the
    width.
    """
    require_sequence("char_transformer", shape)
    require_positive(width=width, heads=heads, layers=layers)
    if width % heads:
        raise ConfigError([f"model.heads={heads} does not divide model.width={width}: type e.g. model.width={heads * 16}"])
    return _initialised(CharTransformer(shape[0], classes, width, heads, layers))


def _initialised(network: CharTransformer) -> CharTransformer:
    for name, parameter in network.named_parameters():
        if parameter.dim() == 2:
            branches = 2 * len(network.blocks) if name.endswith(("out_proj.weight", "fc2.weight")) else 1
            nn.init.normal_(parameter, std=(parameter.shape[1] * branches) ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return network


class CharTransformer(nn.Module):
    """`classes` characters at `length` places -> `width` (`layers` blocks) -> `classes`."""

    def __init__(self, length: int, classes: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(length, width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes, T] of x [B, T]: at each place those of the next character; T is at most `length`."""
        places = torch.arange(x.shape[1], device=x.device)
        logits: Tensor = self.fc(self.norm(self.blocks(self.embedding(x) + self.position(places))))
        return logits.transpose(1, 2)


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    later: Tensor

    def __init__(self, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads)  # the inference path of batch_first is slower under a mask
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.register_buffer("later", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's outputs [B, T, width] of x [B, T, width]."""
        normed, later = self.norm1(x).transpose(0, 1), self.later[: x.shape[1], : x.shape[1]]
        attended, _ = self.attention(normed, normed, normed, need_weights=False, attn_mask=later, is_causal=True)
        x = x + attended.transpose(0, 1)
        outputs: Tensor = x + self.fc2(F.relu(self.fc1(self.norm2(x))))
        return outputs
