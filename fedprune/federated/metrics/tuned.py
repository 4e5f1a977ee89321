"""The clients' metrics after one local training, client/<metric>_tuned_*.

A client trains from the network with which it would begin the next round, just as that round would have it train, but without a
prune event. It is then evaluated on its own test part. Nothing of it is merged or kept, and no byte is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from fedprune.local.outcomes import Outcomes, TaskMetrics, concatenated
from fedprune.randomness import numpy_stream
from fedprune.types import Job

TUNED = "_tuned"
MOMENTS = ("evaluations", "end")
"""The values of federated.tuned_at."""

Jobs = Callable[[Sequence[int]], list[Job]]
"""(clients) -> what each client would begin its next round with."""

OutcomesOf = Callable[[Sequence[Job]], Iterable[Outcomes]]
"""(jobs) -> what each client measures on its own test part after training its job."""


@dataclass(frozen=True)
class Tuned:
    """Evaluates clients after one local training.

    clients: those that train for it (empty: none), ascending; sizes: the number of examples in each one's test part. only: the
    number of rounds after which it is done (None: at every evaluation).
    """

    clients: tuple[int, ...]
    sizes: tuple[int, ...]
    task: TaskMetrics
    only: int | None = None

    def __call__(self, round: int, jobs: Jobs, outcomes_of: OutcomesOf) -> dict[str, float]:
        """Return the metrics after one local training, and the seconds that it took; nothing where it is not done. round: the
        number of rounds that are done."""
        if not self.clients or self.only not in (None, round):
            return {}
        started = time.perf_counter()
        training = [replace(job, event=None) for job in jobs(self.clients)]
        outcomes = concatenated(list(outcomes_of(training)))
        metrics = self.task.by_client(outcomes, self.sizes, TUNED)
        return metrics | {"time/tuned_s": time.perf_counter() - started}


def chosen_clients(sizes: Sequence[tuple[int, int]], number: int, seed: int) -> dict[int, int]:
    """Draw `number` clients that have test examples, or all of them if there are not more. sizes: (client, number of its test
    examples) of each client that is evaluated. Return those of the drawn, in ascending order."""
    able = {client: size for client, size in sizes if size}
    if len(able) <= number:
        return able
    drawn = numpy_stream(seed, "tuned").choice(sorted(able), size=number, replace=False)
    return {int(client): able[int(client)] for client in sorted(drawn)}
