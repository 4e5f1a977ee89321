"""Read run folders into tidy pandas DataFrames.

A *run* is a folder with a `run.json`. A frame has two kinds of columns: those without a `/` identify the run (name, axes,
density, swept keys, seed), those with a `/` are metrics, named as in metrics.jsonl.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from fedprune.analysis.metric import LARGER, METRIC
from fedprune.errors import FedpruneError, shown
from fedprune.identity import VOLATILE
from fedprune.run_id import digest_of, short_keys, ticket_name
from fedprune.running.lock import holder_of
from fedprune.storage import digest
from fedprune.storage.history import METRICS, read_history, read_metrics
from fedprune.storage.origin import another_run
from fedprune.types import Json

log = logging.getLogger(__name__)

Runs = Path | str | Sequence[Path]
"""A folder with run folders at or below it, or the run folders themselves."""

METHOD = "method"
"""The column of the experiment that another one added to itself, as conf/experiment/benchmark.yaml does."""

EXPERIMENT = "experiment"
"""The column of the experiment of a run. In a sweep over several it is called METHOD, unless runs differ in their GROUND."""

GROUND = ("data", "partition", "model")
"""What a method is run on. Settings of a method are tuned, these are not."""

VERSION = "version"
"""The column that tells runs of one configuration apart whose code or data has changed in between, where there are such."""

UNSET = "default"
"""The value in the column of a key that a run was not given."""

Description = Json
"""The contents of a run.json, or of another JSON file of a run."""

MEND = "delete that run's folder and start the same command again to repeat the run"

SUMS = {"total/up_bytes": "wire/up_bytes", "total/down_bytes": "wire/down_bytes", "total/flops": "flops/train"}


def find_runs(folder: Path | str) -> list[Path]:
    """Return all run folders at or below `folder`, sorted. Raises FedpruneError if there is none."""
    runs = sorted(path.parent for path in Path(folder).rglob("run.json"))
    if not runs:
        what = "has no run.json in it or below it" if Path(folder).is_dir() else "is not a folder"
        raise FedpruneError(
            f"no runs to analyse: '{folder}' {what}; name the folder of a sweep, such as outputs/lth_fedavg, "
            "or make one with `python -m fedprune +experiment=lth_fedavg -m`"
        )
    return runs


def load_runs(runs: Runs) -> pd.DataFrame:
    """Return a row per run: run (folder), status (done, failed, skipped, running, unfinished), reason, name, axes, density,
    metric and larger_is_better (of what the run is judged by), swept keys, seed, the metrics of the last round, and the sums
    over all rounds `total/up_bytes`, `total/down_bytes`, `total/flops`.

    Densities and accuracies are fractions, times are seconds. A run with a file that cannot be read is left out, and a warning
    names it. Raises FedpruneError for a folder without runs, or without any that can be read.
    """
    return _frame([{**which, **_outcome(Path(which["run"]))} for which in _identities(runs)])


def load_rounds(runs: Runs) -> pd.DataFrame:
    """Return a row per finished round of every run: the identifying columns of `load_runs`, `round` (0-based) and its metrics.

    Raises what `load_runs` raises.
    """
    return _frame([{**which, **row} for which in _identities(runs) for row in read_metrics(Path(which["run"]))])


def _frame(rows: list[Json]) -> pd.DataFrame:
    """Return the rows with identifying columns first and metrics after them, each in order of appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame(rows, columns=sorted(names, key=lambda name: "/" in name))


def _identities(runs: Runs) -> list[Json]:
    """Return the identifying columns of each run, the same for all: every axis, and each key that any run was swept over."""
    described = _readable(_folders(runs))
    axes = dict.fromkeys(axis for description in described.values() for axis in description["axes"])
    swept = dict.fromkeys(key for description in described.values() for key in overrides_of(description))
    keys = [key for key in swept if key not in {*axes, "name", "density", "seed"}]
    rows = [_identity(folder, description, axes, _columns(keys)) for folder, description in described.items()]
    rows = _over_experiments(rows, [_typed(description).get(EXPERIMENT) for description in described.values()])
    versions = [digest_of(description["inputs"]) if "inputs" in description else "" for description in described.values()]
    pairs = {(each.get("id_of_config"), version) for each, version in zip(described.values(), versions, strict=True) if version}
    if len(pairs) == len({of_config for of_config, _ in pairs}):
        return rows
    return [row | {VERSION: version} for row, version in zip(rows, versions, strict=True)]


def _over_experiments(rows: list[Json], experiments: Sequence[str | None]) -> list[Json]:
    """Return the rows with their experiments as methods, if each run has one, there are several, and all are on the same."""
    other = any(METHOD in row for row in rows) or None in experiments or len({*experiments}) < 2
    if other or any(len({row.get(name) for row in rows}) > 1 for name in GROUND):
        return rows
    return [
        {METHOD: experiment} | {column: value for column, value in row.items() if column != EXPERIMENT}
        for row, experiment in zip(rows, experiments, strict=True)
    ]


def _readable(folders: Sequence[Path]) -> dict[Path, Description]:
    """Return what each run is. Those with a damaged file are left out with a warning; if all are, FedpruneError is raised."""
    described, damaged = dict[Path, Description](), list[FedpruneError]()
    for folder in folders:
        try:
            described[folder] = _checked(folder)
        except FedpruneError as error:
            damaged.append(error)
    if damaged and not described:
        raise damaged[0]
    for problem in damaged:
        log.warning("left out of the analysis: %s", problem)
    return described


