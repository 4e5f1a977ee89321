"""The runs of a sweep, and those of them that were passed over because another process does them.

Both are lists in files that jobs append to, since a launcher may run them in other processes. Each launch of a sweep has its
own, so that two terminals with the same command do not mix them up; at its end its list becomes the sweep's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fedprune.running import launched

SWEEP = "FEDPRUNE_SWEEP"
"""The environment variable with the name of the sweep that is going on."""


def enroll(folder: Path) -> None:
    """Note that this run belongs to the sweep that is going on, if one is."""
    sweep = os.environ.get(SWEEP)
    if sweep:
        _append(_begun(folder.parent.parent, sweep), f"{folder.parent.name}/{folder.name}")


def members(folder: Path, sweep: str) -> list[Path]:
    """Return the folders of a sweep's runs, in the order in which they began. folder: that of the sweep."""
    return [folder.parent / name for name in dict.fromkeys(_lines(_ended(folder.parent, sweep)))]


def forget(folder: Path, sweep: str) -> None:
    """Forget the runs of an earlier launch by a process of this number."""
    for path in (_begun(folder.parent, sweep), _passed(folder.parent, sweep)):
        path.unlink(missing_ok=True)


def publish(folder: Path, sweep: str) -> None:
    """Let the runs of this launch be the sweep's. folder: that of the sweep."""
    _passed(folder.parent, sweep).unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # there was none
        os.replace(_begun(folder.parent, sweep), _ended(folder.parent, sweep))


def pass_over(folder: Path, overrides: Sequence[str]) -> None:
    """Note that a job was left out for now. folder: that of its run."""
    _append(_passed(folder.parent.parent, os.environ[SWEEP]), json.dumps([folder.name, *overrides]))


def take_passed_over(folder: Path, sweep: str) -> dict[Path, list[str]]:
    """Return the overrides of the jobs that were left out, by the folders of their runs; and forget them."""
    path = _passed(folder.parent, sweep)
    rows = map(json.loads, _lines(path))
    path.unlink(missing_ok=True)
    return {folder / name: overrides for name, *overrides in rows}


def _ended(outputs: Path, sweep: str) -> Path:
    return outputs / ".sweeps" / sweep


def _begun(outputs: Path, sweep: str) -> Path:
    launch = launched.launch()
    return _ended(outputs, f"{sweep}.{launch.token}" if launch else sweep)


def _passed(outputs: Path, sweep: str) -> Path:
    begun = _begun(outputs, sweep)
    return begun.with_name(f"{begun.name}.passed")


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:  # one short line: whole, even if several processes append
        file.write(f"{line}\n")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
