"""How much each client can carry: a fraction of the network, one for life to each.

Every capacity is (client, seed) -> from above 0 to 1, where 1 is the whole network. It is drawn by the client's number: neither
the round nor the cohort, nor a client's place in it, plays a part.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fedprune.errors import ConfigError, Incompatible
from fedprune.federated.masks import PersonalMask, Whose
from fedprune.randomness import numpy_stream
from fedprune.types import Plan

Capacity = Callable[[int, int], float]

CHOOSE = "choose whose=nested or whose=personal, or federated/capacity=equal"


def equal(client: int, seed: int) -> float:
    """Everybody carries the whole network."""
    return 1.0


@dataclass(frozen=True)
class Tiers:
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
class Uniform:
    """Any fraction from `low` to `high`, equally likely."""

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
    """The capacity of each client."""
    return tuple(capacity(client, seed) for client in range(clients))


def personal(
    whose: PersonalMask, capacities: Sequence[float], plan_to: Callable[[float], Plan], density: float
) -> PersonalMask:
    """Each client with a plan of its own, which ends at `density` x its capacity (as DisPFL's densities, Dai et al. 2022).

    plan_to: the plan that ends at a density. Raises Incompatible if there is nothing in it for a capacity to decide.
    """
    if set(capacities) == {1.0}:
        return whose
    if not plan_to(density).events:
        raise Incompatible(
            "federated.capacity says how far each client prunes, and how_often has no event: choose how_often=one_shot, "
            "or federated/capacity=equal"
        )
    plans = {capacity: plan_to(density * capacity) for capacity in sorted(set(capacities))}
    return replace(whose, plans=tuple(plans[capacity] for capacity in capacities))


def nobodys(whose: Whose, capacities: Sequence[float], name: str) -> Whose:
    """A `whose` that gives everybody one and the same network. Raises Incompatible if somebody cannot carry it."""
    if set(capacities) != {1.0}:
        raise Incompatible(f"whose={name} gives everybody the same network, and federated.capacity says otherwise: {CHOOSE}")
    return whose
