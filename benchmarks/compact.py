"""A training step of a compacted network against the dense one, as a ratio in one run: `python benchmarks/compact.py`.

cnn_fedavg on 1x28x28, half of the filters of each convolution dead, batch 32, SGD with momentum, one thread. They take turns,
step by step; medians. The fully connected layer shrinks as far as it read the dead filters.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from table import machine, spread, table
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.models.cnn import cnn_fedavg
from fedprune.pruning.compact import compact

SHAPE, CLASSES, BATCH = (1, 28, 28), 10, 32
BOUND = 0.45
WARM_UP = 10


def half_of_the_filters(net: nn.Module) -> dict[str, Tensor]:
    """A mask in which every second filter of each convolution is dead."""
    weights = {f"{name}.weight": layer.weight for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    mask = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for alive in mask.values():
        alive[::2] = False
    return mask


class Step:
    """A step of training, and the seconds that it took."""

    def __init__(self, net: nn.Module):
        self._net = net.train()
        self._optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def __call__(self, x: Tensor, y: Tensor) -> float:
        started = time.perf_counter()
        self._optimizer.zero_grad()
        F.cross_entropy(self._net(x), y).backward()
        self._optimizer.step()
        return time.perf_counter() - started


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense = cnn_fedavg(SHAPE, CLASSES)
    small = compact(dense, half_of_the_filters(dense), torch.zeros(1, *SHAPE)).net
    x, y = torch.randn(BATCH, *SHAPE), torch.randint(CLASSES, (BATCH,))
    steps = Step(dense), Step(small)
    seconds = [[step(x, y) for step in steps] for _ in range(given.steps + WARM_UP)][WARM_UP:]
    ratios = [after / before for before, after in seconds]
    sizes = [f"{sum(p.numel() for p in net.parameters()):,}" for net in (dense, small)]
    dense_ms, compact_ms = (1000 * statistics.median(column) for column in zip(*seconds, strict=True))
    header = ("network", "dense, ms", "compact, ms", "ratio", "at most", "parameters", "of them left")
    line = ["`cnn_fedavg`", f"{dense_ms:.2f}", f"{compact_ms:.2f}", spread(ratios, 3), f"{BOUND}", *sizes]
    print(f"{machine()}\n\n{table(header, [line])}")


if __name__ == "__main__":
    main()
