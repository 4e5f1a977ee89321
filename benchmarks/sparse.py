"""What a mask is worth to a client: a step inside its job, under a mask, against a dense one; ratios in one run:
`python benchmarks/sparse.py [--jobs 8] [--models cnn_fedavg ...]`.

Jobs of a client of Fashion-MNIST (batch 32, SGD with momentum) as a worker does them: dense, under the mask
(local.compact=never), and in the network that is as small as the mask. They take turns, and the time is the processor's, so
that other load tells less. A step is what a long job takes more than a short one, by the number of steps; the rest of a job is
what is left, without encoding. Biases are what they might be after training: not zero, so that dead units emit.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir
from torch import nn

from fedprune import folders, schema
from fedprune.__main__ import CONF
from fedprune.build import build
from fedprune.federated.client import ClientRound
from fedprune.federated.executor import Serial
from fedprune.local import compacted
from fedprune.pruning.mask import apply, ones
from fedprune.types import Job, Mask, Params, Subnet

UNITS, WEIGHTS = "units", "weights"
CASES = {
    ("cnn_fedavg", UNITS, 0.5): 0.38,
    ("cnn_fedavg", UNITS, 0.25): 0.20,
    ("cnn_fedavg", WEIGHTS, 0.1): None,
    ("cnn_small", UNITS, 0.5): None,
    ("lenet_300_100", UNITS, 0.5): None,
    ("lenet_300_100", WEIGHTS, 0.2): None,
    ("lenet_300_100", WEIGHTS, 0.05): 0.65,
    ("lenet_300_100", WEIGHTS, 0.01): 0.50,
}
"""Network, whether filters and neurons or single weights die, and the fraction of each layer that lives; with the ratio that
must not be exceeded (None: it is only told)."""

SHORT, LONG = 4, 20
WARM_UP = 1


def worker(model: str, compact: str, steps: int) -> tuple[ClientRound, Params]:
    """A client's round, as a worker has it, and the initial weights."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "config",
            [
                *("data=fashion_mnist", f"model={model}", "partition=iid", "federated.clients=80", "executor=serial"),
                *(
                    "local.epochs=null",
                    f"local.steps={steps}",
                    "local.batch_size=32",
                    f"local.compact={compact}",
                    "logger=none",
                ),
            ],
        )
    experiment = build(config, dict.fromkeys(folders.GROUPS, "") | {"rewind": "none"})
    executor = experiment.executor()
    assert isinstance(executor, Serial)
    return executor._client_round, shaken(experiment.net)


def shaken(net: nn.Module) -> Params:
    """Its weights, with biases as after training."""
    generator = torch.Generator().manual_seed(0)
    params = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    return {
        n: t + 0.1 * torch.rand(t.shape, generator=generator) - 0.05 if n.endswith("bias") else t for n, t in params.items()
    }


def masked(params: Params, kind: str, density: float) -> Mask:
    """Of each layer this fraction lives, at random; of the last layer all units."""
    generator = torch.Generator().manual_seed(0)
    mask = ones(params, tuple(name for name, tensor in params.items() if tensor.dim() > 1))
    if kind == WEIGHTS:
        return {name: torch.rand(alive.shape, generator=generator) < density for name, alive in mask.items()}
    for alive in list(mask.values())[:-1]:
        alive[torch.randperm(len(alive), generator=generator)[round(density * len(alive)) :]] = False
    return mask


def spent(do: Callable[[], object]) -> float:
    """Milliseconds of this thread."""
    started = time.thread_time()
    do()
    return 1000 * (time.thread_time() - started)


def measure(model: str, kind: str, density: float, jobs: int) -> dict[str, float]:
    """Milliseconds (medians): of a step, dense, under the mask and smaller, and of the rest of these jobs; of making the
    smaller network; and the ratio of steps, smaller to dense."""
    rounds = {(compact, steps): worker(model, compact, steps)[0] for compact in ("never", "auto") for steps in (SHORT, LONG)}
    params = worker(model, "never", SHORT)[1]
    mask = masked(params, kind, density)
    whole, pruned = Subnet(params, ones(params, tuple(mask))), Subnet(apply(params, mask), mask)
    rounds["auto", LONG]._compactor(masked(params, UNITS, 0.9), LONG)  # how it is wired is found out once, not for each mask
    made = spent(lambda: rounds["auto", LONG]._compactor(mask, LONG))
    variants = {"dense": ("never", whole), "masked": ("never", pruned), "smaller": ("auto", pruned)}
    rows = []
    for number in range(jobs + WARM_UP):
        row = {}
        for name, (compact, subnet) in variants.items():
            job = Job(0, number, number, 0, subnet)
            short, long = (spent(functools.partial(rounds[compact, steps].train, job)) for steps in (SHORT, LONG))
            row[name] = (long - short) / (LONG - SHORT)
            row[f"rest {name}"] = short - SHORT * row[name]
        rows.append(row | {"ratio": row["smaller"] / row["dense"]})
    return {key: statistics.median(row[key] for row in rows[WARM_UP:]) for key in rows[0]} | {"made in": made}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--models", nargs="*", default=list(dict.fromkeys(model for model, _, _ in CASES)))
    given = parser.parse_args()
    schema.register()
    folders.register()
    compacted.PER_JOB = 0.0  # even if it is too short to pay
    columns = ("dense", "masked", "smaller", "rest masked", "rest smaller", "made in")
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, {given.jobs} jobs, medians, ms of processor time")
    print(f"{'model':<16}{'alive':>14}{''.join(f'{column:>14}' for column in columns)}{'ratio':>8}{'at most':>9}")
    for (model, kind, density), bound in CASES.items():
        if model in given.models:
            found = measure(model, kind, density, given.jobs)
            times = "".join(f"{found[column]:>14.2f}" for column in columns)
            print(f"{model:<16}{f'{density} {kind}':>14}{times}{found['ratio']:>8.3f}{bound or '':>9}", flush=True)


if __name__ == "__main__":
    main()
