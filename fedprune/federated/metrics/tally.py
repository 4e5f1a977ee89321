"""The sums over the exchanges of a round: bytes, examples, clients that did not answer, and the time that each phase took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from fedprune.local.lightning.self_log import OverCohort
from fedprune.phase_clock import Clock
from fedprune.types import Job, State, Update

if TYPE_CHECKING:
    from fedprune.federated.masks import UpdateSummary

T = TypeVar("T")


class NoClock:
    """Stands in for a Clock in a run without a profile."""

    def phase(self, name: str, whole: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def waiting(self, results: Iterable[T]) -> Iterator[T]:
        return iter(results)

    def add(self, of_worker: Mapping[str, float]) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}


@dataclass
class Tally:
    """Sums over a round's exchanges. It grows while updates stream by, so that nobody has to hold them all."""

    up_bytes: int = 0
    down_bytes: int = 0
    seen: int = 0  # examples trained on, passes counted
    steps: int = 0
    loss: float = 0.0  # summed over the examples seen
    dropped: list[int] = field(default_factory=list)  # whose answers were broken, or lost with their workers
    silent: int = 0
    late: int = 0
    unanswered: int = 0  # questions for evidence that got no answer
    logged: dict[str, OverCohort] = field(default_factory=dict)  # by the name that a module logged it under
    alone: list[UpdateSummary] = field(default_factory=list)  # of the rounds of a client that prunes before all others
    reached: set[int] = field(default_factory=set)  # clients that have got, in this round, the tensors that nobody trains
    clock: Clock | NoClock = field(default_factory=NoClock)

    @classmethod
    def begun(cls, profile: bool) -> Tally:
        """Return the tally of a round that begins now. profile: whether to tell the time that each phase takes."""
        return cls(clock=Clock()) if profile else cls()

    def add(self, update: Update) -> None:
        """Take up the metrics of a client's training."""
        seen = int(update.metrics.get("seen", 0))
        self.seen += seen
        self.steps += int(update.metrics.get("steps", 0))
        self.loss += update.metrics.get("loss", 0.0) * seen
        for name, (reduction, value) in update.logged.items():
            self.logged.setdefault(name, OverCohort(reduction)).add(value, seen)

    def miss(self, job: Job, late: bool) -> None:
        """Take up that a job was sent for nothing. late: whether its answer would come too late."""
        self.unanswered += bool(job.measure)
        self.silent += not job.measure and not late
        self.late += not job.measure and late

    def counted(self, state: State) -> State:
        """Return the state with the round's bytes, and with the clients that have got what is never trained."""
        up_bytes, down_bytes = state.up_bytes + self.up_bytes, state.down_bytes + self.down_bytes
        reached = state.reached | self.reached if self.reached else state.reached
        return replace(state, up_bytes=up_bytes, down_bytes=down_bytes, reached=reached)

    def metrics(self) -> dict[str, float]:
        """Return the round's metrics, summed over clients; the loss is the mean over the examples seen (absent without any).

        `clients/silent` and `clients/late` count the clients of the cohort that did not answer, or not in time.
        `clients/dropped` counts broken or lost answers, and `clients/dropped/<client>` those of one client.
        `evidence/unanswered` counts the questions for evidence that nobody answered, and is absent if it is 0. Values that
        modules logged have the names that the modules gave them.
        """
        metrics: dict[str, float] = {"wire/up_bytes": self.up_bytes, "wire/down_bytes": self.down_bytes}
        metrics |= {"train/examples": self.seen, "train/steps": self.steps, "clients/dropped": len(self.dropped)}
        metrics |= {f"clients/dropped/{client}": number for client, number in Counter(self.dropped).items()}
        metrics |= {"clients/silent": self.silent, "clients/late": self.late}
        metrics |= {"evidence/unanswered": self.unanswered} if self.unanswered else {}
        metrics |= {name: values.reduced() for name, values in self.logged.items()}
        return metrics | ({"train/loss": self.loss / self.seen} if self.seen else {})
