"""A sweep around its jobs: the list of its members, and the table and figures at its end."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedprune.config.home import experiments, read_home
from fedprune.errors import ConfigError
from fedprune.identity import resolved
from fedprune.run_id import METHOD, digest_of
from fedprune.running import dry
from fedprune.running.display import console

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


def members(folder: Path, sweep: str) -> list[Path]:
    """Return the folders of a sweep's runs, in the order in which they began. folder: that of the sweep."""
    listed = _members(folder.parent, sweep)
    names = listed.read_text().splitlines() if listed.exists() else []
    return [folder.parent / name for name in dict.fromkeys(names)]


def name_of(config: DictConfig) -> str:
    """Return the name of a sweep, from its configuration before its cells: the same command again has the same name."""
    given = [config.hydra.overrides.task, config.hydra.sweeper.get("params")]
    with suppress(OmegaConfBaseException):  # what refers to a key that only the cells have
        given.append(resolved(config))
    return f"{config.name}-{digest_of(given)}"


class Report(Callback):
    """Gives a sweep its name, and at its end prints one table over its jobs and writes table and figures. A dry run writes
    nothing, alone or in a sweep."""

    def on_run_start(self, config: DictConfig, **kwargs: object) -> None:
        """Send what Hydra writes of a dry run to a temporary folder."""
        if config.dry_run:
            dry.divert(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: object) -> None:
        """Name the sweep, and forget the members of an earlier one of this name. Ends the process for a wrong `home`."""
        _check_home(config)
        os.environ[SWEEP] = name_of(config)
        if config.dry_run:
            dry.divert(config)
        else:
            _members(Path(config.hydra.sweep.dir).parent, os.environ[SWEEP]).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        """Summarise the runs. Ends the process with status 1 if one has failed, or if the table cannot be made."""
        folder, sweep = Path(config.hydra.sweep.dir), os.environ.pop(SWEEP)
        if config.dry_run:  # which leaves nothing to summarise
            return
        runs = members(folder, sweep)
        reported = _reported(runs, folder)
        if not reported or any(map(has_failed, runs)):
            sys.exit(1)


def _check_home(config: DictConfig) -> None:
    """End the process, before the first run, if the section `home` of the sweep is wrong."""
    if config.home is None:
        return
    try:
        read_home(OmegaConf.to_container(config.home, resolve=True), experiments(config.hydra.sweeper.params or {}, METHOD))
    except ConfigError as error:
        sys.exit(f"{error}")


def _reported(runs: list[Path], into: Path) -> bool:
    """Write the table and figures of a sweep; return whether that worked. If not, the reason is printed, and the runs stay
    done."""
    try:
        summarise(runs, into)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        print(
            f"the sweep has ended, and its table could not be made ({why}): once that is mended, "
            f"`python -m fedprune.analysis {into}` makes one of all runs there",
            file=sys.stderr,
        )
        return False
    return True


def has_failed(run: Path) -> bool:
    """Return whether a run has ended without a result, by a fault and not because its cell makes no sense."""
    failed = run / "failed.json"
    return failed.exists() and json.loads(failed.read_text())["status"] == "failed"


def summarise(runs: list[Path], into: Path) -> None:
    """Print the table of these runs, and write it and the figures."""
    from fedprune import analysis  # pandas and matplotlib: only now

    table = analysis.report(runs, into)
    console.print(analysis.show(table))
    written = [
        *sorted(path.name for path in into.iterdir() if path.suffix in (".csv", ".md", ".tex")),
        "figures/*.png, *.svg and *.pdf",
    ]
    console.print(f"results: {into}  ({', '.join(written)}; one folder per job)")
