"""Run folders -> tidy pandas DataFrames.

A *run* is one folder with a `run.json`. A frame's columns are of two kinds: those without a `/` say which run it is (name,
axes, density, swept keys, seed), those with a `/` are metrics, named as in metrics.jsonl.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedprune.analysis.metric import LARGER, METRIC
from fedprune.errors import FedpruneError
from fedprune.run.loggers import read_metrics

Runs = Path | str | Sequence[Path]
"""A folder with run folders at or below it, or the run folders themselves."""

UNSET = "default"
"""What a run has in the column of a key that it was not given."""

SUMS = {"total/up_bytes": "wire/up_bytes", "total/down_bytes": "wire/down_bytes", "total/flops": "flops/train"}


def find_runs(folder: Path | str) -> list[Path]:
    """All run folders at or below `folder`, sorted. Raises FedpruneError where there is none."""
    runs = sorted(path.parent for path in Path(folder).rglob("run.json"))
    if not runs:
        what = "has no run.json in it or below it" if Path(folder).is_dir() else "is not a folder"
        raise FedpruneError(
            f"no runs to analyse: '{folder}' {what}; name the folder of a sweep, such as outputs/lth_fedavg, "
            "or make one with `python -m fedprune +experiment=lth_fedavg -m`"
        )
    return runs


def load_runs(runs: Runs) -> pd.DataFrame:
    """A row per run: run (folder), status (done, failed, skipped, unfinished), reason, name, axes, density, metric and
    larger_is_better (what it is judged by), swept keys, seed, the last round's metrics, and the sums over all rounds
    `total/up_bytes`, `total/down_bytes`, `total/flops`.

    Densities and accuracies are fractions, times are seconds. Raises FedpruneError for a folder without runs and for damaged
    files.
    """
    return _frame([{**which, **_outcome(Path(which["run"]))} for which in _identities(runs)])


def load_rounds(runs: Runs) -> pd.DataFrame:
    """A row per finished round of every run: the identifying columns of `load_runs`, `round` (0-based) and its metrics.

    Raises as `load_runs`.
    """
    return _frame([{**which, **row} for which in _identities(runs) for row in read_metrics(Path(which["run"]))])


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Identifying columns first, metrics after them, else in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame(rows, columns=sorted(names, key=lambda name: "/" in name))


def _identities(runs: Runs) -> list[dict[str, Any]]:
    """What each run is, with the same keys for all: every axis, and whatever any of them was swept over."""
    listed = (
        find_runs(runs) if isinstance(runs, (str, Path)) else [run for run in map(Path, runs) if (run / "run.json").exists()]
    )
    described = {folder: _read(folder / "run.json") for folder in listed}
    axes = dict.fromkeys(axis for about in described.values() for axis in about["axes"])
    swept = dict.fromkeys(key for about in described.values() for key in _overrides(about))
    keys = [key for key in swept if key not in {*axes, "name", "density", "seed"}]
    return [_identity(folder, about, axes, keys) for folder, about in described.items()]


def _identity(folder: Path, about: dict[str, Any], axes: Iterable[str], keys: Iterable[str]) -> dict[str, Any]:
    status, reason = _status(folder, about)
    told = about.get("metric") or ({"name": "accuracy", "larger_is_better": True} if "plan" in about else {})
    return {
        **{"run": str(folder), "status": status, "reason": reason, "name": about["name"]},
        **{_column(axis): about["axes"].get(axis, UNSET) for axis in axes},
        **{"density": about.get("density"), METRIC: told.get("name"), LARGER: told.get("larger_is_better")},
        **{_column(key): _configured(about, key) for key in keys},
        **{"seed": about["seed"]},
    }


def _overrides(about: dict[str, Any]) -> dict[str, str]:
    """['+a.b=1', '~c'] -> {'a.b': '1', 'c': 'removed'}; without an experiment that the run is named after anyway."""
    pairs = [override.partition("=") for override in about["overrides"]]
    swept = {key.lstrip("+~"): "removed" if key.startswith("~") else value.strip("'\"") for key, _, value in pairs}
    return {key: value for key, value in swept.items() if (key, value) != ("experiment", about["name"])}


def _configured(about: dict[str, Any], key: str) -> int | float | str:
    """The value of a swept key: as the run's configuration has it, else as the override says."""
    value: Any = about.get("config", {})
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return value
    return _number(_overrides(about).get(key, UNSET if value is None else json.dumps(value)))


def _column(key: str) -> str:
    # The slash of a nested config group would make the column look like a metric.
    return key.replace("/", ".")


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _status(folder: Path, about: dict[str, Any]) -> tuple[str, str]:
    if (folder / "summary.json").exists():
        return "done", ""
    if (folder / "failed.json").exists():
        failed = _read(folder / "failed.json")
        return failed["status"], failed["reason"]
    of_all = f" of {about['plan']['rounds']}" if "plan" in about else ""
    return "unfinished", f"{len(read_metrics(folder))}{of_all} rounds done"


def _outcome(folder: Path) -> dict[str, float]:
    """The last metrics of a run and the sums over its rounds; nothing for a run that never finished a round."""
    rounds = read_metrics(folder)
    if not rounds:
        return {}
    there = {metric: [row[metric] for row in rounds if metric in row] for metric in SUMS.values()}
    sums = {total: sum(there[metric]) if there[metric] else math.nan for total, metric in SUMS.items()}
    seconds = {"time/total_s": sum(row.get("time/round_s", 0) for row in rounds)}
    summary = folder / "summary.json"
    last = _read(summary)["metrics"] if summary.exists() else rounds[-1]
    return {**seconds, **{name: value for name, value in last.items() if "/" in name}, **sums}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        mend = "delete that run's folder and start the same command again to repeat the run"
        raise FedpruneError(f"{path} is damaged ({error}): {mend}") from error
