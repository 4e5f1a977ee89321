"""Do what a composition says, and give back what came of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedprune.api.compose import Composition, advice, checked, compose, configured, taken_apart
from fedprune.api.result import Result, Sweep, load
from fedprune.errors import ConfigError, FedpruneError
from fedprune.running import launched, members
from fedprune.running import run as one
from fedprune.running import sweep as sweeps
from fedprune.running.display import console, results_text
from fedprune.running.failure import noted
from fedprune.running.lock import Held
from fedprune.storage import digest
from fedprune.storage.history import SUMMARY

log = logging.getLogger(__name__)


def run(what: Sequence[str] | Composition = (), config_dir: Path | str | None = None) -> Result:
    """Do one run, resume it, or return it at once if it is done, and return its result.

    what: words as behind `python -m fedprune`, or what `compose` returned. config_dir: the folder of your own options. Raises
    ConfigError for a configuration that is wrong, and another FedpruneError if the run cannot go on; its folder then has the
    reason.
    """
    composed = what if isinstance(what, Composition) else compose(what, config_dir)
    if composed.config.dry_run:
        raise ConfigError(["dry_run=true has no result: leave it out, or type `python -m fedprune ... dry_run=true`"])
    attempt(composed, composed.config.name)
    return load(composed.folder)


def sweep(overrides: Sequence[str], config_dir: Path | str | None = None) -> Sweep:
    """Do a grid of runs, and return their results: what `python -m fedprune ... -m` does, with its table and figures.

    overrides: words with commas, such as "seed=0,1,2", or an experiment that declares a grid. A run that fails leaves its
    reason in its result, and the others go on. Raises ConfigError if the grid cannot be composed.
    """
    words = checked(overrides)
    with configured(config_dir) as search:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            whole = hydra.compose_config("config", [*search, *words], run_mode=RunMode.MULTIRUN)
            if whole.dry_run:
                raise ConfigError(["dry_run=true has no result: leave it out, or type `python -m fedprune ... dry_run=true`"])
            folder = Path(whole.hydra.sweep.dir)
            name = sweeps.name_of(whole)
            with suppress(SystemExit):  # it is about the command's status; results say which run failed
                hydra.multirun("config", job, [*search, *words], with_log_configuration=False)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError([advice(error)]) from None  # Hydra's own traceback says nothing to a user
    return Sweep(folder, tuple(load(member) for member in members.members(folder, name)))


def job(config: DictConfig) -> float | None:
    """Do one job of the command, alone or of a sweep, and return its objective.

    In a sweep a job that fails leaves its reason and returns None, and the others go on; so they do past one that another
    process is doing (see running/come_back.py). Raises FedpruneError, and whatever else goes wrong, if the job is alone.
    """
    with launched.ends_with_its_launcher():
        return _job(config)


def _job(config: DictConfig) -> float | None:
    ours = HydraConfig.get()
    folder, alone, dry = Path(ours.runtime.output_dir), ours.mode is RunMode.RUN, config.dry_run
    passes_over = not alone and launched.passes_over()
    if not dry:
        members.enroll(folder)
    try:
        with noted(folder, dry or alone), tidied(folder, alone):  # what is typed wrong is known at once
            composed = taken_apart(_with_hydra(config), folder)
        with noted(folder, dry):
            if composed.home is not None and alone:
                raise ConfigError(["this experiment is a sweep over several runs, which its section home compares: add -m"])
        return attempt(composed, os.environ.get(members.SWEEP, config.name), passes_over)
    except Held as error:
        if not passes_over:
            raise
        members.pass_over(folder, composed.overrides)
        log.info("passed over for now, since %s does it: %s", error.holder or "another process", folder)
    except FedpruneError as error:
        if alone:
            raise
        log.error("%s: %s", folder.name, error)
    except Exception as error:
        if alone or dry:
            raise
        log.error("%s\nunexpected %s: %s (see error.log there)", folder.name, type(error).__name__, error)
    return None


def attempt(composed: Composition, sweep: str, passes_over: bool = False) -> float | None:
    """Do one run, and return its objective. A dry run returns None, and leaves nothing.

    sweep: what the run is grouped by. passes_over: raise Held at once if another process does the run.
    """
    one.run(
        composed.config, composed.folder, dict(composed.options), composed.overrides, sweep, passes_over, composed.objective
    )
    if composed.config.dry_run:
        return None
    if sweep == composed.config.name:  # of a sweep, its end says where its results are
        console.print(results_text(composed.folder))
    return objective(composed.folder, composed.objective)


@contextmanager
def tidied(folder: Path, alone: bool) -> Iterator[None]:
    """Remove the folder that Hydra has made, and those above it, if they are empty and an error is raised in the context.

    alone: whether the run is alone; the folder of a sweep's cell has the reason in it.
    """
    try:
        yield
    except FedpruneError:
        with suppress(OSError):  # the first that is not empty stays, and those above it
            for each in [folder, *folder.parents][:3] if alone else []:
                if each.name:
                    each.rmdir()
        raise


def objective(folder: Path, metric: str | None) -> float | None:
    """Return a metric of a run's summary, for a sweeper that searches: by default the task's metric on validation data.

    Test data decide nothing unless they are named. None if the run has no validation metric. Raises FedpruneError if it has no
    metric of the name, and Damaged if the summary is not what was written.
    """
    metrics = digest.load_json(folder / SUMMARY)["metrics"]
    wanted = metric or f"val/{digest.load_json(folder / 'run.json')['metric']['name']}"
    if wanted in metrics:
        return float(metrics[wanted])
    if metric is not None:
        raise FedpruneError(f"objective={metric} is no metric of this run: choose one of {', '.join(sorted(metrics))}")
    return None


def _with_hydra(config: DictConfig) -> DictConfig:
    """Return a job's configuration with Hydra's own node, as `compose` has it."""
    with open_dict(config):
        config.hydra = HydraConfig.get()
    return config
