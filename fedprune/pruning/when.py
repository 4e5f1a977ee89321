"""When pruning happens: before, during or after training.

Every `when` is (rounds of one training run) -> Window. A Window says where prune events may fall; how_often.py places them.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedprune.errors import ConfigError, Incompatible
from fedprune.pruning.rank import nearest
from fedprune.types import Plan, PruneEvent


@dataclass(frozen=True)
class Window:
    """Events may fall after `first` rounds and before `stop` rounds of a training run of `rounds` rounds.

    repeats: the events fall at the ends of whole training runs instead, as many runs as there are events, and one more.
    """

    first: int
    stop: int
    rounds: int
    repeats: bool = False

    def spread(self, times: int) -> tuple[int, ...]:
        """The rounds of `times` events, evenly over the window, the first of them at its start."""
        if self.repeats:
            return tuple(self.rounds * (i + 1) for i in range(times))
        return tuple(self.first + i * (self.stop - self.first) // times for i in range(times))

    def every(self, rounds: int) -> tuple[int, ...]:
        """Every `rounds` rounds of the window. Raises Incompatible if the window has no length."""
        if self.repeats or self.first >= self.stop:
            raise Incompatible(
                "how_often: an event every so many rounds needs a window of rounds: "
                "choose when=during_training, or how_often=iterative"
            )
        return tuple(range(self.first, self.stop, rounds))

    def plan(self, events: tuple[PruneEvent, ...]) -> Plan:
        """These events and the number of rounds that they take in all."""
        return Plan(events, self.rounds * (len(events) + 1) if self.repeats else self.rounds)


@dataclass(frozen=True)
class BeforeTraining:
    """All events before the first round: pruning at initialisation. With several, evidence is measured anew for each."""

    def __call__(self, rounds: int) -> Window:
        return Window(0, 0, rounds)


@dataclass(frozen=True)
class DuringTraining:
    """Events in a window of the one training run, from `start` to `stop` (fractions of its rounds)."""

    start: float = 0.1
    stop: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 1:
            raise ConfigError(
                [f"when.start={self.start} and when.stop={self.stop} are fractions of the run: 0 <= start < stop <= 1"]
            )

    def __call__(self, rounds: int) -> Window:
        first = min(nearest(self.start * rounds), rounds - 1)
        return Window(first, max(nearest(self.stop * rounds), first + 1), rounds)


@dataclass(frozen=True)
class AfterTraining:
    """Each event at the end of a whole training run; each is followed by another run, to retrain or to start again."""

    def __call__(self, rounds: int) -> Window:
        return Window(rounds, rounds, rounds, repeats=True)
