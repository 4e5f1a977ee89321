"""From the command to the end of the first round, and the memory of the main process in it: `make bench`.

Fashion-MNIST, 100 clients, lenet5, one round of 10 clients, data cached. Each figure is the median of five whole processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import machine, spread, table

RUNS = 5
DATA = 70_000 * 28 * 28 / 2**20  # MB of Fashion-MNIST
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
    """(seconds until the first round is written down, of which its evaluation, peak memory of the main process in MB)."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", MAIN, *JOB], cwd=folder, stdout=subprocess.PIPE, text=True)
    while not (
        lines := [
            line for path in folder.glob("outputs/*/*/metrics.jsonl") for line in path.read_text(encoding="utf-8").splitlines()
        ]
    ):
        if process.poll() is not None:
            raise SystemExit(f"the run failed: {process.args}")
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    printed, _ = process.communicate()
    metrics = json.loads(lines[0])
    return seconds, metrics["time/round_s"] - metrics["time/train_s"], int(printed.splitlines()[-1]) / 1024


def main() -> None:
    """Print a table."""
    rows = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one_run(Path(folder)))
    first, evaluation, memory = zip(*rows, strict=True)
    lines = [
        ["from the command to the end of the first round, s", spread(first, 1), "5"],
        ["of which its evaluation, s", spread(evaluation, 1), ""],
        ["peak memory of the main process, MB above the data set", spread([one - DATA for one in memory], 0), "500"],
    ]
    print(f"{machine()}\n\n{table(('what', 'measured', 'at most'), lines)}")


if __name__ == "__main__":
    main()
