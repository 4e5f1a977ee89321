"""What it is worth to train the clients of a round as one batched model (executor=batched, executor=cuda), against one after
the other; ratios in one run: `python benchmarks/batched.py [--device cuda] [--clients 10] [--turns 15] [--models lenet5 ...]`.

Clients of different sizes (6 to 24 batches of 32 and a smaller one) take an epoch of SGD with momentum, their batches on the
device already: with fit, each in its turn, and with fit_together, all at once. The two take turns. On a CPU, with one thread,
the time is the processor's, so that other load tells less; on a GPU it is the clock's.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable

import torch
from table import machine, spread, table
from torch import nn

from fedprune.local.module import Batch, LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.train import fit, unload
from fedprune.local.train_vmapped import Share, fit_together
from fedprune.models.cnn import cnn_fedavg
from fedprune.models.lenet import lenet5, lenet_300_100
from fedprune.types import Params, Subnet

CLASSES, BATCH = 10, 32
WARM_UP = 2


def mlp(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Inputs - 32 - classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 32), nn.ReLU(), nn.Linear(32, classes))


DIGITS, FASHION = (1, 8, 8), (1, 28, 28)
MODELS: dict[str, tuple[Callable[..., nn.Module], tuple[int, int, int]]] = {
    "64-32-10": (mlp, DIGITS),
    "784-32-10": (mlp, FASHION),
    "lenet_300_100": (lenet_300_100, FASHION),
    "lenet5": (lenet5, FASHION),
    "cnn_fedavg": (cnn_fedavg, FASHION),
}
"""How each is made, and the shape of its inputs."""


def share(params: Params, shape: tuple[int, ...], examples: int, device: str) -> Share:
    """A client with so many examples of this shape."""
    inputs, labels = torch.randn(examples, *shape, device=device), torch.randint(CLASSES, (examples,), device=device)
    batches: list[Batch] = list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))
    return Share(Subnet(params, {}), batches, len(batches))


def spent(do: Callable[[], object], device: str) -> float:
    """Milliseconds. Both ways end with networks on the CPU, and so with all that was asked of a GPU."""
    clock = time.thread_time if device == "cpu" else time.perf_counter
    started = clock()
    do()
    return 1000 * (clock() - started)


def measure(model: str, clients: int, turns: int, device: str) -> list[dict[str, float]]:
    """Of each turn, milliseconds per client step in both ways, and their ratio."""
    torch.manual_seed(0)
    make, shape = MODELS[model]
    module = LocalModule(make(shape, CLASSES), functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True)).to(device)
    sent, recipe = unload(module), Recipe(batch_size=BATCH)
    sizes = [BATCH * (6 + 18 * k // max(clients - 1, 1)) + BATCH // 4 for k in range(clients)]
    shares = [share(sent, shape, size, device) for size in sizes]
    steps, rows = sum(one.steps for one in shares), []
    for _ in range(turns + WARM_UP):
        apart = spent(lambda: [fit(module, one.subnet, one.batches, recipe) for one in shares], device) / steps
        together = spent(lambda: fit_together(module, shares, recipe), device) / steps
        rows.append({"apart": apart, "together": together, "ratio": together / apart})
    return rows[WARM_UP:]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS)[:4])
    given = parser.parse_args()
    torch.set_num_threads(1)
    where = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else "one thread"
    print(f"{machine()}; {where}; {given.clients} clients, {given.turns} turns, ms per client step: median (quartiles)\n")
    found = {model: measure(model, given.clients, given.turns, given.device) for model in given.models}
    header = ("model", "one after the other", "one batched model", "ratio")
    lines = [
        (model, *(spread([row[key] for row in rows], 3) for key in ("apart", "together", "ratio")))
        for model, rows in found.items()
    ]
    print(table(header, lines))


if __name__ == "__main__":
    main()
