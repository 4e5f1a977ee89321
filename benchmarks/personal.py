"""What masks of their own cost: a round of LotteryFL against one of FedAvg, and 10,000 such clients against 100.

`python benchmarks/personal.py [--rounds 20]`. Fashion-MNIST, lenet5, 10 clients a round, one process and one thread. Seconds
are of this process's own work, so that a busy machine makes no difference; the two take turns, round by round; medians.
Evaluation is excluded. Every client prunes whenever it is its turn, down to 10 %.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from table import machine, spread, table

from fedprune import run_id
from fedprune.config import CONF, schema
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from fedprune.pruning.mask import pack
from fedprune.storage.checkpoint import save_state
from fedprune.types import Personal

SAME = (
    *("data=fashion_mnist", "model=lenet5", "partition=iid", "partition.min_examples=3", "federated.cohort=10"),
    *("rounds=1000000", "eval_every=1000000", "logger=none", "executor=serial", "device=cpu"),
)
EPOCH = ("federated.clients=100", "local.epochs=1", "local.batch_size=32")
FEW = ("local.epochs=null", "local.steps=50", "local.batch_size=4")  # 10,000 clients have 4 training examples each
LOTTERYFL = (
    *("what=weights_per_layer", "when=once_accurate", "when.accuracy=0.0", "when.stop=1.0", "how_often=stepwise"),
    *("whose=personal", "rewind=init", "density=0.1", "federated.weighting=uniform"),
)
SLOWER, LARGER, MEGABYTES = 1.15, 1.2, 100
WARM_UP = 3


def experiment(*overrides: str) -> Experiment:
    """What these overrides stand for."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [*SAME, *overrides])
    return build(config, dict.fromkeys(run_id.GROUPS, "") | {"rewind": "none"})


def against_fedavg(rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round: (FedAvg's, LotteryFL's)."""
    loops = [made.loop(made.executor()) for made in (experiment(*EPOCH), experiment(*EPOCH, *LOTTERYFL))]
    states, seconds = [loop.start() for loop in loops], ([], [])
    for _ in range(rounds + WARM_UP):
        for which, loop in enumerate(loops):
            started = time.process_time()
            states[which], _ = loop.round(states[which])
            seconds[which].append(time.process_time() - started)
    return seconds[0][WARM_UP:], seconds[1][WARM_UP:]


def crowd(clients: int, rounds: int) -> dict[str, float]:
    """Seconds of a round, and the most memory, where each of so many clients has a mask already; and then with a checkpoint."""
    made = experiment(*FEW, *LOTTERYFL, f"federated.clients={clients}")
    loop = made.loop(made.executor())
    state, random = loop.start(), np.random.default_rng(0)
    shapes = {name: alive.shape for name, alive in state.server.mask.items()}
    own = {}
    for client in range(clients):
        mask = {name: torch.from_numpy(random.random(shape) < 0.5) for name, shape in shapes.items()}
        own[client] = Personal(pack(mask), events=4)
    state, seconds = replace(state, personal=own, round=10, clock=10), []
    state, _ = loop.round(replace(state, anchors={0: state.init}))
    _forget()
    for _ in range(rounds):
        started = time.process_time()
        state, _ = loop.round(state)
        seconds.append(time.process_time() - started)
    found = {"seconds": statistics.median(seconds), "megabytes": _peak()}
    with tempfile.TemporaryDirectory() as folder:
        save_state(state, Path(folder) / "state.safetensors")
    return found | {"with_checkpoint": _peak()}


def _peak() -> float:
    """The most memory that was resident since `_forget`."""
    (line,) = (line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _forget() -> None:
    """What it took to load the data and to make the masks is no part of a round."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--crowd", type=int, help="only the part with so many clients, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    schema.register()
    run_id.register()
    if given.crowd:
        print(json.dumps(crowd(given.crowd, given.rounds)))
        return
    print(machine())
    print("\n" + table(("10 of 100 clients", "s a round", "against FedAvg", "at most"), methods(given.rounds)))
    columns = ("clients", "s a round", "against 100", "at most", "peak MB", "over 100", "at most", "peak MB with a checkpoint")
    print("\n" + table(columns, crowds(given.rounds)))


def methods(rounds: int) -> list[list[str]]:
    """A line of FedAvg, and one of LotteryFL."""
    fedavg, lottery = against_fedavg(rounds)
    ratios = [ours / theirs for theirs, ours in zip(fedavg, lottery, strict=True)]
    seconds = [f"{statistics.median(one):.3f}" for one in (fedavg, lottery)]
    return [["FedAvg", seconds[0], "", ""], ["LotteryFL", seconds[1], spread(ratios, 3), f"{SLOWER}"]]


def crowds(rounds: int) -> list[list[str]]:
    """A line of 100 clients, and one of 10,000."""
    few, many = (_apart(clients, rounds) for clients in (100, 10_000))
    ratio, more = many["seconds"] / few["seconds"], many["megabytes"] - few["megabytes"]
    bounds = (["", "", "", ""], [f"{ratio:.3f}", f"{LARGER}", f"{more:+.0f}", f"{MEGABYTES}"])
    return [
        [clients, f"{row['seconds']:.3f}", *bound[:2], f"{row['megabytes']:.0f}", *bound[2:], f"{row['with_checkpoint']:.0f}"]
        for clients, row, bound in zip(("100", "10,000"), (few, many), bounds, strict=True)
    ]


def _apart(clients: int, rounds: int) -> dict[str, float]:
    """`crowd` in a process of its own, for a peak of memory of its own."""
    command = [sys.executable, __file__, "--crowd", str(clients), "--rounds", str(rounds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
