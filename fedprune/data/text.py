"""Data sets of text: sequences of characters, whose labels are the next characters. Each has a loader `(root: str, ...) ->
Text`.

Characters stay bytes; a batch is an index slice, then numbers for an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedprune.data.cache import cached
from fedprune.data.datasets import Dataset
from fedprune.data.formats import damaged
from fedprune.data.plays import VOCABULARY, read_plays
from fedprune.data.sources import SHAKESPEARE, obtain, to_type
from fedprune.errors import ConfigError

PLAYS = 38
TEST = 10  # one in so many windows of a role, the last ones, are in the global test set


@dataclass(frozen=True, eq=False)
class Text(Dataset):
    """Sequences of T characters. x, y: uint8 [N, T]; y has the character after each one of x. test_x, test_y: the same.

    An example is a sequence; its loss and accuracy are means over its T characters. mean and std are empty.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (T,), the shape of one sequence."""
        return tuple(self.x.shape[1:])

    def normalise(self, x: Tensor) -> Tensor:
        """Return the characters' numbers as int64, for an embedding."""
        return x.long()


@cached(SHAKESPEARE, Text)
def shakespeare(root: str, characters: int = 80) -> Text:
    """Return 38 plays of Shakespeare by role: 1,426 roles, 4.4 million characters, 74 different ones (see plays.py).

    The text of a role, in the order of the play, is cut into windows of `characters` + 1, which do not overlap: the first
    `characters` are the input, the last `characters` the labels. The rest at the end is not used. `groups` are the roles whose
    text is long enough for a window. The last tenth of a role's windows (rounded down) is in the global test set; LEAF
    (Caldas et al. 2018), too, cuts each role in time. LEAF has a window at every character, with one label: the same labels for
    eighty times the work.

    Raises ConfigError if `characters` is no length, DataError for a missing or damaged file, with what to type.
    """
    if characters < 1:
        raise ConfigError([f"data.characters={characters} is the length of a sequence: type a whole number from 1"])
    (path,) = obtain(SHAKESPEARE, root)
    remedy = f"and {to_type(SHAKESPEARE, Path(root).expanduser())}"
    texts = read_plays(path, PLAYS, remedy)
    roles = [role for role in (windows(text, characters) for text in texts.values()) if len(role)]
    if sum(len(role) // TEST for role in roles) == 0:
        raise damaged(path, f"no role says enough for {TEST} windows of {characters + 1} characters", remedy)
    train, test = zip(*(np.split(role, [len(role) - len(role) // TEST]) for role in roles), strict=True)
    groups = np.repeat(np.arange(len(roles)), [len(role) for role in train])
    (x, y), (test_x, test_y) = _inputs_and_labels(train), _inputs_and_labels(test)
    return Text("shakespeare", x, y, test_x, test_y, classes=len(VOCABULARY), mean=(), std=(), groups=torch.from_numpy(groups))


def windows(text: str, characters: int) -> np.ndarray:
    """Cut a text from its start into windows, uint8 [n, characters + 1]: numbers of characters in VOCABULARY."""
    encoded = _NUMBERS[np.frombuffer(text.encode("ascii"), np.uint8)]
    whole = len(encoded) // (characters + 1)
    return encoded[: whole * (characters + 1)].reshape(whole, characters + 1)


_NUMBERS = np.zeros(128, np.uint8)
_NUMBERS[[ord(character) for character in VOCABULARY]] = np.arange(len(VOCABULARY))


def _inputs_and_labels(parts: Iterable[np.ndarray]) -> tuple[Tensor, Tensor]:
    cut = torch.from_numpy(np.concatenate([*parts]))
    return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()
