"""What Lightning's hooks cost a step of training, against a plain PyTorch loop: `python benchmarks/hooks.py [--jobs 40]`.

The same batches (32 examples, SGD with momentum) in the plain loop, and in `fit` with modules that override nothing, the
training step alone, one hook, or every hook, and one that logs a value. They take turns, job by job, and the time is the
processor's. A step is what a long job takes more than a short one, by the number of steps.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from job import BATCH, LR, MOMENTUM
from table import machine, spread, table
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.local.hooks import CALLED
from fedprune.local.module import LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.train import fit
from fedprune.models.lenet import lenet5, lenet_300_100
from fedprune.types import Subnet

MODELS = {"lenet_300_100": lenet_300_100, "lenet5": lenet5}
SHORT, LONG, WARM_UP = 5, 55, 3
AT_MOST = {"nothing": "1.05"}

SGD = functools.partial(torch.optim.SGD, lr=LR, momentum=MOMENTUM, fused=True)


class Step(LocalModule):
    """Overrides the training step."""

    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        return self.loss(self.net(batch[0]), batch[1], "mean")


class Hook(Step):
    """Overrides one hook."""

    def on_after_backward(self) -> None:
        pass


class Log(Step):
    """Logs a value at every step."""

    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        loss = super().training_step(batch, batch_idx)
        self.log("value", loss)
        return loss


class Every(Step):
    """Overrides every hook, and calls Lightning's own."""


def _passing(name: str) -> Callable:
    return lambda self, *args, **kwargs: getattr(super(Every, self), name)(*args, **kwargs)


for _name in CALLED:
    setattr(Every, _name, _passing(_name))

KINDS = {"nothing": LocalModule, "training_step": Step, "training_step, which logs": Log, "one hook": Hook, "every hook": Every}


def bare(net: nn.Module, subnet: Subnet, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """The loop that everybody would write."""
    net.load_state_dict(subnet.params)
    net.train()
    optimizer = SGD(net.parameters())
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()


def spent(do: Callable[[], object]) -> float:
    """Microseconds of this thread."""
    started = time.thread_time()
    do()
    return 1e6 * (time.thread_time() - started)


def measure(model: str, jobs: int) -> dict[str, list[float]]:
    """Microseconds of a step, by who takes it and by job."""
    net = MODELS[model]((1, 28, 28), 10)
    subnet = Subnet({name: tensor.clone() for name, tensor in net.state_dict().items()}, {})
    batches = [(torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))) for _ in range(LONG)]
    train: dict[str, Callable] = {"bare": functools.partial(bare, net, subnet)}
    for name, kind in KINDS.items():
        module = kind(MODELS[model]((1, 28, 28), 10), SGD)
        train[name] = functools.partial(lambda module, batches: fit(module, subnet, batches, Recipe()), module)
    found: dict[str, list[float]] = {name: [] for name in train}
    for _ in range(jobs + WARM_UP):
        for name, do in train.items():
            short, long = (spent(functools.partial(do, batches[:number])) for number in (SHORT, LONG))
            found[name].append((long - short) / (LONG - SHORT))
    return {name: values[WARM_UP:] for name, values in found.items()}


def rows(model: str, jobs: int) -> list[list[str]]:
    """A line for each module."""
    found = measure(model, jobs)
    ratios = {name: [a / b for a, b in zip(values, found["bare"], strict=True)] for name, values in found.items()}
    return [
        [f"`{model}`", name, f"{statistics.median(values):.0f}", spread(ratios[name], 3), AT_MOST.get(name, "")]
        for name, values in found.items()
    ]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [row for model in MODELS for row in rows(model, given.jobs)]
    print(f"{machine()}\n\n{table(('network', 'overrides', 'step, us', 'to the bare loop', 'at most'), lines, texts=2)}")


if __name__ == "__main__":
    main()
