"""A sweep comes back, at its end, to the jobs that another process was doing when their turn came.

So two terminals with the same sweep share it: each does what the other one is not doing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig

from fedprune.running.display import console
from fedprune.running.earlier import FAILED
from fedprune.running.lock import holder_of
from fedprune.running.members import take_passed_over
from fedprune.storage.history import SUMMARY

OFTEN = 0.5
"""Seconds between two looks at who is still at it."""


def come_back(config: DictConfig, sweep: str, seconds: float | None) -> list[Path]:
    """Wait until each job that was passed over has a result, and do those that the other process leaves without one.

    config: that of the sweep. seconds: how long to wait; None: as long as it takes. Returns the folders of the runs that others
    are still doing.
    """
    folder = Path(config.hydra.sweep.dir)
    waiting, begun, told = take_passed_over(folder, sweep), time.monotonic(), False
    while waiting := {run: overrides for run, overrides in waiting.items() if not _has_ended(run)}:
        free = [run for run in waiting if holder_of(run) is None]
        if free:
            _launch(config, [waiting.pop(run) for run in free])
            waiting |= take_passed_over(folder, sweep)
            continue
        if seconds is not None and time.monotonic() - begun >= seconds:
            break
        if not told:
            console.print("waiting for another process:" + "".join(f"\n  {run}: {holder_of(run)}" for run in waiting))
            told = True
        time.sleep(OFTEN)
    return list(waiting)


def tell(left: Sequence[Path]) -> None:
    """Say which runs others are still doing."""
    listed = "".join(f"\n  {run}: {holder_of(run) or 'another process'}" for run in left)
    print(f"runs that another process is doing: the same command later has them in its table{listed}", file=sys.stderr)


def _has_ended(run: Path) -> bool:
    """Return whether the other process is through with a run: done, failed or skipped."""
    return (run / SUMMARY).exists() or ((run / FAILED).exists() and holder_of(run) is None)


def _launch(config: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
    """Do jobs with the sweep's own launcher. jobs: the overrides of each."""
    from fedprune.api.launch import job  # here, since it stands above this room

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None, "a sweep is going on"
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=config)
    for done in launcher.launch(jobs, initial_job_idx=0):
        _ = done.return_value  # raises what the job has raised
