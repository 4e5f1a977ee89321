"""Time and memory of one `shrink`, one thread: `python benchmarks/shrink.py [--weights 10]` (millions; one case of 100, too).

Each case is a process of its own, so that its peak is its own. Memory is the growth of the peak resident set over scores and
mask, in multiples of the scores' size; copying the scores once is 1.
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
from table import machine, table

from fedprune.pruning.mask import count, shrink
from fedprune.pruning.what import What
from fedprune.pruning.what.fixed_density import NOfM, Threshold
from fedprune.pruning.what.scope import erk, globally, per_layer
from fedprune.pruning.what.unit import filters, weights

SHAPES = {"conv.weight": (0.2, 512, 9), "wide.weight": (0.7, 1024, 1), "last.weight": (0.1, 1000, 1)}
"""Three layers: their fraction of the weights, inputs, and kernel area."""

GLOBALLY = "weights, globally"
CASES = {
    GLOBALLY: (weights, globally),
    "weights, globally, a tenth alive": (weights, globally),
    "weights, per layer": (weights, per_layer),
    "weights, erk": (weights, erk),
    "weights, 2 of 4": (weights, NOfM(2, 4)),
    "weights, by threshold": (weights, Threshold(1.0)),
    "filters, globally": (filters, globally),
}
REPEATS = 5
MANY = 100.0  # millions of weights, in one more case
SECONDS, MULTIPLES = "1.0", "3.0"  # at most, of 10 million in one pool


def peak() -> float:
    """The peak resident set of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(case: str, millions: float) -> dict[str, float]:
    """How many millions it were in fact, the density that is left, seconds (the median), and memory over scores and mask."""
    torch.set_num_threads(1)
    unit, scope = CASES[case]
    sizes = {name: (int(part * millions * 1e6 / i / k), i, k) for name, (part, i, k) in SHAPES.items()}
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(size, generator=generator).pow_(2) for name, size in sizes.items()}
    mask = {name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()}
    what = What(unit, scope, names=tuple(sizes))
    shrink({name: alive[:9] for name, alive in mask.items()}, {name: score[:9] for name, score in scores.items()}, 0.5, what)
    if case.endswith("alive"):
        mask = {name: score > 0.81 for name, score in scores.items()}
    before, seconds = peak(), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        kept = shrink(mask, scores, 0.05, what)
        seconds.append(time.perf_counter() - started)
    total = sum(score.numel() for score in scores.values())
    growth = (peak() - before) / (4 * total)
    density, middle = count(kept) / total, statistics.median(seconds)
    return {"millions": total / 1e6, "density": density, "seconds": middle, "memory": growth}


def row(case: str, millions: float, bounds: tuple[str, str]) -> list[str]:
    """A line of the table, measured in a process of its own."""
    command = [sys.executable, __file__, "--case", case, "--weights", str(millions)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    at = f"{found['millions']:.1f}", f"{found['density']:.3f}"
    return [case, *at, f"{found['seconds']:.3f}", bounds[0], f"{found['memory']:.2f}", bounds[1]]


def main() -> None:
    """Print a table, a row per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=float, default=10.0, help="millions")
    parser.add_argument("--case", choices=list(CASES), help="only this one, in this process, as JSON")
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(given.case, given.weights)))
        return
    rows = [row(case, given.weights, (SECONDS, MULTIPLES) if case == GLOBALLY else ("", "")) for case in CASES]
    rows.append(row(GLOBALLY, MANY, ("", "")))
    header = ("one `shrink`", "millions of weights", "density left", "seconds", "at most", "memory over the scores'", "at most")
    print(f"{machine()}\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
