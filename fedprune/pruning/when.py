"""When pruning happens: before, during or after training, or once a gate lets it.

Every `when` is (rounds of one training run) -> Window. A Window says where prune events may fall; how_often.py places them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedprune.errors import ConfigError, Incompatible
from fedprune.pruning.gate import Accurate, Bound, Moving, MovingReached, Reached, Settled
from fedprune.pruning.what.top_k import nearest
from fedprune.types import Condition, Gate, Plan, PruneEvent


@dataclass(frozen=True)
class Window:
    """Events may fall after `first` rounds and before `stop` rounds of a training run of `rounds` rounds.

    repeats: the events fall at the ends of whole training runs instead, as many runs as there are events, and one more.
    together: then `rounds` are those of all these runs, equally long but for the last, which takes what is left over.
    gate: what each event waits for, beyond its round.
    """

    first: int
    stop: int
    rounds: int
    repeats: bool = False
    gate: Condition | None = None
    together: bool = False

    def spread(self, times: int) -> tuple[int, ...]:
        """The rounds of `times` events, evenly over the window, the first of them at its start."""
        if self.repeats:
            return tuple(self._run(times) * (i + 1) for i in range(times))
        return tuple(self.first + i * (self.stop - self.first) // times for i in range(times))

    def every(self, rounds: int) -> tuple[int, ...]:
        """Every `rounds` rounds of the window. Raises Incompatible if the window has no length."""
        if self.repeats or (self.first >= self.stop and self.gate is None):
            raise Incompatible(
                "how_often: an event every so many rounds needs a window of rounds: "
                "choose when=during_training, or how_often=iterative"
            )
        return tuple(range(self.first, max(self.stop, self.first + 1), rounds))

    def plan(self, events: tuple[PruneEvent, ...], apart: int = 1) -> Plan:
        """These events, and the rounds that they take in all; under a gate there are `apart` or more from one to the next.

        Raises Incompatible if the window has no room for that.
        """
        if self.gate is None or not events:
            runs = len(events) + 1 if self.repeats and not self.together else 1
            return Plan(events, self.rounds * runs)
        apart = max(apart, self.gate.asks)
        return Plan(self._in_turn(events, apart), self.rounds, Gate(self.gate, self.stop, apart))

    def _run(self, times: int) -> int:
        """The rounds of one of the runs around this many events. Raises Incompatible if there is not one for each."""
        length = self.rounds // (times + 1) if self.together else self.rounds
        if length < 1:
            raise Incompatible(
                f"when.budget=all: {self.rounds} rounds do not suffice for {times + 1} training runs around {times} events: "
                "set more rounds, a higher how_often.rate or when.budget=each"
            )
        return length

    def _in_turn(self, events: tuple[PruneEvent, ...], apart: int) -> tuple[PruneEvent, ...]:
        """Each as early as it can be if the gate never delays it."""
        found, soonest = [], self.first
        for event in events:
            found.append(replace(event, round=max(event.round, soonest)))
            soonest = found[-1].round + apart
        if found[-1].round >= self.stop:
            raise Incompatible(
                f"there is no room for {len(events)} prune event{'s' * (len(events) > 1)}, {apart} or more rounds apart under "
                f"this gate, between the rounds {self.first} and {self.stop}: set more rounds, or choose how_often=one_shot"
            )
        return tuple(found)


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
        _check_fractions(self.start, self.stop)

    def __call__(self, rounds: int) -> Window:
        first = min(nearest(self.start * rounds), rounds - 1)
        return Window(first, max(nearest(self.stop * rounds), first + 1), rounds)


@dataclass(frozen=True)
class AfterTraining:
    """Each event at the end of a whole training run; each is followed by another run, to retrain or to start again.

    budget: whether `rounds` are those of `each` run, as in the lottery ticket papers, or of `all` of them together, as it takes
    to compare with methods that train once.
    """

    budget: str = "each"

    def __post_init__(self) -> None:
        if self.budget not in ("each", "all"):
            raise ConfigError([f"when.budget={self.budget}: whose rounds these are: choose each or all (training runs)"])

    def __call__(self, rounds: int) -> Window:
        return Window(rounds, rounds, rounds, repeats=True, together=self.budget == "all")


@dataclass(frozen=True)
class OnceAccurate:
    """In a window of the run, and not before the server's network has this `accuracy` on the clients' validation data.

    accuracy: a fraction; or None, and then the task's own metric is to be `at_least` or `at_most` a value.
    """

    accuracy: float | None = 0.5
    start: float = 0.0
    stop: float = 0.9
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        _check_fractions(self.start, self.stop)
        self._gate()

    def __call__(self, rounds: int) -> Window:
        return _gated(self._gate(), self.start, self.stop, rounds)

    def _gate(self) -> Condition:
        bound = _bound(self.accuracy, self.at_least, self.at_most)
        return Accurate(self.accuracy) if self.accuracy is not None else Reached(bound)


@dataclass(frozen=True)
class OnceSettled:
    """In a window of the run, and not before the mask that would be chosen shifts by this fraction of the living or less."""

    shift: float = 0.1
    start: float = 0.0
    stop: float = 0.9

    def __post_init__(self) -> None:
        _check_fractions(self.start, self.stop)
        Settled(self.shift)

    def __call__(self, rounds: int) -> Window:
        return _gated(Settled(self.shift), self.start, self.stop, rounds)


@dataclass(frozen=True)
class OnceMoving:
    """In a window of the run, and only while a client's own mask still moves within its round; see gate.Moving.

    accuracy: of the pruned network; or None, and then the task's own metric is to be `at_least` or `at_most` a value.
    """

    shift: float = 1e-4
    accuracy: float | None = 0.5
    start: float = 0.0
    stop: float = 1.0
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        _check_fractions(self.start, self.stop)
        self._gate()

    def __call__(self, rounds: int) -> Window:
        return _gated(self._gate(), self.start, self.stop, rounds)

    def _gate(self) -> Condition:
        bound = _bound(self.accuracy, self.at_least, self.at_most)
        return Moving(self.shift, self.accuracy) if self.accuracy is not None else MovingReached(self.shift, bound)


def _bound(accuracy: float | None, at_least: float | None, at_most: float | None) -> Bound:
    """Return the bound of the task's own metric, which has no part if there is one of the accuracy."""
    if accuracy is None:
        return Bound(at_least, at_most)
    if at_least is not None or at_most is not None:
        raise ConfigError([f"when.accuracy={accuracy:g} and a bound of the task's own metric: set when.accuracy=null"])
    return Bound(at_least=accuracy)


def _gated(gate: Condition, start: float, stop: float, rounds: int) -> Window:
    """No event before the gate can have been met, nor after the last round."""
    return Window(max(nearest(start * rounds), gate.asks), min(max(nearest(stop * rounds), 1), rounds), rounds, gate=gate)


def _check_fractions(start: float, stop: float) -> None:
    if not 0 <= start < stop <= 1:
        raise ConfigError([f"when.start={start} and when.stop={stop} are fractions of the run: 0 <= start < stop <= 1"])
