"""A sweep around its jobs: its name, and the table and figures at its end."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedprune.config.home import experiments, read_home
from fedprune.config.instantiate import make
from fedprune.errors import ConfigError, FedpruneError
from fedprune.identity import resolved
from fedprune.run_id import METHOD, digest_of
from fedprune.running import come_back, dry, launched, loggers
from fedprune.running.display import console
from fedprune.running.earlier import failure
from fedprune.running.lock import patience
from fedprune.running.members import SWEEP, forget, members, publish

GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
"""The sweeper of a grid: it wants no answer of a job. One that searches waits for each."""


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
        """Name the sweep. Ends the process for a wrong `home` or `wait`."""
        _check(config)
        os.environ[SWEEP] = name_of(config)
        launched.begin(passes_over=config.hydra.sweeper._target_ == GRID and not config.dry_run)
        if config.dry_run:
            dry.divert(config)
        else:
            forget(Path(config.hydra.sweep.dir), os.environ[SWEEP])

    def on_multirun_end(self, config: DictConfig, **kwargs: object) -> None:
        """Come back to runs that other processes were doing, and summarise all. Ends the process with status 1 if one has
        failed or is still being done, or if the table cannot be made."""
        folder, sweep = Path(config.hydra.sweep.dir), os.environ[SWEEP]
        try:
            if config.dry_run:  # which leaves nothing to summarise
                return
            left = come_back.come_back(config, sweep, patience(config.wait, auto=None))
            publish(folder, sweep)
        finally:
            launched.end()
            del os.environ[SWEEP]
        runs = members(folder, sweep)
        reported = _reported(runs, folder)
        if reported:
            _tell(config, folder, sweep)
        if left:
            come_back.tell(left)
        if left or not reported or any(map(has_failed, runs)):
            sys.exit(1)


def _check(config: DictConfig) -> None:
    """End the process, before the first run, if `wait` or the section `home` of the sweep is wrong."""
    try:
        patience(config.wait, auto=None)
        _check_home(config)
    except ConfigError as error:
        sys.exit(f"{error}")


def _check_home(config: DictConfig) -> None:
    """Raise ConfigError if the section `home` of the sweep is wrong."""
    if config.home is not None:
        read_home(OmegaConf.to_container(config.home, resolve=True), experiments(config.hydra.sweeper.params or {}, METHOD))


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


def _tell(config: DictConfig, folder: Path, sweep: str) -> None:
    """Tell the logger of the tables and figures. Values that it refuses were told by the runs."""
    with suppress(FedpruneError):
        logger = loggers.completed(make(config.logger))
        loggers.report(logger, f"logger={config.hydra.runtime.choices.logger}", folder, sweep)


def has_failed(run: Path) -> bool:
    """Return whether a run has ended without a result, by a fault and not because its cell makes no sense."""
    return bool(failure(run).get("status") == "failed")


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
