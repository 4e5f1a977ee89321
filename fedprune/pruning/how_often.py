"""The pruning schedules: how often a run prunes, and to which densities.

A schedule is (Window, final density) -> Plan. A density is a fraction of all units; a `rate` is a fraction of the survivors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedprune.errors import ConfigError, Incompatible
from fedprune.pruning.when import Window
from fedprune.types import InitialPruning, Plan, PruneEvent

SHAPES: dict[str, Callable[[float, float], float]] = {
    "cubic": lambda t, density: density + (1 - density) * (1 - t) ** 3,
    "linear": lambda t, density: density + (1 - density) * (1 - t),
    "exponential": lambda t, density: density**t,
}
"""(t in [0, 1], final density) -> the density at t."""

DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "linear": lambda t: 1.0 - t,
    "constant": lambda t: 1.0,
}
"""t in [0, 1] -> the fraction of `swap` that is exchanged at t."""


class HowOften(ABC):
    """The base of all options."""

    @abstractmethod
    def __call__(self, window: Window, density: float) -> Plan: ...


MOST_TIMES = 1_000_000
"""The most events of a plan: each is in memory from the beginning, and in a round of its own."""


@dataclass(frozen=True)
class Never(HowOften):
    """No event: the dense network."""

    def __call__(self, window: Window, density: float) -> Plan:
        return Plan((), window.rounds)


@dataclass(frozen=True)
class Iterative(HowOften):
    """Prune equal fractions of the survivors, either `times` times, or at the given `rate` until the density is reached.

    With times = n the densities are density^(1/n), density^(2/n), ..., density; once is one-shot pruning. With rate = r they
    are (1 - r)^k, the last one cut off at the density. Frankle & Carbin 2019 (r = 0.2).
    """

    times: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if (self.times is None) == (self.rate is None):
            raise ConfigError(
                [f"how_often.times={self.times} and how_often.rate={self.rate}: give one and set the other to null"]
            )
        if self.times is not None and self.times < 1:
            raise ConfigError([f"how_often.times={self.times} must be at least 1; for no pruning choose how_often=never"])
        if self.times is not None and self.times > MOST_TIMES:
            raise ConfigError([f"how_often.times={self.times} must be at most {MOST_TIMES:,}"])
        if self.rate is not None and not 0 < self.rate < 1:
            raise ConfigError([f"how_often.rate={self.rate} is the fraction of the survivors to prune: between 0 and 1"])

    def __call__(self, window: Window, density: float) -> Plan:
        densities = self._densities(density)
        rounds = window.spread(len(densities))
        return window.plan(tuple(PruneEvent(r, d) for r, d in zip(rounds, densities, strict=True)))

    def _densities(self, density: float) -> list[float]:
        if density == 1:
            return []
        if self.times is not None:
            return [density ** (k / self.times) for k in range(1, self.times)] + [density]
        assert self.rate is not None
        return _by_rate(self.rate, density)


@dataclass(frozen=True)
class Stepwise(HowOften):
    """Prune the fraction `rate` of the survivors as often as a gate allows, until the density is reached.

    Li et al. 2021 (LotteryFL). every: at least so many rounds from one event to the next. The densities are those of Iterative;
    only the gate says when.
    """

    rate: float = 0.2
    every: int = 1

    def __post_init__(self) -> None:
        _check(0 < self.rate < 1, f"how_often.rate={self.rate} is the fraction of the survivors to prune: between 0 and 1")
        _check(self.every >= 1, f"how_often.every={self.every} must be at least 1 round")

    def __call__(self, window: Window, density: float) -> Plan:
        if window.gate is None:
            raise Incompatible(
                "how_often: as often as a gate allows needs a gate: choose when=once_accurate, or how_often=iterative"
            )
        densities = [] if density == 1 else _by_rate(self.rate, density)
        return window.plan(tuple(PruneEvent(window.first, d) for d in densities), apart=self.every)


@dataclass(frozen=True)
class Gradual(HowOften):
    """Prune every `every` rounds of the window; the density falls from 1 along `shape`.

    cubic: d + (1 - d)(1 - t)^3 (Zhu & Gupta 2017); linear: 1 - (1 - d) t; exponential: d^t; t = k/n for the k-th of n events.
    begin: the density to fall from, instead of 1: the first event goes there at once, and t = (k - 1) / (n - 1).
    """

    every: int = 1
    shape: str = "cubic"
    begin: float = 1.0

    def __post_init__(self) -> None:
        _check(self.every >= 1, f"how_often.every={self.every} must be at least 1 round")
        _check(self.shape in SHAPES, f"how_often.shape={self.shape}: choose one of {', '.join(SHAPES)}")
        _check(0 < self.begin <= 1, f"how_often.begin={self.begin} is a density: more than 0, at most 1")

    def __call__(self, window: Window, density: float) -> Plan:
        _check(density <= self.begin, f"how_often.begin={self.begin} is below density={density}: choose a higher one")
        rounds, curve = window.every(self.every), SHAPES[self.shape]
        if self.begin == 1:
            return window.plan(tuple(PruneEvent(r, curve((k + 1) / len(rounds), density)) for k, r in enumerate(rounds)))
        _check(
            len(rounds) > 1,
            f"how_often.begin={self.begin} takes two events or more: set more rounds, or how_often.begin=1.0",
        )
        stages = (k / (len(rounds) - 1) for k in range(len(rounds)))
        densities = [self.begin * curve(t, density / self.begin) for t in stages]
        return window.plan(tuple(PruneEvent(r, d) for r, d in zip(rounds, [*densities[:-1], density], strict=True)))


@dataclass(frozen=True)
class Dynamic(HowOften):
    """Dynamic sparse training: prune at the start, and exchange a fraction of the living every `every` rounds of the window.

    The fraction is `swap`, decayed over the window: cosine: swap (1 + cos(pi t)) / 2 with t = round / end of the window
    (Evci et al. 2020; FedDST), linear: swap (1 - t) (FLASH), or constant.

    alone: before the first round one client trains and prunes alone, for at most so many rounds; every `every` of them it
    exchanges the fraction `swap` (0: nobody does). Jiang et al. 2022 (PruneFL), initial pruning.
    """

    every: int = 10
    swap: float = 0.3
    decay: str = "cosine"
    alone: int = 0

    def __post_init__(self) -> None:
        _check(self.every >= 1, f"how_often.every={self.every} must be at least 1 round")
        _check(0 < self.swap < 1, f"how_often.swap={self.swap} is a fraction of the living: between 0 and 1")
        _check(self.decay in DECAYS, f"how_often.decay={self.decay}: choose one of {', '.join(DECAYS)}")
        _check(
            self.alone == 0 or self.alone >= self.every,
            f"how_often.alone={self.alone} rounds come to no event, as one client alone prunes every {self.every} "
            f"(how_often.every): set how_often.alone={self.every} or more, or how_often.alone=0",
        )

    def __call__(self, window: Window, density: float) -> Plan:
        if window.gate is not None:
            raise Incompatible(
                "how_often: what is sparse from the start and exchanges every so many rounds has nothing to wait for: "
                "choose when=during_training, or how_often=iterative"
            )
        rounds = [r for r in window.every(self.every) if r > 0]
        swaps = [self.swap * DECAYS[self.decay](r / window.stop) for r in rounds]
        exchanges = tuple(PruneEvent(r, density, s) for r, s in zip(rounds, swaps, strict=True))
        initial = InitialPruning(self.alone, self.every, self.swap) if self.alone else None
        return window.plan((PruneEvent(0, density, initial=initial), *exchanges))


@dataclass(frozen=True)
class Progressive(Dynamic):
    """Dynamic sparse training block by block. Huang et al. 2023 (FedTiny).

    Each exchange is in the next of `blocks` blocks of consecutive layers, from the output to the input and over again.
    """

    blocks: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.blocks >= 1, f"how_often.blocks={self.blocks} must be at least 1")

    def __call__(self, window: Window, density: float) -> Plan:
        plan = super().__call__(window, density)
        turns = tuple(replace(event, block=(i % self.blocks, self.blocks)) for i, event in enumerate(plan.events[1:]))
        return replace(plan, events=(*plan.events[:1], *turns))


def _by_rate(rate: float, density: float) -> list[float]:
    """Return (1 - rate)^k for k = 1, 2, ..., the last one cut off at the density."""
    steps = math.ceil(math.log(density) / math.log(1 - rate) - 1e-9)
    return [(1 - rate) ** k for k in range(1, steps)] + [density]


def _check(ok: bool, problem: str) -> None:
    if not ok:
        raise ConfigError([problem])
