"""Seconds per round against the floor, as ratios in one run: `make bench`, or `python benchmarks/rounds.py [--rounds 20]`.

Fashion-MNIST, 100 clients, Dirichlet 0.5, 10 per round, one local epoch, batch 32, SGD with momentum. The floor and
fedprune take turns, round by round, on the same cohorts; medians over the rounds. Evaluation is excluded.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from floor import BATCH, LR, MOMENTUM, Floor
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from fedprune import folders, schema
from fedprune.__main__ import CONF
from fedprune.build import build
from fedprune.experiment import Experiment
from fedprune.federated.executor import available_cores
from fedprune.federated.sampling import cohort

MODELS = {"lenet5": 1.15, "lenet_300_100": 1.25}
"""The networks, and the ratio that fedprune must not exceed at density 0.1."""

WARM_UP = 3


def configuration(model: str, density: float) -> DictConfig:
    """The job, as a user would type it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "config",
            [
                *("data=fashion_mnist", f"model={model}", "partition=dirichlet", "partition.alpha=0.5"),
                *("federated.clients=100", "federated.cohort=10", "local.epochs=1", f"local.batch_size={BATCH}"),
                *(f"local.optimizer.lr={LR}", f"local.optimizer.momentum={MOMENTUM}", "rounds=1000000", "eval_every=1000000"),
                *("when=before_training", "how_often=one_shot", f"density={density}", "logger=none"),
            ],
        )


@contextmanager
def running(model: str, density: float) -> Iterator[tuple[Experiment, object, object]]:
    """An experiment with its workers up, its loop, and its state before the first round."""
    config = configuration(model, density)
    names = dict.fromkeys(folders.GROUPS, "") | {"rewind": "none"}
    experiment = build(config, names)
    executor = experiment.executor()
    loop = experiment.loop(executor)
    try:
        yield experiment, loop, loop.start()
    finally:
        executor.close()


def measure(model: str, density: float, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round: (the floor's, fedprune's)."""
    floors, ours = [], []
    with running(model, density) as (experiment, loop, state):
        dataset, clients = experiment.dataset, experiment.clients.train
        floor = Floor(experiment.net, dataset.normalise(dataset.x), dataset.y, clients, available_cores())
        for number in range(rounds + WARM_UP):
            started = time.perf_counter()
            floor.round(cohort(0, number, len(clients), 10))
            between = time.perf_counter()
            state, _ = loop.round(state)
            floors.append(between - started)
            ours.append(time.perf_counter() - between)
        floor.close()
    return floors[WARM_UP:], ours[WARM_UP:]


def main() -> None:
    """Print a table of medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    given = parser.parse_args()
    schema.register()
    folders.register()
    print(f"{platform.machine()}, {available_cores()} cores, torch {torch.__version__}, {given.rounds} rounds, medians")
    print(f"{'model':<16}{'density':>8}{'floor s':>10}{'fedprune s':>12}{'ratio':>8}{'at most':>9}")
    for model in given.models:
        for density in (1.0, 0.1):
            floors, ours = measure(model, density, given.rounds)
            ratio = statistics.median(o / f for o, f in zip(ours, floors, strict=True))
            bound = f"{MODELS.get(model, float('nan')):.2f}" if density == 0.1 else ""
            times = f"{statistics.median(floors):>10.3f}{statistics.median(ours):>12.3f}"
            print(f"{model:<16}{density:>8}{times}{ratio:>8.3f}{bound:>9}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the main process, floor's data included: {peak:.0f} MB (pid {os.getpid()})")


if __name__ == "__main__":
    main()
