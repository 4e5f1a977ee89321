"""Rounds of fedprune, dense and masked, against the floor and against Flower and pfl-research: `make bench`.

`python benchmarks/rounds.py [--rounds N] [--models lenet5] [--without flower pfl]`. All contestants are up at once and take
turns, round by round, on the same clients, batches and initial parameters (job.py); evaluation is excluded. Medians and
quartiles over the rounds. Fails if a contestant has not come to the floor's network and accuracy.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from contestants import DENSE, DENSITY, FLOOR, MASKED, MASKED_FLOOR, Contestant, floors, ours, peers, up
from job import Job, experiment, job_of
from peer import PEERS, Peer
from processes import memory
from table import machine, spread, table
from torch import Tensor, nn

from fedprune import run_id
from fedprune.config import schema
from fedprune.data.datasets import Dataset

ROUNDS = {"lenet5": 20, "lenet_300_100": 20, "cnn_fedavg": 8}
WARM_UP = 2

BOUNDS = {
    "lenet5": {(DENSE, FLOOR): 1.05, (MASKED, FLOOR): 1.10, (DENSE, "Flower"): 0.60, (DENSE, "pfl-research"): 1.00},
    "lenet_300_100": {(DENSE, FLOOR): 1.10, (MASKED, FLOOR): 1.15, (DENSE, "Flower"): 0.35, (DENSE, "pfl-research"): 0.95},
    "cnn_fedavg": {(DENSE, FLOOR): 1.03, (MASKED, FLOOR): 1.05, (DENSE, "Flower"): 0.88, (DENSE, "pfl-research"): 0.97},
}
"""What the ratio of one to the other should be at most."""

APART, TOLERANCE = 0.05, 0.04
"""How far a network may be from the floor's after the first round, in units of how far the floor's has moved; and how far a
test accuracy may be from the floor's, at half time and at the end. What is masked is held against the floor that masks.

Rounding grows as networks train: four floors whose initial parameters differed by 1e-7 of their size were up to 0.007 apart
after a round, and up to 0.022 in accuracy at the end."""


@dataclass
class Measured:
    """Of one contestant: the seconds of each round, APART, and the test accuracy by the number of rounds done."""

    seconds: list[float] = field(default_factory=list)
    apart: float = 0.0
    accuracy: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Of one network: the rows of both tables, the packages of the peers, and who has not come to where the floor is."""

    rows: list[list[str]]
    versus: list[list[str]]
    versions: Mapping[str, Mapping[str, str]]
    problems: list[str]


