"""What a framework costs per client and round beyond its steps: rounds of clients that take none. `make bench`.

`python benchmarks/overhead.py [--rounds N] [--without flower pfl]`. The job of rounds.py, but no client ever sees a batch: what
is left is sampling, sending the network, starting a client, and merging what comes back. Milliseconds are those of a round
divided by its 10 clients; medians and quartiles over the rounds, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from contestants import DENSE, DENSITY, MASKED, Contestant, ours, peers, up
from job import COHORT, experiment, job_of
from peer import PEERS
from table import machine, spread, table

from fedprune import run_id
from fedprune.config import schema
from fedprune.data.batches import Batches

MODELS = ("lenet5", "cnn_fedavg")
"""The smallest network and the largest: what is sent matters."""

WARM_UP = 2
AT_MOST = {DENSE: "1.0", MASKED: "1.0"}


def without_batches() -> None:
    """From now on workers of fedprune that are started train on nothing (local.steps=0 is refused, for good reasons)."""
    Batches.shuffled = lambda *arguments: iter(())  # type: ignore[method-assign]


def milliseconds(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Of each contestant, per client, by round."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            contestant.train(number)
            found[name].append(1000 * (time.perf_counter() - started) / COHORT)
    return {name: values[WARM_UP:] for name, values in found.items()}


def rows(model: str, rounds: int, without: Sequence[str]) -> list[list[str]]:
    """A line per contestant."""
    dense, masked = experiment(model, 1.0), experiment(model, DENSITY)
    job = replace(job_of(dense, model, rounds + WARM_UP), limit=0)
    with peers(job, without) as others, up(ours(dense, masked) | others) as contestants:
        found = milliseconds(contestants, len(job.orders))
    return [[f"`{model}`", name, spread(values, 2), AT_MOST.get(name, "")] for name, values in found.items()]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--without", nargs="*", default=[], choices=list(PEERS), help="peers to leave out")
    given = parser.parse_args()
    schema.register()
    run_id.register()
    without_batches()
    lines = [row for model in MODELS for row in rows(model, given.rounds, given.without)]
    print(f"{machine()}\n\n{table(('network', 'who', 'ms a client', 'at most'), lines, texts=2)}")


if __name__ == "__main__":
    main()
