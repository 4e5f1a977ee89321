"""From the command to the end of the first round, and the memory of the main process: `make bench`.

Fashion-MNIST, 100 clients, lenet5, one round of 10 clients, data cached. Each figure is the median of five whole processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5
JOB = (
    *("data=fashion_mnist", "model=lenet5", "federated.clients=100", "rounds=1", "eval_every=1", "logger=none"),
    *("when=before_training", "how_often=one_shot", "density=0.1"),
)

MAIN = """
import resource
from fedprune.__main__ import main
main()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def one_run(folder: Path) -> tuple[float, float, float]:
    """(seconds of the whole process, seconds of its only round, peak memory of the main process in MB)."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MAIN, *JOB], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    metrics = json.loads(next(folder.glob("outputs/fedprune/*/metrics.jsonl")).read_text())
    return seconds, metrics["time/round_s"], int(done.stdout.splitlines()[-1]) / 1024


def main() -> None:
    """Print medians."""
    rows = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one_run(Path(folder)))
    whole, first_round, memory = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"command to end, with one round and its evaluation: {whole:.1f} s (at most 6); the round {first_round:.1f} s")
    above = memory - 70_000 * 28 * 28 / 1e6
    print(f"peak memory of the main process: {memory:.0f} MB, {above:.0f} MB above the data set (at most 500)")


if __name__ == "__main__":
    main()