def run(job: Job, net: nn.Module, dataset: Dataset, contestants: Mapping[str, Contestant]) -> dict[str, Measured]:
    """Every round by every contestant, another one first each time; what the networks come to is seen after the round."""
    found, names, rounds = {name: Measured() for name in contestants}, list(contestants), len(job.orders)
    test = dataset.normalise(dataset.test_x), dataset.test_y
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            contestants[name].train(number)
            found[name].seconds.append(time.perf_counter() - started)
        after = {name: contestants[name].parameters(number) for name in names}
        for name in names:
            if number == 0:
                found[name].apart = distance(after[name], after[reference(name)], job.begin)
            if number + 1 in (rounds // 2, rounds):
                found[name].accuracy[number + 1] = accuracy(net, after[name], *test)
    return found


def reference(name: str) -> str:
    """Whose network a contestant's should equal."""
    return MASKED_FLOOR if name in (MASKED, MASKED_FLOOR) else FLOOR


def distance(one: Tensor, other: Tensor, begin: Tensor) -> float:
    """How far one network is from another, in units of how far that has moved."""
    return float((one - other).norm() / (other - begin).norm())


@torch.no_grad()
def accuracy(net: nn.Module, parameters: Tensor, inputs: Tensor, labels: Tensor) -> float:
    """The fraction of a test set that a network has right at these parameters (which become its own)."""
    torch.nn.utils.vector_to_parameters(parameters, net.parameters())
    hits = [net(x).argmax(1) == y for x, y in zip(inputs.split(128), labels.split(128), strict=True)]
    return float(torch.cat(hits).float().mean())


def problems(model: str, found: Mapping[str, Measured]) -> list[str]:
    """Who has not come to where the floor is."""
    reported = []
    for name, measured in found.items():
        floor = found[reference(name)]
        if measured.apart > APART:
            reported.append(f"{model}: after a round {name} is {measured.apart:.2g} apart from the floor, at most {APART}")
        reported += [
            f"{model}: after {done} rounds {name} has an accuracy of {value:.3f} and the floor of {floor.accuracy[done]:.3f}: "
            f"more than {TOLERANCE} apart"
            for done, value in measured.accuracy.items()
            if abs(value - floor.accuracy[done]) > TOLERANCE
        ]
    return reported


def row(model: str, name: str, job: Job, found: Mapping[str, Measured]) -> list[str]:
    """A contestant's line: milliseconds a step; against the floor, and at most; accuracies at half time and at the end."""
    steps = [job.steps(number) for number in range(len(job.orders))]
    per_step = [1000 * s / n for s, n in zip(found[name].seconds, steps, strict=True)][WARM_UP:]
    accuracies = [f"{100 * value:.1f}" for value in found[name].accuracy.values()]
    against = ["", ""] if name == FLOOR else against_another(model, name, FLOOR, found)
    return [f"`{model}`", name, spread(per_step, 3), *against, " → ".join(accuracies)]


def against_another(model: str, name: str, other: str, found: Mapping[str, Measured]) -> list[str]:
    """The ratio of the times for the same round, after the warm-up; and what it should be at most."""
    pairs = zip(found[name].seconds, found[other].seconds, strict=True)
    bound = BOUNDS[model].get((name, other))
    return [spread([one / two for one, two in pairs][WARM_UP:], 3), "" if bound is None else f"{bound:.2f}"]


def one_network(model: str, rounds: int, without: Sequence[str]) -> Report:
    """Measure one network. All processes that it takes have ended afterwards."""
    dense, masked = experiment(model, 1.0), experiment(model, DENSITY)
    job = job_of(dense, model, rounds + WARM_UP)
    with peers(job, without) as others, up(floors(dense, job) | ours(dense, masked) | others) as contestants:
        found = run(job, copy.deepcopy(dense.net), dense.dataset, contestants)
        theirs = {name: one for name, one in contestants.items() if isinstance(one, Peer)}
        used = {name: f"{memory(one.process.pid):.0f}" for name, one in theirs.items()}
    rows = [row(model, name, job, found) for name in found]
    versus = [[f"`{model}`", name, *against_another(model, DENSE, name, found), used[name]] for name in theirs]
    return Report(rows, versus, {name: one.versions for name, one in theirs.items()}, problems(model, found))


def main() -> None:
    """Print two tables: everybody against the floor, and fedprune against its peers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, help=f"how many; by default {ROUNDS}")
    parser.add_argument("--models", nargs="*", default=list(ROUNDS), choices=list(ROUNDS))
    parser.add_argument("--without", nargs="*", default=[], choices=list(PEERS), help="peers to leave out")
    given = parser.parse_args()
    schema.register()
    run_id.register()
    reports = [one_network(model, given.rounds or ROUNDS[model], given.without) for model in given.models]
    print(machine() + "".join(f"; {name}: {described(versions)}" for name, versions in reports[-1].versions.items()))
    header = ("network", "who", "ms a client step", "against the floor", "at most", "accuracy, %")
    print("\n" + table(header, [row for report in reports for row in report.rows], texts=2))
    if versus := [row for report in reports for row in report.versus]:
        header = ("network", "peer", "fedprune against it", "at most", "memory of the peer, MB")
        print("\n" + table(header, versus, texts=2))
    if wrong := [problem for report in reports for problem in report.problems]:
        raise SystemExit("\n".join(wrong))


def described(versions: Mapping[str, str]) -> str:
    """`flwr 1.41.0, ray 2.55.1`"""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


if __name__ == "__main__":
    main()
