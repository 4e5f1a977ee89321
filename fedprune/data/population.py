"""A population of any size: clients whose examples are drawn when they are asked for, so that a million of them cost nothing.

There may be more of them than the data set has examples, so an example may belong to many. The pool is cut into a training, a
validation and a test part once, and each client draws from all three: nobody's test example is anybody's training example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from fedprune.data.partition import Holdings, alpha_problems, unless
from fedprune.errors import DataError
from fedprune.randomness import numpy_stream

PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Drawn(Sequence[Tensor]):
    """One part of each client: int64 indices into the training pool, ascending, drawn (alike) each time they are asked for.

    classes: the part's examples of each class. number: how many each client has. Client c's class mix is q ~ Dirichlet(alpha),
    its counts are Multinomial(number, q), all of (seed, c); of a class it draws that many different examples.
    """

    classes: tuple[np.ndarray, ...]
    number: int
    clients: int
    alpha: float
    seed: int
    part: str

    def __len__(self) -> int:
        return self.clients

    @overload
    def __getitem__(self, client: int) -> Tensor: ...
    @overload
    def __getitem__(self, client: slice) -> list[Tensor]: ...
    def __getitem__(self, client: int | slice) -> Tensor | list[Tensor]:
        if isinstance(client, slice):
            return [self[one] for one in range(self.clients)[client]]
        if not 0 <= client < self.clients:
            raise IndexError(client)
        mix = numpy_stream(self.seed, "class mix", 0, client).dirichlet(np.full(len(self.classes), self.alpha))
        rng = numpy_stream(self.seed, f"population {self.part}", 0, client)
        counts = rng.multinomial(self.number, mix)
        chosen = [rng.choice(pool, count, replace=False) for pool, count in zip(self.classes, counts, strict=True) if count]
        return torch.from_numpy(np.sort(np.concatenate(chosen or [self.classes[0][:0]])))


@dataclass(frozen=True)
class ClassMix(Holdings):
    """Every client draws a class mix of its own, q ~ Dirichlet(alpha, ..., alpha), and `examples` examples by it.

    Small alpha: few classes per client; all clients are of one size. Source: Hsu, Qi & Brown 2019; theirs gives each example to
    one client, this to any number of them, so that there can be more clients than examples.
    """

    alpha: float = 0.5
    examples: int = 100

    def population(self, labels: np.ndarray, pool: np.ndarray, clients: int, seed: int) -> tuple[Drawn, Drawn, Drawn]:
        """(train, val, test) of every client. labels: of the whole training pool; pool: the indices that clients may have.

        Each class of the pool is shuffled and cut in the proportions of a client's parts. Raises DataError where a class has
        fewer examples of a part than a client might draw.
        """
        numbers, rng = self.split(self.examples), numpy_stream(seed, "population")
        members = [rng.permutation(pool[labels[pool] == label]) for label in np.unique(labels[pool])]
        cut = [np.split(one, np.cumsum(numbers)[:-1] * len(one) // self.examples) for one in members]
        parts = [tuple(np.sort(one) for one in classes) for classes in zip(*cut, strict=True)]
        self._require(parts, numbers)
        train, val, test = (
            Drawn(classes, number, clients, self.alpha, seed, part)
            for classes, number, part in zip(parts, numbers, PARTS, strict=True)
        )
        return train, val, test

    def _require(self, parts: list[tuple[np.ndarray, ...]], numbers: tuple[int, int, int]) -> None:
        least = min(min(map(len, classes)) / number for classes, number in zip(parts, numbers, strict=True) if number)
        if least < 1:
            raise DataError(
                f"partition.examples={self.examples}: the smallest class has too few for a client that has no other: "
                f"choose partition.examples={int(least * self.examples)} or fewer"
            )

    def problems(self) -> list[str]:
        few = f"partition.examples={self.examples} leaves a client too little: type {self.needed} or more"
        return [*super().problems(), *alpha_problems(self.alpha), *unless(self.examples >= self.needed, few)]


def sizes(parts: Sequence[Tensor]) -> list[int]:
    """How many examples each client has in a part; nobody's are drawn for it."""
    return [parts.number] * len(parts) if isinstance(parts, Drawn) else [len(part) for part in parts]
