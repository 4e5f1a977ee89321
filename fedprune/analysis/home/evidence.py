"""The numbers of a home, taken from its runs: what page and verdict follow from. Kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from fedprune.analysis.home.protocol import ours
from fedprune.analysis.home.sweep import Sweep
from fedprune.analysis.metric import Metric, metric_of
from fedprune.analysis.read import METHOD as COLUMN
from fedprune.analysis.read import find_runs, load_runs, overrides_of, read_json
from fedprune.analysis.verdict import resolution_of
from fedprune.config.home import Compared, Home, read_home, sought
from fedprune.errors import FedpruneError
from fedprune.run_id import METHOD
from fedprune.types import Json

ALIVE = "alive"
"""The mean density of the clients' own masks at the end; of the one mask, where clients have none."""

BYTES = ("total/up_bytes", "total/down_bytes")


@dataclass(frozen=True)
class Measured:
    """One run of the sweep over its seeds.

    values: metric -> its value at the end for each seed that is done. lacking: why some seed has none; "" if all have.
    """

    values: Mapping[str, Mapping[int, float]]
    lacking: str = ""

    def series(self, metric: str) -> pd.Series:
        """Return a metric by seed."""
        return pd.Series(dict(self.values.get(metric, {})), dtype=float)


@dataclass(frozen=True)
class Evidence:
    """All that a page says.

    metric: what runs are judged by. ours: the rows of our protocol. runs: by experiment. params: those of the sweep that was
    run, without what changes no result. test_examples: the size of the global test set, which all seeds share; None: unknown.
    """

    key: str
    title: str
    about: str
    command: str
    home: Home
    metric: Metric
    ours: Mapping[str, str]
    runs: Mapping[str, Measured]
    params: Mapping[str, str]
    test_examples: int | None = None

    @property
    def resolution(self) -> float:
        """Return the smallest difference that counts: 0 unless the method is judged by accuracy on the shared test set."""
        shared = self.metric.percent and self.home.method.metric == f"test/{self.metric.name}"
        return resolution_of(self.test_examples) if shared else 0.0

    def of(self, compared: Compared) -> Measured:
        """Return the run that one side of a comparison names."""
        found = sought(compared.run, tuple(self.runs))
        assert found is not None  # read_home has looked
        return self.runs[found]


def collect(sweep: Sweep, folder: Path) -> Evidence:
    """Return the numbers of a sweep's runs in a folder. Raises FedpruneError if there is none of the sweep as its yaml is."""
    chosen = _of_sweep(sweep, folder)
    if not chosen:
        raise FedpruneError(f"no run in {folder} is of {sweep.key} as its yaml is now: run `{sweep.command}`")
    frame = load_runs(chosen)
    metric, home = metric_of(frame), sweep.home
    runs = {each: _measured(frame[frame[COLUMN] == each], names(metric, home)) for each in sweep.experiments}
    shown = _shown(frame, sought(home.method.run, sweep.experiments))
    described = read_json(shown / "run.json")
    return Evidence(
        *(sweep.key, sweep.title, sweep.about, sweep.command, home, metric),
        ours=ours(described, shown),
        runs=runs,
        params=sweep.results_depend_on,
        test_examples=described.get("test_examples"),
    )


def retold(evidence: Evidence, sweep: Sweep) -> Evidence:
    """Return the same numbers under the claim, the controls and the margin that the yaml says now. Raises FedpruneError if its
    sweep is not the one that was run."""
    if evidence.params != sweep.results_depend_on:
        raise FedpruneError(
            f"the sweep of {sweep.key} has changed since its page was written: run `{sweep.command}`, and this again"
        )
    return replace(evidence, title=sweep.title, about=sweep.about, command=sweep.command, home=sweep.home)


def _shown(frame: pd.DataFrame, method: str | None) -> Path:
    """Return the run whose protocol is shown: of the method if there is one, and one that is done."""
    order = frame.assign(other=frame[COLUMN] != method, undone=frame["status"] != "done")
    return Path(order.sort_values(["other", "undone", "seed"]).iloc[0]["run"])


def names(metric: Metric, home: Home) -> list[str]:
    """Return the metrics that a page shows: those of every page, and those that this one compares by."""
    parts = [f"client/{metric.name}_mean", f"client/{metric.name}_tuned_mean", f"test/{metric.name}", ALIVE, *BYTES]
    compared = [each.metric for each in (home.method, home.baseline, *home.controls.values())]
    return list(dict.fromkeys([*parts, *compared]))


def _of_sweep(sweep: Sweep, folder: Path) -> list[Path]:
    """Return the newest run of each experiment and seed."""
    newest: dict[tuple[str, int], Path] = {}
    for run in sorted(find_runs(folder), key=lambda run: (run / "run.json").stat().st_mtime):
        described = read_json(run / "run.json")
        overrides = overrides_of(described)
        if sweep.has(overrides):
            newest[overrides[METHOD], described["seed"]] = run
    return list(newest.values())


def _measured(runs: pd.DataFrame, metrics: Sequence[str]) -> Measured:
    done = runs[runs["status"] == "done"].sort_values("seed")
    one_mask = _column(done, "density/weights")
    done = done.assign(**{ALIVE: _column(done, "client/density_mean").fillna(one_mask)})
    values = {metric: _by_seed(done["seed"], _column(done, metric)) for metric in metrics}
    return Measured({metric: of_seeds for metric, of_seeds in values.items() if of_seeds}, _lacking(runs, done))


def _by_seed(seeds: pd.Series, values: pd.Series) -> dict[int, float]:
    return {int(seed): float(f"{value:.10g}") for seed, value in zip(seeds, values, strict=True) if not pd.isna(value)}


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[name].astype(float) if name in frame else pd.Series(float("nan"), frame.index)


def _lacking(runs: pd.DataFrame, done: pd.DataFrame) -> str:
    if len(runs) == len(done) > 0:
        return ""
    reasons = dict.fromkeys(f"{row.status}: {row.reason}" for row in runs[runs["status"] != "done"].itertuples())
    return f"{len(done)} of {len(runs)} runs are done" + "".join(f"; {reason}" for reason in reasons)


def saved(evidence: Evidence) -> str:
    """Return the evidence as JSON."""
    return json.dumps(asdict(evidence), indent=1) + "\n"


def loaded(path: Path) -> Evidence:
    """Return evidence as `saved` wrote it. Raises FedpruneError if the file has another form."""
    plain: Json = read_json(path)
    try:
        runs = {name: _run(run) for name, run in plain["runs"].items()}
        home = read_home(plain["home"], tuple(runs))
        return Evidence(**{**plain, "home": home, "metric": Metric(**plain["metric"]), "runs": runs})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FedpruneError(
            f"{path} is no evidence in the form of this version ({type(error).__name__}: {error}): remove it, or make it anew "
            f"with `python -m fedprune.analysis.home {path.stem}`"
        ) from error


def _run(plain: Json) -> Measured:
    values = {metric: {int(seed): value for seed, value in seeds.items()} for metric, seeds in plain["values"].items()}
    return Measured(values, plain["lacking"])
