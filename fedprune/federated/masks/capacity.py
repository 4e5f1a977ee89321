"""Capacities: the fraction of the network that each client can carry, the same for the whole run.

Every capacity is (client, seed) -> from above 0 to 1, where 1 is the whole network. It is drawn by the client's number: neither
the round nor the cohort, nor a client's place in it, plays a part.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fedprune.errors import ConfigError
from fedprune.randomness import numpy_stream


class Capacity(ABC):
    """The base of all options."""

    @abstractmethod
    def __call__(self, client: int, seed: int) -> float: ...


def equal(client: int, seed: int) -> float:
    """Everybody carries the whole network."""
    return 1.0


@dataclass(frozen=True)
class Tiers(Capacity):
    """One of these `levels`, in proportion to their `shares` (null: equally likely)."""

    levels: Sequence[float]
    shares: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise ConfigError([f"federated.capacity.levels={list(self.levels)}: give fractions above 0, at most 1"])
        if self.shares is None:
            return
        if len(self.shares) != len(self.levels):
            raise ConfigError(
                [f"federated.capacity.shares={list(self.shares)}: give one for each of the {len(self.levels)} levels, or null"]
            )
        if not all(0 <= share < float("inf") for share in self.shares) or not sum(self.shares) > 0:
            raise ConfigError([f"federated.capacity.shares={list(self.shares)}: none may be negative, and not all of them 0"])

    def __call__(self, client: int, seed: int) -> float:
        ends = list(itertools.accumulate(self.shares or [1.0] * len(self.levels)))
        drawn = ends[-1] * numpy_stream(seed, "capacity", client=client).random()
        return next(level for level, end in zip(self.levels, ends, strict=True) if drawn < end)


@dataclass(frozen=True)
class Uniform(Capacity):
    """Fractions from `low` to `high`, all equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ConfigError(
                [f"federated.capacity: low={self.low} and high={self.high} are fractions of the network: 0 < low <= high <= 1"]
            )

    def __call__(self, client: int, seed: int) -> float:
        return float(numpy_stream(seed, "capacity", client=client).uniform(self.low, self.high))


def of_all(capacity: Capacity, clients: int, seed: int) -> tuple[float, ...]:
    """Return the capacity of each client."""
    return tuple(capacity(client, seed) for client in range(clients))
