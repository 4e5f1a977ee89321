"""The memory of a run, its main process and all workers together: `make bench`, or `python benchmarks/memory.py [--rounds 4]`.

The command that a user would type, for each network of rounds.py, dense, evaluation and checkpoints included. While it runs,
the proportional set sizes of all its processes are added up every 0.2 s (pages that several share are counted once); the most
is what is told.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

from job import BATCH, CLIENTS, COHORT, MODELS
from processes import memory, tree
from table import machine, table

AT_MOST = 1000  # MB
JOB = (
    *("data=fashion_mnist", "partition.alpha=0.5", f"federated.clients={CLIENTS}", f"federated.cohort={COHORT}"),
    *(f"local.batch_size={BATCH}", "logger=none"),
)


def peak(model: str, rounds: int) -> tuple[float, int]:
    """(the most MB at once, the most processes at once) of a run."""
    command = [sys.executable, "-m", "fedprune", *JOB, f"model={model}", f"rounds={rounds}"]
    most, processes = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        while run.poll() is None:
            most, processes = max(most, memory(run.pid)), max(processes, len(tree(run.pid)))
            time.sleep(0.2)
    if run.returncode:
        raise SystemExit(f"the run failed: {' '.join(command)}")
    return most, processes


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    rows = []
    for model in MODELS:
        most, processes = peak(model, given.rounds)
        rows.append([f"`{model}`", f"{processes}", f"{most:.0f}", f"{AT_MOST}"])
    print(f"{machine()}\n\n{table(('network', 'processes', 'most at once, MB', 'at most'), rows)}")


if __name__ == "__main__":
    main()
