"""What happens around the jobs of a sweep: which belong to it, and the table and figures at its end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fedprune.display import console
from fedprune.folders import digest_of

SWEEP = "FEDPRUNE_SWEEP"  # an environment variable, because a launcher may run the jobs in other processes


def enroll(folder: Path) -> None:
    """Note that this run belongs to the sweep that is going on, if one is."""
    sweep = os.environ.get(SWEEP)
    if sweep:
        members = _members(folder.parent.parent, sweep)
        members.parent.mkdir(parents=True, exist_ok=True)
        with open(members, "a") as file:  # one short line: whole, even if several processes append
            file.write(f"{folder.parent.name}/{folder.name}\n")


def _members(outputs: Path, sweep: str) -> Path:
    return outputs / ".sweeps" / sweep


class Report(Callback):
    """Gives a sweep its name, and at its end prints one table over its jobs and writes table and figures."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        given = [config.hydra.overrides.task, config.hydra.sweeper.get("params")]
        os.environ[SWEEP] = f"{config.name}-{digest_of(given)}"  # the same command again is the same sweep
        _members(Path(config.hydra.sweep.dir).parent, os.environ[SWEEP]).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder, sweep = Path(config.hydra.sweep.dir), os.environ.pop(SWEEP)
        if config.dry_run:  # which leaves nothing to summarise
            return
        names = _members(folder.parent, sweep).read_text().splitlines()
        runs = [folder.parent / name for name in dict.fromkeys(names)]
        if summarise(runs, folder):
            sys.exit(1)


def summarise(runs: list[Path], into: Path) -> int:
    """Print the table of these runs, write it and the figures, and return how many have failed."""
    from fedprune import analysis  # pandas and matplotlib: only now

    table = analysis.report(runs, into)
    console.print(analysis.show(table))
    written = [*sorted(path.name for path in into.iterdir() if path.suffix in (".csv", ".md")), "figures/*.png and *.svg"]
    console.print(f"results: {into}  ({', '.join(written)}; one folder per job)")
    return sum((run / "failed.json").exists() and '"failed"' in (run / "failed.json").read_text() for run in runs)
