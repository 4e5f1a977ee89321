"""The notebooks run from top to bottom on a sweep's folder, and are committed without outputs."""

import itertools
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from fedprune.data import datasets
from fedprune.data.federate import federate, save_partition
from fedprune.data.partition import Dirichlet

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

AXES = {
    "what": "weights_global",
    "criterion": "magnitude",
    "when": "after_training",
    "how_often": "iterative",
    "where": "server",
    "whose": "shared",
    "rewind": "init",
    "federated": "fedavg",
    "partition": "dirichlet",
    "data": "digits",
    "model": "lenet_300_100",
    "local": "classification",
    "executor": "processes",
    "wire": "sparse",
}
LAYERS = {"fc1": 0.9, "fc2": 1.2, "fc3": 3.0}
# The density at which a criterion has lost half of what it can lose: a random choice loses early.
BREAKS_AT = {"magnitude": 0.012, "random": 0.15, "snip": 0.02, "synflow": 0.03, "grasp": 0.05, "taylor": 0.016}


def fabricate(folder: Path, grid: dict[str, list[str]], seeds: int = 3, levels: int = 7, rounds: int = 15) -> None:
    """Run folders as a sweep over `grid` would leave them, with curves as a lottery-ticket experiment shows them."""
    for answers in itertools.product(*grid.values()):
        for seed in range(seeds):
            overrides = [f"{axis}={answer}" for axis, answer in zip(grid, answers, strict=True)] + [f"seed={seed}"]
            _run(folder / ",".join(overrides), dict(zip(grid, answers, strict=True)), overrides, seed, levels, rounds)


def _run(run: Path, answers: dict[str, str], overrides: list[str], seed: int, levels: int, rounds: int) -> None:
    axes, random = AXES | answers, np.random.default_rng([seed, *map(ord, run.name)])
    densities = 0.5 ** np.arange(levels)
    events = [{"round": i * rounds, "density": d, "swap": 0.0} for i, d in enumerate(densities) if i]
    described = {"name": "lth_fedavg", "axes": axes, "seed": seed, "density": densities[-1], "overrides": overrides}
    described |= {"plan": {"events": events, "rounds": levels * rounds}, "parameters": 50890, "prunable": 50200, "clients": 20}
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(described))
    rows = list(_rounds(axes, densities, rounds, random))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "summary.json").write_text(json.dumps({"status": "done", "metrics": rows[-1] | {"time/total_s": 20.0}}))
    digits = datasets.digits()
    save_partition(federate(digits, Dirichlet(0.3), clients=20, seed=seed), digits.y, run / "partition.safetensors")


def _rounds(axes: dict[str, str], densities: np.ndarray, rounds: int, random: np.random.Generator):
    sent, luck = 0, random.normal(0, 0.004)
    for done in range(len(densities) * rounds):
        level, position = divmod(done, rounds)
        density = float(densities[level])
        half = BREAKS_AT[axes["criterion"]] * {"init": 1.0, "early": 0.7, "random_reinit": 3.0}[axes["rewind"]]
        best = 0.1 + (0.87 if axes["whose"] == "shared" else 0.83) / (1 + (half * (1 / density - 1)) ** 1.6) + luck
        accuracy = best - (best - 0.1) * np.exp(-(position + 1) / 3) + random.normal(0, 0.003)
        up, down = int(10 * 4 * 50890 * density), int(10 * 4 * 50890 * density) + 10 * 50200 // 8
        sent += up + down
        row = {
            "round": done,
            "prune/events": level,
            "density/weights": density,
            "density/params": density,
            "density/units": density,
        }
        row |= {f"density/layer/{name}": float(density ** (1 / bend)) for name, bend in LAYERS.items()}
        row |= {"train/loss": 1.0 - accuracy, "wire/up_bytes": up, "wire/down_bytes": down, "wire/total_bytes": sent}
        row |= {"flops/train": 6.0 * 50890 * density * 720, "time/train_s": 0.15, "time/round_s": 0.19}
        if position % 5 == 4 or position == rounds - 1:
            row |= {"test/accuracy": accuracy, "test/loss": 1 - accuracy, "val/accuracy": accuracy - 0.01}
            row |= {"client/accuracy_mean": accuracy - 0.02, "client/accuracy_p10": max(accuracy - 0.12, 0.0)}
        yield row


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "lth_fedavg"
    fabricate(folder, {"criterion": ["magnitude", "random"], "rewind": ["init", "random_reinit"]}, seeds=2, levels=4)
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path: Path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_on_a_sweep(path: Path, sweep: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEDPRUNE_SWEEP", str(sweep))
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 5
    assert any("magnitude" in output.get("data", {}).get("text/html", "") for output in shown)
