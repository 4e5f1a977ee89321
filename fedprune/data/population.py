"""A population of any size: clients whose examples are drawn when they are asked for, so that a million clients cost nothing.

There may be more clients than examples, so an example may belong to many clients. The pool is cut into a training, a validation
and a test part once, and each client draws from all three: no client trains on an example that another one tests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, overload

import numpy as np
import torch
from torch import Tensor

from fedprune.data.divide import Parts
from fedprune.data.partition import Division, alpha_problems, unless
from fedprune.errors import DataError
from fedprune.randomness import numpy_stream

NAMES = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Drawn(Sequence[Tensor]):
    """One part of each client: int64 indices into the training pool, ascending, drawn each time they are asked for, with the
    same result.

    classes: the part's examples of each class. number: of each client's examples. Client c has the class mix
    q ~ Dirichlet(alpha) and the counts Multinomial(number, q), both functions of (seed, c); of each class it draws so many
    different examples.
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
            return [self[number] for number in range(self.clients)[client]]
        if not 0 <= client < self.clients:
            raise IndexError(client)
        mix = numpy_stream(self.seed, "class mix", 0, client).dirichlet(np.full(len(self.classes), self.alpha))
        rng = numpy_stream(self.seed, f"population {self.part}", 0, client)
        counts = rng.multinomial(self.number, mix)
        chosen = [rng.choice(pool, count, replace=False) for pool, count in zip(self.classes, counts, strict=True) if count]
        return torch.from_numpy(np.sort(np.concatenate(chosen or [self.classes[0][:0]])))


@dataclass(frozen=True)
class ClassMix(Division):
    """Every client draws its class mix, q ~ Dirichlet(alpha, ..., alpha), and `examples` examples by it.

    Small alpha: few classes per client; all clients have one size. Source: Hsu, Qi & Brown 2019; theirs gives each example to
    one client, this one to any number of them, so that there can be more clients than examples.
    """

    disjoint: ClassVar[bool] = False
    size: ClassVar[str] = "examples"

    alpha: float = 0.5
    examples: int = 100

    def divide(self, labels: np.ndarray, pool: np.ndarray, clients: int, seed: int) -> Parts:
        """Shuffle each class of the pool and cut it in the proportions of a client's parts; clients draw from these.

        Raises DataError if a class has fewer examples of a part than a client might draw.
        """
        numbers, rng = self.split(self.examples), numpy_stream(seed, "population")
        members = [rng.permutation(pool[labels[pool] == label]) for label in np.unique(labels[pool])]
        cut = [np.split(of_class, np.cumsum(numbers)[:-1] * len(of_class) // self.examples) for of_class in members]
        parts = [tuple(np.sort(of_class) for of_class in classes) for classes in zip(*cut, strict=True)]
        self._require(parts, numbers)
        train, val, test = (
            Drawn(classes, number, clients, self.alpha, seed, name)
            for classes, number, name in zip(parts, numbers, NAMES, strict=True)
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
    """Return the number of examples that each client has in a part, without drawing any."""
    if isinstance(parts, Drawn):
        return [parts.number] * len(parts)
    return [len(indices) for indices in parts]
