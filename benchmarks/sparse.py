"""What a mask is worth to a client: its job under a structured mask against a dense one, as ratios in one run:
`python benchmarks/sparse.py [--jobs 8] [--models cnn_fedavg ...]`.

Whole jobs of one client of Fashion-MNIST (600 examples, batch 32, one epoch, SGD with momentum), without decoding and encoding:
dense, under a mask (local.compact=never), and in the network that is as small as the mask; they take turns, and the time is the
processor's, so that other load tells less. Biases are what they might be after training: not zero, so that dead units emit.
"""

from __future__ import annotations

import argparse
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
from fedprune.pruning.mask import apply, ones
from fedprune.types import Job, Mask, Params, Subnet

BOUNDS = {("cnn_fedavg", 0.5): 0.38, ("cnn_fedavg", 0.25): 0.20}
"""The ratio to a dense job that must not be exceeded, by network and by density of filters and neurons."""

MODELS = ("cnn_fedavg", "cnn_small", "lenet_300_100")
WARM_UP = 1


def worker(model: str, compact: str) -> tuple[ClientRound, Params]:
    """A client's round, as a worker has it, and the initial weights."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "config",
            [
                *("data=fashion_mnist", f"model={model}", "partition=iid", "federated.clients=80", "executor=serial"),
                *("local.epochs=1", "local.batch_size=32", f"local.compact={compact}", "logger=none"),
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


def structured(params: Params, density: float) -> Mask:
    """This fraction of the filters and neurons of each layer, at random; of the last layer all."""
    generator = torch.Generator().manual_seed(0)
    mask = ones(params, tuple(name for name, tensor in params.items() if tensor.dim() > 1))
    for alive in list(mask.values())[:-1]:
        alive[torch.randperm(len(alive), generator=generator)[round(density * len(alive)) :]] = False
    return mask


def spent(do: Callable[[], object]) -> float:
    """Milliseconds of this thread."""
    started = time.thread_time()
    do()
    return 1000 * (time.thread_time() - started)


def measure(model: str, density: float, jobs: int) -> dict[str, float]:
    """Milliseconds of a job (medians), dense, masked and smaller; of the latter's first, which makes the network; the ratio."""
    (masked, params), (smaller, _) = (worker(model, compact) for compact in ("never", "auto"))
    mask = structured(params, density)
    whole, pruned = Subnet(params, ones(params, tuple(mask))), Subnet(apply(params, mask), mask)
    smaller._compactor(structured(params, 0.9), 10**6)  # how the network is wired is found out once, not for each mask
    first = spent(lambda: smaller._compactor(mask, 10**6))
    rows = []
    for number in range(jobs + WARM_UP):
        turns = ((masked, whole), (masked, pruned), (smaller, pruned))
        rows.append([spent(lambda: one.train(Job(0, number, number, 0, subnet))) for one, subnet in turns])  # noqa: B023
    dense, under, small = (statistics.median(column) for column in zip(*rows[WARM_UP:], strict=True))
    ratio = statistics.median(row[2] / row[0] for row in rows[WARM_UP:])
    return {"dense": dense, "masked": under, "smaller": small, "made in": first, "ratio": ratio}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--densities", nargs="*", type=float, default=[0.5, 0.25])
    given = parser.parse_args()
    schema.register()
    folders.register()
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, {given.jobs} jobs, medians, ms of processor time")
    print(f"{'model':<16}{'units':>7}{'dense':>10}{'masked':>10}{'smaller':>10}{'made in':>10}{'ratio':>8}{'at most':>9}")
    for model in given.models:
        for density in given.densities:
            found = measure(model, density, given.jobs)
            times = "".join(f"{found[key]:>10.1f}" for key in ("dense", "masked", "smaller", "made in"))
            bound = f"{BOUNDS[model, density]:>9.2f}" if (model, density) in BOUNDS else ""
            print(f"{model:<16}{density:>7}{times}{found['ratio']:>8.3f}{bound}", flush=True)


if __name__ == "__main__":
    main()
