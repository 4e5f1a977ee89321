"""The time of pruning: before, during or after training, or once a gate allows it.

A `when` is (rounds of one training run) -> Window. A Window says where prune events may fall; how_often.py places them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from fedprune.capabilities import complete
from fedprune.errors import ConfigError, Incompatible
from fedprune.pruning.gate import Accurate, Bound, Moving, MovingReached, Reached, Settled
from fedprune.pruning.what.top_k import nearest
from fedprune.types import Condition, Gate, Plan, PruneEvent


@dataclass(frozen=True)
class Window:
    """The rounds in which events may fall: after `first` rounds and before `stop` rounds of a training run of `rounds` rounds.

    repeats: the events fall at the ends of whole training runs instead. There is one run more than events.
    together: then `rounds` are those of all these runs. They are equally long but for the last, which takes the rest.
    gate: the condition that each event waits for, beyond its round.
    """

    first: int
    stop: int
    rounds: int
    repeats: bool = False
    gate: Condition | None = None
    together: bool = False

    def __post_init__(self) -> None:
        if self.gate is not None:  # which may be a user's function
            gate = complete(self.gate, Condition)  # type: ignore[type-abstract]  # only the defaults of the base are taken
            object.__setattr__(self, "gate", gate)

    def spread(self, times: int) -> tuple[int, ...]:
        """Return the rounds of `times` events, evenly over the window, the first of them at its start."""
        if self.repeats:
            return tuple(self._run(times) * (i + 1) for i in range(times))
        return tuple(self.first + i * (self.stop - self.first) // times for i in range(times))

    def every(self, rounds: int) -> tuple[int, ...]:
        """Return every `rounds`-th round of the window. Raises Incompatible if the window has no length."""
        if self.repeats or (self.first >= self.stop and self.gate is None):
            raise Incompatible(
                "how_often: an event every so many rounds needs a window of rounds: "
                "choose when=during_training, or how_often=iterative"
            )
        return tuple(range(self.first, max(self.stop, self.first + 1), rounds))

    def plan(self, events: tuple[PruneEvent, ...], apart: int = 1) -> Plan:
        """Return the plan of these events. Under a gate there are `apart` or more rounds from one to the next.

        Raises Incompatible if the window has no room for that.
        """
        if self.gate is None or not events:
            runs = len(events) + 1 if self.repeats and not self.together else 1
            return Plan(events, self.rounds * runs)
        apart = max(apart, self.gate.asks)
        return Plan(self._in_turn(events, apart), self.rounds, Gate(self.gate, self.stop, apart))

    def _run(self, times: int) -> int:
        """Return the rounds of one of the runs around this many events. Raises Incompatible if there is not one for each."""
        length = self.rounds // (times + 1) if self.together else self.rounds
        if length < 1:
            raise Incompatible(
                f"when.budget=all: {self.rounds} rounds do not suffice for {times + 1} training runs around {times} events: "
                "set more rounds, a higher how_often.rate or when.budget=each"
            )
        return length

    def _in_turn(self, events: tuple[PruneEvent, ...], apart: int) -> tuple[PruneEvent, ...]:
        """Return the events, each as early as it can be if the gate never delays it."""
        placed, soonest = list[PruneEvent](), self.first
        for event in events:
            placed.append(replace(event, round=max(event.round, soonest)))
            soonest = placed[-1].round + apart
        if placed[-1].round >= self.stop:
            raise Incompatible(
                f"there is no room for {len(events)} prune event{'s' * (len(events) > 1)}, {apart} or more rounds apart under "
                f"this gate, between the rounds {self.first} and {self.stop}: set more rounds, or choose how_often=one_shot"
            )
        return tuple(placed)


class When(ABC):
    """The base of all options."""

    @abstractmethod
    def __call__(self, rounds: int) -> Window: ...


@dataclass(frozen=True)
class BeforeTraining(When):
    """Prune at initialisation: all events fall before the first round. Each measures its evidence anew."""

    def __call__(self, rounds: int) -> Window:
        return Window(0, 0, rounds)


@dataclass(frozen=True)
class DuringTraining(When):
    """Prune in a window of the one training run, from `start` to `stop` (fractions of its rounds)."""

    start: float = 0.1
    stop: float = 0.6

    def __post_init__(self) -> None:
        _check_fractions(self.start, self.stop)

    def __call__(self, rounds: int) -> Window:
        first = min(nearest(self.start * rounds), rounds - 1)
        return Window(first, max(nearest(self.stop * rounds), first + 1), rounds)


@dataclass(frozen=True)
class AfterTraining(When):
    """Prune at the end of a whole training run. Another run follows each event, to retrain or to start again.

    budget: `rounds` are those of `each` run, as in the lottery ticket papers, or of `all` of them together, which makes runs
    comparable with methods that train once.
    """

    budget: str = "each"

    def __post_init__(self) -> None:
        if self.budget not in ("each", "all"):
            raise ConfigError([f"when.budget={self.budget}: whose rounds these are: choose each or all (training runs)"])

    def __call__(self, rounds: int) -> Window:
        return Window(rounds, rounds, rounds, repeats=True, together=self.budget == "all")


class _Once(When):
    """Prune in a window of the run, and not before a gate allows it."""

    start: float
    stop: float

    def __post_init__(self) -> None:
        _check_fractions(self.start, self.stop)
        self._gate()  # which checks its own values

    def __call__(self, rounds: int) -> Window:
        gate = self._gate()  # no event before it can have been met, nor after the last round
        first, stop = nearest(self.start * rounds), nearest(self.stop * rounds)
        return Window(max(first, gate.asks), min(max(stop, 1), rounds), rounds, gate=gate)

    @abstractmethod
    def _gate(self) -> Condition:
        """Return the condition. Raises ConfigError if its values mean nothing."""


@dataclass(frozen=True)
class OnceAccurate(_Once):
    """Prune once the server's network has this `accuracy` on the clients' validation data, in a window of the run.

    accuracy: a fraction. None: the task's own metric must be `at_least` or `at_most` a value instead.
    """

    accuracy: float | None = 0.5
    start: float = 0.0
    stop: float = 0.9
    at_least: float | None = None
    at_most: float | None = None

    def _gate(self) -> Condition:
        bound = _bound(self.accuracy, self.at_least, self.at_most)
        return Accurate(self.accuracy) if self.accuracy is not None else Reached(bound)


@dataclass(frozen=True)
class OnceSettled(_Once):
    """Prune once the mask that would be chosen shifts by this fraction of the living or less, in a window of the run."""

    shift: float = 0.1
    start: float = 0.0
    stop: float = 0.9

    def _gate(self) -> Condition:
        return Settled(self.shift)


@dataclass(frozen=True)
class OnceMoving(_Once):
    """Prune while a client's own mask still moves within its round, in a window of the run; see gate.Moving.

    accuracy: of the pruned network. None: the task's own metric must be `at_least` or `at_most` a value instead.
    """

    shift: float = 1e-4
    accuracy: float | None = 0.5
    start: float = 0.0
    stop: float = 1.0
    at_least: float | None = None
    at_most: float | None = None

    def _gate(self) -> Condition:
        bound = _bound(self.accuracy, self.at_least, self.at_most)
        return Moving(self.shift, self.accuracy) if self.accuracy is not None else MovingReached(self.shift, bound)


def _bound(accuracy: float | None, at_least: float | None, at_most: float | None) -> Bound:
    """Return the bound of the task's own metric; a bound of the accuracy rules it out."""
    if accuracy is None:
        return Bound(at_least, at_most)
    if at_least is not None or at_most is not None:
        raise ConfigError([f"when.accuracy={accuracy:g} and a bound of the task's own metric: set when.accuracy=null"])
    return Bound(at_least=accuracy)


def _check_fractions(start: float, stop: float) -> None:
    if not 0 <= start < stop <= 1:
        raise ConfigError([f"when.start={start} and when.stop={stop} are fractions of the run: 0 <= start < stop <= 1"])
