"""The availability of clients: some drop out of a round, never answer, or are too slow for its deadline.

Every availability is (seed, work) -> Fates, and Fates are (client, clock) -> Fate. `work` is the number of batches on which
each client trains in a round, by client. What lasts as long as the run (who never answers, how fast a client is) is drawn once,
by the client's number; who drops out of a round is drawn by (seed, clock, client). By the clock, as cohorts are: after a rewind
the same clients are missing from the same rounds. Neither the cohort nor the order in which clients are asked plays a part.

A client that does not answer was sent its job, trains nothing, sends nothing and keeps what it kept. One that is missing from a
round is missing from all of it: it measures no evidence either.
"""

from __future__ import annotations

import functools
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from fedprune.capabilities import declares
from fedprune.errors import ConfigError
from fedprune.pruning.what.top_k import nearest
from fedprune.randomness import numpy_stream


class Fate(Enum):
    """The fate of a client's answer in a round."""

    ANSWERS = "answers"
    SILENT = "silent"
    LATE = "late"


Fates = Callable[[int, int], Fate]
"""(client, clock) -> its fate in that round: pure, and free of state."""


class Availability(ABC):
    """The base of all options. certain: whether every client answers in every round."""

    certain: bool = False

    @abstractmethod
    def __call__(self, seed: int, work: Sequence[int]) -> Fates: ...


def everybody(client: int, clock: int) -> Fate:
    """The fates of a federation in which everybody answers."""
    return Fate.ANSWERS


@declares(certain=True)
def always(seed: int, work: Sequence[int]) -> Fates:
    """Everybody answers."""
    return everybody


@dataclass(frozen=True)
class Dropout(Availability):
    """Each client that is asked fails to answer with probability `rate`, independently in every round."""

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ConfigError(
                [f"federated.availability.rate={self.rate} is the probability of no answer in a round: 0 or more, less than 1"]
            )

    def __call__(self, seed: int, work: Sequence[int]) -> Fates:
        return functools.partial(_drops_out, seed, self.rate)


@dataclass(frozen=True)
class Never(Availability):
    """The same `fraction` of the clients (the nearest number of them) never answers."""

    fraction: float

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ConfigError(
                [f"federated.availability.fraction={self.fraction} of the clients never answers: 0 or more, less than 1"]
            )

    def __call__(self, seed: int, work: Sequence[int]) -> Fates:
        drawn = {client: numpy_stream(seed, "never answers", client=client).random() for client in range(len(work))}
        first = sorted(drawn, key=drawn.__getitem__)[: nearest(self.fraction * len(work))]
        return functools.partial(_is_among, frozenset(first), Fate.SILENT)


Speeds = Callable[[np.random.Generator], float]
"""One client's speed, in batches per unit of time."""


@dataclass(frozen=True)
class Slow(Availability):
    """Each client has a speed for life; whoever takes longer for a round than its deadline is left out of it.

    A client's time is its batches in a round / its speed. The deadline is `deadline` times the median of these times over all
    clients, asked or not (with an even number, the mean of the two in the middle); a time that equals it is in time. So it is
    always the same clients that are late, and what only they know is never learnt.
    """

    speeds: Speeds
    deadline: float

    def __post_init__(self) -> None:
        if not self.deadline > 0:
            raise ConfigError([f"federated.availability.deadline={self.deadline} is in median times: more than 0"])

    def __call__(self, seed: int, work: Sequence[int]) -> Fates:
        times = [batches / self.speeds(numpy_stream(seed, "speed", client=client)) for client, batches in enumerate(work)]
        deadline = self.deadline * statistics.median(times)
        late = frozenset(client for client, time in enumerate(times) if time > deadline)
        return functools.partial(_is_among, late, Fate.LATE)


@dataclass(frozen=True)
class Lognormal:
    """exp(sigma z) with z standard normal: the median speed is 1, and a few clients are far slower than that."""

    sigma: float

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < float("inf"):
            raise ConfigError([f"federated.availability.speeds.sigma={self.sigma} must not be negative, and finite"])

    def __call__(self, generator: np.random.Generator) -> float:
        return float(np.exp(self.sigma * generator.standard_normal()))


@dataclass(frozen=True)
class Uniform:
    """Speeds from `low` to `high`, all equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < float("inf"):
            raise ConfigError(
                [f"federated.availability.speeds: low={self.low} and high={self.high} are speeds: 0 < low <= high"]
            )

    def __call__(self, generator: np.random.Generator) -> float:
        return float(generator.uniform(self.low, self.high))


@dataclass(frozen=True)
class Tiers:
    """One of these `speeds`, equally likely; one that stands there twice has twice the share."""

    speeds: Sequence[float]

    def __post_init__(self) -> None:
        if not self.speeds or not all(0 < speed < float("inf") for speed in self.speeds):
            raise ConfigError([f"federated.availability.speeds.speeds={list(self.speeds)}: give one or more positive numbers"])

    def __call__(self, generator: np.random.Generator) -> float:
        return float(self.speeds[int(generator.integers(len(self.speeds)))])


def heard(fates: Fates, asked: Callable[[int], Sequence[int]], rounds: int) -> bool:
    """Return whether anybody who is asked answers in any of so many rounds. asked: (clock) -> the clients."""
    return any(fates(client, clock) is Fate.ANSWERS for clock in range(rounds) for client in asked(clock))


def _drops_out(seed: int, rate: float, client: int, clock: int) -> Fate:
    return Fate.SILENT if numpy_stream(seed, "drops out", clock, client).random() < rate else Fate.ANSWERS


def _is_among(clients: frozenset[int], fate: Fate, client: int, clock: int) -> Fate:
    return fate if client in clients else Fate.ANSWERS
