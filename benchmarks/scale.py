"""What size costs: a million clients, a thousand in a round, 27 million parameters.

`python benchmarks/scale.py [--rounds 10]`. Fashion-MNIST; each case is a process of its own with one thread, so that its peak
of memory, imports and data included, is its own. Seconds of a round are of the process's own work; medians; evaluation is
excluded.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from hydra import compose, initialize_config_dir
from table import machine, table

from fedprune import run_id
from fedprune.config import CONF, schema
from fedprune.experiment.build import build

SAME = (
    *("data=fashion_mnist", "rounds=1000000", "eval_every=1000000", "logger=none", "executor=serial", "device=cpu"),
    *("when=before_training", "how_often=one_shot", "density=0.1"),
)
POPULATION = ("model=lenet5", "partition=class_mix", "federated.cohort=10")
COHORT = ("model=lenet5", "partition=class_mix", "federated.clients=1000", "local.epochs=null", "local.steps=2")
LARGE = ("model=resnet20", "model.width=10", "federated.clients=10", "federated.cohort=2", "local.epochs=null", "local.steps=1")
CASES = {
    "1,000 clients, 10 in a round": (*POPULATION, "federated.clients=1000"),
    "1,000,000 clients, 10 in a round": (*POPULATION, "federated.clients=1000000"),
    "1,000 clients, 10 in a round, 2 steps": (*COHORT, "federated.cohort=10"),
    "1,000 clients, all in a round, 2 steps": (*COHORT, "federated.cohort=1000"),
    "27 million parameters, 2 in a round, 1 step": LARGE,
}
MORE, TIMES, MOST = 200, 1.5, 3000
"""MB that a million clients may take beyond those of a thousand; what a large cohort may take of the memory of a small one; and
MB of the large network."""


def measure(overrides: tuple[str, ...], rounds: int) -> dict[str, float]:
    """Seconds of a round (median), and the peak memory in MB."""
    torch.set_num_threads(1)
    schema.register()
    run_id.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [*SAME, *overrides])
    made = build(config, dict.fromkeys(run_id.GROUPS, "") | {"rewind": "none"})
    loop, seconds = made.loop(made.executor()), list[float]()
    state, _ = loop.round(loop.start())  # which prunes
    for _ in range(rounds):
        started = time.process_time()
        state, _ = loop.round(state)
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(seconds), "megabytes": peak}


def main() -> None:
    """Print a table, a row per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--case", choices=list(CASES), help="only this one, in this process, as JSON")
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(CASES[given.case], given.rounds)))
        return
    found = [in_a_process(case, 2 if CASES[case] is LARGE else given.rounds) for case in CASES]
    few, _, small, _, _ = (one["megabytes"] for one in found)
    bounds = ["", f"{few + MORE:.0f}", "", f"{TIMES * small:.0f}", f"{MOST}"]
    rows = [
        [case, f"{one['seconds']:.3f}", f"{one['megabytes']:.0f}", bound]
        for case, one, bound in zip(CASES, found, bounds, strict=True)
    ]
    print(f"{machine()}\n\n{table(('case', 's a round', 'peak MB', 'at most'), rows)}")


def in_a_process(case: str, rounds: int) -> dict[str, float]:
    """What is measured in a process of its own."""
    command = [sys.executable, __file__, "--case", case, "--rounds", str(rounds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
