"""Cells of a sweep side by side against one after the other: `python benchmarks/sweep.py`.

Sixteen small cells of Fashion-MNIST (lenet5, 4 rounds of 10 clients), as a user types them, imports and reports included; each
way in a folder of its own, the data set in the cache. Needs the extra `sweep`.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import machine, table

from fedprune.data.datasets import fashion_mnist

CELLS = (
    *("data=fashion_mnist", "model=lenet5", "partition=dirichlet", "federated.clients=100", "federated.cohort=10"),
    *("rounds=4", "eval_every=4", "when=before_training", "how_often=one_shot", "logger=none"),
    *("criterion=magnitude,random", "density=0.5,0.2,0.1,0.05", "seed=0,1", "-m"),
)
ALONE, TOGETHER = "one after the other", "side by side"
WAYS = {ALONE: ("executor=serial",), TOGETHER: ("executor=serial", "hydra/launcher=joblib")}
AT_MOST = 0.6


def seconds(overrides: tuple[str, ...], root: str) -> float:
    """What the whole sweep takes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedprune", *CELLS, *overrides, f"data.root={root}"]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        taken = time.perf_counter() - started
        found = len(list(Path(folder).glob("outputs/*/*/summary.json")))
    assert found == 16, f"{found} of 16 cells were done"
    return taken


def main() -> None:
    """Print a table."""
    if not list(importlib.metadata.distributions(name="hydra-joblib-launcher")):
        raise SystemExit("hydra/launcher=joblib needs the extra `sweep`: pip install 'fedprune[sweep]'")
    root = str(Path("data").absolute())
    fashion_mnist(root)
    alone, together = (seconds(overrides, root) for overrides in WAYS.values())
    lines = [[ALONE, f"{alone:.1f}", "", ""], [TOGETHER, f"{together:.1f}", f"{together / alone:.3f}", f"{AT_MOST}"]]
    print(f"{machine()}\n\n{table(('16 cells', 'seconds', 'of that', 'at most'), lines)}")


if __name__ == "__main__":
    main()
