"""The recurrent network for text: `(shape: (T,), classes) -> nn.Module`, from int64 [B, T] to logits [B, classes, T]."""

from __future__ import annotations

from torch import Tensor, nn

from fedprune.models.layers import require_positive, require_sequence


def char_lstm(shape: tuple[int, ...], classes: int, embedding: int = 32, hidden: int = 64, layers: int = 1) -> nn.Module:
    """Return an embedding, `layers` LSTMs of `hidden` units, and a linear layer on each output; 32,266 parameters with 74
    classes.

    LEAF's (Caldas et al. 2018) has embedding=8 hidden=256 layers=2. It reads from left to right, so the outputs at a place do
    not depend on later places. Initial values are torch's; a forget gate begins half open. Raises ConfigError on images, and on
    sizes below 1.
    """
    require_sequence("char_lstm", shape)
    require_positive(embedding=embedding, hidden=hidden, layers=layers)
    return CharLstm(classes, embedding, hidden, layers)


class CharLstm(nn.Module):
    """`classes` characters -> `embedding` -> `hidden` (`layers` times) -> `classes`."""

    def __init__(self, classes: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes, T] of x [B, T]: at each place those of the next character."""
        logits: Tensor = self.fc(self.lstm(self.embedding(x))[0])
        return logits.transpose(1, 2)
