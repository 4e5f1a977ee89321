"""Run folders -> tidy pandas DataFrames.

A *run* is one folder with a `run.json`. A frame's columns are of two kinds: those without a `/` say which run it is (name,
axes, density, swept keys, seed), those with a `/` are metrics, named as in metrics.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fedprune.errors import FedpruneError

Runs = Path | str | Sequence[Path]
"""A folder with run folders at or below it, or the run folders themselves."""

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
    """A row per run: run (folder), status (done, failed, skipped, unfinished), reason, name, axes, density, swept keys, seed,
    the last round's metrics, and the sums over all rounds `total/up_bytes`, `total/down_bytes`, `total/flops`.

    A swept key that a run was not given reads "default". Densities and accuracies are fractions, times are seconds.
    Raises FedpruneError for a folder without runs and for damaged files.
    """
    return _frame([{**_identity(run), **_outcome(run)} for run in _folders(runs)])


def load_rounds(runs: Runs) -> pd.DataFrame:
    """A row per finished round of every run: the identifying columns of `load_runs`, `round` (0-based) and its metrics.

    Where a resumed run wrote a round twice, the later line counts. Raises as `load_runs`.
    """
    return _frame([{**identity, **row} for run in _folders(runs) for identity in [_identity(run)] for row in _rounds(run)])


def _folders(runs: Runs) -> list[Path]:
    return find_runs(runs) if isinstance(runs, (str, Path)) else [Path(run) for run in runs]


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Identifying columns first, else in order of appearance. Unset keys read "default"; unset metrics and densities NaN."""
    names = sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: "/" in name)
    unset = {name: "default" for name in names if "/" not in name and name != "density"}
    return pd.DataFrame([{**unset, **row} for row in rows], columns=names)


def _identity(run: Path) -> dict[str, Any]:
    described = _read(run / "run.json")
    status, reason = _status(run, described)
    axes = {_column(axis): answer for axis, answer in described["axes"].items()}
    swept = dict(map(_key_and_value, described["overrides"]))
    density = described.get("density", swept.pop("density", None))
    if swept.get("experiment") == described["name"]:  # a run is named after its experiment, unless it was renamed
        del swept["experiment"]
    which = {"name": described["name"], **axes, "density": density}
    swept = {key: value for key, value in swept.items() if key not in which and key != "seed"}
    return {"run": str(run), "status": status, "reason": reason, **which, **swept, "seed": described["seed"]}


def _key_and_value(override: str) -> tuple[str, Any]:
    """'+a.b=1' -> ('a.b', 1); '~c' -> ('c', 'removed')."""
    key, _, value = override.partition("=")
    return _column(key.lstrip("+~")), "removed" if key.startswith("~") else _scalar(value)


def _column(key: str) -> str:
    # The slash of a nested config group would make the column look like a metric.
    return key.replace("/", ".")


def _scalar(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text.strip("'\"")


def _status(run: Path, described: dict[str, Any]) -> tuple[str, str]:
    if (run / "summary.json").exists():
        return "done", ""
    if (run / "failed.json").exists():
        failed = _read(run / "failed.json")
        return failed["status"], failed["reason"]
    of_all = f" of {described['plan']['rounds']}" if described.get("plan") else ""
    return "unfinished", f"{len(_rounds(run))}{of_all} rounds done"


def _outcome(run: Path) -> dict[str, float]:
    """The last metrics of a run and the sums over its rounds; nothing for a run that never finished a round."""
    rounds = _rounds(run)
    if not rounds:
        return {}
    sums = {total: sum(row.get(metric, 0) for row in rounds) for total, metric in SUMS.items()}
    seconds = {"time/total_s": sum(row.get("time/round_s", 0) for row in rounds)}
    summary = run / "summary.json"
    last = _read(summary)["metrics"] if summary.exists() else rounds[-1]
    return {**seconds, **{name: value for name, value in last.items() if "/" in name}, **sums}


def _rounds(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    *lines, last = path.read_text().split("\n") if path.exists() else [""]
    rows = [_parse(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]
    # Without a newline at its end the last line was torn when the process was killed; half an object never parses.
    rows += [json.loads(last)] if last.endswith("}") and _parses(last) else []
    return [row for _, row in sorted({row["round"]: row for row in rows}.items())]


def _read(path: Path) -> dict[str, Any]:
    return _parse(path.read_text(), str(path))


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        mend = "delete that run's folder and start the same command again to repeat the run"
        raise FedpruneError(f"{where} is damaged ({error}): {mend}") from error


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True
