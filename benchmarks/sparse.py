"""What a mask is worth to a client: a step inside its job, under a mask, against a dense one; ratios in one run:
`python benchmarks/sparse.py [--jobs 8] [--models cnn_fedavg ...]`.

Jobs of a client of Fashion-MNIST (batch 32, SGD with momentum) as a worker does them: dense, under the mask
(local.compact=never), and in the network that is as small as the mask; and `bare`, the same batches in a plain PyTorch loop
over the dense network. They take turns, and the time is the processor's, so that other load tells less. A step is what a long
job takes more than a short one, by the number of steps; the rest of a job is what is left, without encoding. Biases are what
they might be after training: not zero, so that dead units emit.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from hydra import compose, initialize_config_dir
from job import BATCH, LR, MOMENTUM
from table import machine, spread, table
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune import run_id
from fedprune.compaction import train as compacted
from fedprune.config import CONF, schema
from fedprune.execution import Serial
from fedprune.experiment.build import build
from fedprune.federated.client.round import ClientRound
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
"""Network, whether filters and neurons or single weights die, and the fraction of each layer that lives; with the ratio to the
dense step that should not be exceeded (None: it is only told)."""

WAYS = {"bare": "never", "dense": "never", "masked": "never", "smaller": "auto"}
"""How a job is done, and the `local.compact` of the worker that does it (`bare`: whose batches they are)."""

TIMES = ("bare", "dense", "masked", "smaller", "rest masked", "rest smaller", "made in")

SHORT, LONG = 4, 20
WARM_UP = 1


def worker(model: str, compact: str, steps: int) -> tuple[ClientRound, nn.Module]:
    """A client's round, as a worker has it, and the initial network, as it comes from its function."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "config",
            [
                *("data=fashion_mnist", f"model={model}", "partition=iid", "federated.clients=80", "executor=serial"),
                *("local.epochs=null", f"local.steps={steps}", f"local.batch_size={BATCH}", f"local.compact={compact}"),
                *(f"local.optimizer.lr={LR}", f"local.optimizer.momentum={MOMENTUM}", "logger=none", "device=cpu"),
            ],
        )
    experiment = build(config, dict.fromkeys(run_id.GROUPS, "") | {"rewind": "none"})
    executor = experiment.executor()
    assert isinstance(executor, Serial)
    return executor._client_round, experiment.net


def train(net: nn.Module, params: Params, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Train the network on these batches, from these weights, and do nothing else."""
    net.load_state_dict(params)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


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


def plain(net: nn.Module, client: ClientRound, job: Job) -> None:
    """A job's batches by hand: the loop of floor.py, on a network that lies in memory as PyTorch makes it."""
    train(net, job.subnet.params, client.training.shuffled(job))


def measure(model: str, kind: str, density: float, jobs: int) -> dict[str, list[float]]:
    """Milliseconds by job: of a step, bare, dense, under the mask and smaller, and of the rest of these jobs; of making the
    smaller network, once; and the ratios of steps."""
    made = {(compact, steps): worker(model, compact, steps) for compact in ("never", "auto") for steps in (SHORT, LONG)}
    rounds, net = {key: client for key, (client, _) in made.items()}, made["never", LONG][1].train()
    params = shaken(net)
    mask = masked(params, kind, density)
    whole, pruned = Subnet(params, ones(params, tuple(mask))), Subnet(apply(params, mask), mask)
    rounds["auto", LONG]._compactor(masked(params, UNITS, 0.9), LONG)  # how it is wired is found out once, not for each mask
    taken = spent(lambda: rounds["auto", LONG]._compactor(mask, LONG))
    do = {(name, steps): rounds[WAYS[name], steps].train for name in WAYS for steps in (SHORT, LONG)}
    do |= {("bare", steps): functools.partial(plain, net, rounds["never", steps]) for steps in (SHORT, LONG)}
    rows = []
    for number in range(jobs + WARM_UP):
        row = {}
        for name in WAYS:
            job = Job(0, number, number, 0, pruned if name in ("masked", "smaller") else whole)
            short, long = (spent(functools.partial(do[name, steps], job)) for steps in (SHORT, LONG))
            row[name] = (long - short) / (LONG - SHORT)
            row[f"rest {name}"] = short - SHORT * row[name]
        rows.append(row | {f"to {name}": row["smaller"] / row[name] for name in ("dense", "bare")})
    return {key: [row[key] for row in rows[WARM_UP:]] for key in rows[0]} | {"made in": [taken]}


def line(model: str, kind: str, density: float, bound: float | None, jobs: int) -> list[str]:
    """A case's row of the table."""
    found = measure(model, kind, density, jobs)
    times = [f"{statistics.median(found[column]):.2f}" for column in TIMES]
    ratios = [spread(found["to dense"], 2), f"{bound or ''}", spread(found["to bare"], 2)]
    return [f"`{model}`", f"{density} of the {kind}", *times[:4], *ratios, *times[4:]]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--models", nargs="*", default=list(dict.fromkeys(model for model, _, _ in CASES)))
    given = parser.parse_args()
    schema.register()
    run_id.register()
    compacted.PER_JOB = 0.0  # even if it is too short to pay
    rows = [line(*case, bound, given.jobs) for case, bound in CASES.items() if case[0] in given.models]
    header = ("network", "alive", *TIMES[:4], "smaller / dense", "at most", "smaller / bare", *TIMES[4:])
    print(f"{machine()}\n\n{table(header, rows, texts=2)}")


if __name__ == "__main__":
    main()
