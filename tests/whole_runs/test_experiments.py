"""Every experiment that comes along runs from end to end in a reduced form, and each two answers of its grid meet."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fedprune import analysis
from fedprune.config import CONF
from helpers.covering import fewest
from helpers.quick_hydra import basic_sweeper
from helpers.reduced import REDUCED, data_for, reduced, small_roots

pytestmark = pytest.mark.slow

BENCHMARK = CONF / "experiment" / "benchmark.yaml"
BENCHMARKS = (BENCHMARK, BENCHMARK.with_stem("benchmark_without_density"))
EXPERIMENTS = sorted(path for path in (CONF / "experiment").glob("*.yaml") if path not in BENCHMARKS)

NARROWED = {
    "taxonomy_grid": {
        "what": "weights_global,neurons_global",
        "criterion": "magnitude,snip",
        "when": "before_training,during_training",
        "how_often": "one_shot,gradual",
    },
}
"""Of experiments whose grid is too large for a test: the values of some axes that stand for all of them."""


def grid(path: Path) -> dict[str, list[str]]:
    """The axes that the file declares, narrowed where NARROWED says so."""
    swept = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}
    narrowed = NARROWED.get(path.stem, {})
    assert narrowed.keys() <= swept.keys()
    assert all(set(values.split(",")) <= set(str(swept[key]).split(",")) for key, values in narrowed.items())
    values = {**swept, **narrowed}
    return {key: [value.strip() for value in str(values).split(",")] for key, values in values.items() if key != "seed"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Callable[..., tuple[str, ...]]:
    """data(experiment, many) -> overrides for data at hand."""
    return functools.partial(data_for, small_roots(tmp_path_factory.mktemp("data")))


FIGURED = ("lth_fedavg", "lth_fedavg_shakespeare", "taxonomy_grid", "fedavg", "hermes", "dispfl", "fedpm", "flash_spdst")
"""Those whose figures are drawn: one of every kind. Figures take a fifth of the time, and the others only add more rows."""


@pytest.fixture
def composed_once(monkeypatch) -> None:
    """Hydra composes every cell of a sweep twice, the first time to see whether it can: that takes a quarter of these tests."""
    monkeypatch.setattr(basic_sweeper(), "validate_batch_is_legal", lambda *_: None)


@pytest.fixture
def cells(monkeypatch) -> list[Sequence[str]]:
    """The cells that a sweep runs: so many of its grid that each two answers meet."""
    sweeper, ran = basic_sweeper(), []
    whole = sweeper.split_arguments

    def chosen(*arguments: Any) -> list[list[list[str]]]:
        (batch,) = whole(*arguments)
        ran.extend(fewest(batch, 2))
        return [ran]

    monkeypatch.setattr(sweeper, "split_arguments", staticmethod(chosen))
    return ran


def column(key: str, row: dict[str, str]) -> str:
    """The column of a key: as few of its last words as tell it from the others."""
    words = re.split("[./]", key)
    return next(name for name in (".".join(words[-number:]) for number in range(1, len(words) + 1)) if name in row)


@pytest.mark.usefixtures("composed_once")
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_runs_and_each_two_answers_of_its_grid_meet(path, command, data, cells, monkeypatch):
    figured = path.stem in FIGURED
    if not figured:
        monkeypatch.setattr(sys.modules[analysis.report.__module__], "draw", lambda *_: [])
    narrowed = [f"{key}={values}" for key, values in NARROWED.get(path.stem, {}).items()]
    result = command(f"+experiment={path.stem}", *data(path), *reduced(path), *narrowed, "-m")
    assert result.rc == 0, result.text
    folder = Path("outputs", path.stem)
    with open(folder / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    axes = {column(key, rows[0]): values for key, values in grid(path).items() if not swept_away(key)}
    assert len(rows) == len(cells)
    assert {row["status"] for row in rows} <= {"done", "skipped"}
    done = [row for row in rows if row["status"] == "done"]
    assert len(done) >= len(cells) / 2
    for one, other in itertools.combinations_with_replacement(axes, 2):
        met = {(row[one], row[other]) for row in rows}
        possible = itertools.product(axes[one], axes[other]) if one != other else ((value, value) for value in axes[one])
        assert met == set(possible), (one, other)
    for row in done:
        assert float(row["test accuracy (%)"]) > 0
        assert (float(row["sent up (MB)"]) > 0) is (path.stem != "standalone")

    finished = sorted(folder.glob("*/summary.json"))
    assert len(finished) == len(done)
    for summary in finished:
        run = summary.parent
        metrics, about = json.loads(summary.read_text())["metrics"], json.loads((run / "run.json").read_text())
        plan = about["plan"]
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == plan["rounds"] == metrics["round"] + 1
        if plan["events"] and about["axes"]["what"] == "weights_threshold":  # which says by itself how much goes
            assert metrics["density/units"] < 0.7
        elif plan["events"]:
            assert metrics["density/units"] == pytest.approx(plan["events"][-1]["density"], abs=0.15)
    for figure in ("accuracy_density", "accuracy_bytes", "accuracy_rounds") if figured else ():
        for suffix in (".png", ".svg"):
            assert (folder / "figures" / figure).with_suffix(suffix).stat().st_size > 1000


def swept_away(key: str) -> bool:
    """Whether the reduced form sets this key to one value."""
    return key in {override.partition("=")[0] for override in REDUCED}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_says_what_it_will_cost_as_it_is(path, command, data):
    """With its own numbers of rounds and clients, on small data: composed, checked and estimated, not trained."""
    result = command(f"+experiment={path.stem}", *data(path, many=True), "dry_run=true")
    assert result.rc == 0, result.text
    assert f"{path.stem}: " in result.out
    assert "bytes down" in result.out


@pytest.mark.usefixtures("composed_once")
def test_the_benchmark_adds_experiments_to_itself_and_compares_them(command, data):
    swept = [OmegaConf.load(path).hydra.sweeper.params["+experiment@_global_"] for path in BENCHMARKS]
    methods = [[method.strip() for method in methods.split(",")] for methods in swept]
    assert sorted(itertools.chain(*methods)) == sorted(
        f"benchmark/{path.stem}" for path in BENCHMARK.with_suffix("").glob("*.yaml")
    )
    protocol = data(CONF / "experiment" / "feddst.yaml", many=True)
    for path, density, names in zip(BENCHMARKS, (["density=0.1"], []), methods, strict=True):
        whole = command(f"+experiment={path.stem}", *protocol, "seed=0", *density, "logger=none", "dry_run=true", "-m")
        assert whole.rc == 0, whole.text
        assert whole.out.count("benchmark: ") == len(names)
    few = "+experiment@_global_=benchmark/fedavg,benchmark/feddst,heterofl"
    result = command("+experiment=benchmark", few, *protocol, *REDUCED, "local.optimizer.lr=0.01,0.1", "-m")
    assert result.rc == 0, result.text
    for page in ("methods.md", "tuning.md"):
        text = Path("outputs/benchmark", page).read_text()
        assert all(f"| {method} " in text.replace("**", "") for method in ("fedavg", "feddst", "heterofl"))


def test_the_main_job_has_at_least_twelve_cells_and_its_controls():
    axes = grid(CONF / "experiment" / "lth_fedavg.yaml")
    assert math.prod(len(values) for values in axes.values()) >= 12
    assert {"iterative", "one_shot"} <= set(axes["how_often"])
    assert {"init", "random_reinit"} <= set(axes["rewind"])
    assert {"magnitude", "random"} <= set(axes["criterion"])
    assert {"weights_global", "weights_per_layer"} <= set(axes["what"])