def _checked(folder: Path) -> Description:
    """Return what a run is. Raises FedpruneError if a file of it cannot be read, or holds something else."""
    description = read_json(folder / "run.json")
    try:
        names = [description["name"], *description["axes"], *description["axes"].values(), *overrides_of(description)]
        sound = all(isinstance(name, str) for name in names) and isinstance(description["seed"], int)
        rows = [description.get("config", {}), *read_metrics(folder), *([_outcome(folder)] if sound else [])]
        sound = sound and all(isinstance(row, dict) for row in rows)
        _identity(folder, description, (), {})
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FedpruneError(f"{folder} is damaged ({type(error).__name__}: {shown(error)}): {MEND}") from error
    if not sound:
        raise FedpruneError(f"{folder} is damaged (run.json or metrics.jsonl holds something else than a run's): {MEND}")
    return description


def _columns(keys: Iterable[str]) -> dict[str, str]:
    """Return the column of each key: its last words, as in a run folder's name; the whole key where it changes no result."""
    circumstances = [key for key in keys if key == "data.root" or key.partition(".")[0] in VOLATILE]
    others = short_keys(key for key in keys if key not in circumstances)
    return {key: others.get(key, key.replace("/", ".")) for key in keys}  # with a slash it would look like a metric


def _folders(runs: Runs) -> list[Path]:
    if isinstance(runs, (str, Path)):
        return find_runs(runs)
    folders = [*map(Path, runs)]
    for folder in folders:
        if (folder / METRICS).exists() and not (folder / "run.json").exists():
            log.warning("%s is left out: it has rounds of a run, and no run.json that says of which", folder)
    return [folder for folder in folders if (folder / "run.json").exists()]


def _identity(folder: Path, description: Description, axes: Iterable[str], columns: Mapping[str, str]) -> Json:
    status, reason = _status(folder, description)
    # Runs of before the metric was recorded are judged by accuracy; a run without a plan never came to a metric.
    recorded = description.get("metric") or ({"name": "accuracy", "larger_is_better": True} if "plan" in description else {})
    return {
        **{"run": str(folder), "status": status, "reason": reason, "name": description["name"]},
        **{axis.replace("/", "."): description["axes"].get(axis, UNSET) for axis in axes},
        **{"density": description.get("density"), METRIC: recorded.get("name"), LARGER: recorded.get("larger_is_better")},
        **{column: _configured(description, key) for key, column in columns.items()},
        **{"seed": description["seed"]},
    }


def _typed(description: Description) -> dict[str, str]:
    """Return all overrides of a run by key."""
    pairs = [override.partition("=") for override in description["overrides"]]
    return {key.lstrip("+~"): "removed" if key.startswith("~") else value.strip("'\"") for key, _, value in pairs}


def overrides_of(description: Description) -> dict[str, str]:
    """Return overrides by key: ['+a.b=1', '~c'] -> {'a.b': '1', 'c': 'removed'}; without the experiment if the run has its
    name, and without the loggers of several."""
    kept = {key: value for key, value in _typed(description).items() if not key.startswith("logger@")}
    return {key: value for key, value in kept.items() if (key, value) != ("experiment", description["name"])}


def _configured(description: Description, key: str) -> int | float | str:
    """Return the value of a swept key as the run's configuration has it, else as the override says."""
    value: object = description.get("config", {})
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    if key == "ticket.path" and isinstance(value, str):
        return ticket_name(Path(value))
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return value
    return _number(overrides_of(description).get(key, UNSET if value is None else json.dumps(value)))


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _status(folder: Path, description: Description) -> tuple[str, str]:
    """Return (status, reason)."""
    if (folder / "summary.json").exists():
        return "done", "; ".join(f"{METRICS}: {problem}" for problem in read_history(folder).problems)
    if (folder / "failed.json").exists():
        failed = read_json(folder / "failed.json")
        return failed["status"], failed["reason"]
    of_all = f" of {description['plan']['rounds']}" if "plan" in description else ""
    done, holder = f"{len(read_metrics(folder))}{of_all} rounds done", holder_of(folder)
    return ("unfinished", done) if holder is None else ("running", f"{done} by {holder}")


def _outcome(folder: Path) -> dict[str, float]:
    """Return the last metrics of a run and the sums over its rounds; {} for a run that never finished a round. Of rounds that
    are not all there, there are no sums."""
    rounds, whole = read_metrics(folder), not read_history(folder).problems
    if not rounds:
        return {}
    values = {total: [row[metric] for row in rounds if metric in row] for total, metric in SUMS.items()}
    sums = {total: sum(of_rounds) if of_rounds and whole else math.nan for total, of_rounds in values.items()}
    seconds = {"time/total_s": sum(row.get("time/round_s", 0) for row in rounds)}
    summary = folder / "summary.json"
    last = read_summary(summary)["metrics"] if summary.exists() else rounds[-1]
    return {**seconds, **{name: value for name, value in last.items() if "/" in name}, **sums}


def read_summary(path: Path) -> Description:
    """Return a run's results. Raises FedpruneError if they are damaged, or those of another run."""
    summary = read_json(path)
    if problem := another_run(path.parent, summary.get("id")):
        raise FedpruneError(f"{path} belongs elsewhere: {problem}. Put it back, or repeat the run with force=true")
    return summary


def read_json(path: Path) -> Description:
    """Return the object in a file of JSON. Raises FedpruneError, naming the file, if it holds anything else."""
    try:
        return digest.from_json(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also of a byte that is not UTF-8
        raise FedpruneError(f"{path} is damaged ({shown(error)}): {MEND}") from error
