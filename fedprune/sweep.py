"""What happens around jobs: how folders are named, which jobs belong to a sweep, and the table at its end.

The folder of a job is named by what distinguishes it and a hash of its configuration, so that the same command finds what
is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fedprune.display import console

GROUPS = (
    *("what", "criterion", "when", "how_often", "where", "whose", "rewind"),
    *("federated", "partition", "data", "model", "local", "executor", "wire", "logger"),
)
"""The config groups, in the order in which they are asked; the first seven are the axes."""

VOLATILE = ("executor", "logger", "device", "dry_run", "force", "checkpoint_every", "hydra")
"""Keys that do not change a result: a run is the same run whatever they are."""

MOST = 120  # characters of a folder's name

SWEEP = "FEDPRUNE_SWEEP"  # an environment variable, because a launcher may run the jobs in other processes


def register() -> None:
    """The resolver that names a job's folder."""
    OmegaConf.register_new_resolver("fedprune.folder", folder_name, replace=True)


def folder_hash(config: DictConfig) -> str:
    """Eight hexadecimal digits of the configuration, volatile keys left out."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    kept = {key: value for key, value in plain.items() if key not in VOLATILE}
    kept["data"] = {key: value for key, value in kept["data"].items() if key != "root"}
    return _digest(kept)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def folder_name(*, _root_: DictConfig) -> str:
    """What distinguishes this job, as its overrides say, and the hash; an older folder of the same hash is used again."""
    digest = folder_hash(_root_)
    existing = sorted(Path(_root_.hydra.sweep.dir).glob(f"*-{digest}"))
    if existing:
        return existing[0].name
    words = [_word(override) for override in _root_.hydra.overrides.task]
    return "-".join([*filter(None, words), digest])[-MOST:].lstrip("-")


def _word(override: str) -> str:
    """A group's override by its option alone, another one whole; nothing for what does not distinguish a result."""
    key, _, value = override.lstrip("+~").partition("=")
    if key.startswith(("experiment", "name", "data.root", *VOLATILE)):
        return ""
    return re.sub(r"[^\w.,+=-]+", "_", value if key in GROUPS else f"{key.rpartition('/')[2]}={value}")


def enroll(folder: Path) -> None:
    """Note that this run belongs to the sweep that is going on, if one is."""
    sweep = os.environ.get(SWEEP)
    if sweep:
        list_ = _list(folder.parent, sweep)
        list_.parent.mkdir(parents=True, exist_ok=True)
        with open(list_, "a") as file:  # one short line: whole, even if several processes append
            file.write(f"{folder.name}\n")


def _list(folder: Path, sweep: str) -> Path:
    return folder / ".sweeps" / sweep


class Report(Callback):
    """Gives a sweep its name, and at its end prints one table over its jobs and writes table and figures."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        given = [config.hydra.overrides.task, config.hydra.sweeper.get("params")]
        os.environ[SWEEP] = f"{config.name}-{_digest(given)}"  # the same command again is the same sweep
        _list(Path(config.hydra.sweep.dir), os.environ[SWEEP]).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        names = _list(folder, os.environ.pop(SWEEP)).read_text().splitlines()
        runs = [folder / name for name in dict.fromkeys(names)]
        if not any((run / "run.json").exists() for run in runs):
            return  # a dry run
        if summarise(runs, folder):
            sys.exit(1)


def summarise(runs: list[Path], into: Path) -> int:
    """Print the table of these runs, write it and the figures, and return how many have failed."""
    from fedprune import analysis  # pandas and matplotlib: only now

    table = analysis.report(runs, into)
    console.print(analysis.show(table))
    console.print(f"results: {into}  (table.csv, table.md, figures/*.png and *.svg; one folder per job)")
    return sum((run / "failed.json").exists() and '"failed"' in (run / "failed.json").read_text() for run in runs)
