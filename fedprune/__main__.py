"""The command `python -m fedprune`: Hydra composes a configuration, and one run is done."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from fedprune import run_id
from fedprune.command_line import arguments, several_experiments, writable, writes
from fedprune.config import CONF, schema
from fedprune.errors import ConfigError, FedpruneError
from fedprune.running import dry, sweep

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> None:
    """Do one job, alone or of a sweep. In a sweep a job that fails leaves its reason, and the others go on."""
    from fedprune.running import run  # importing torch and Lightning takes seconds: --help and typos need not wait

    hydra_config = HydraConfig.get()
    folder, names = Path(hydra_config.runtime.output_dir), hydra_config.runtime.choices
    alone = hydra_config.mode is RunMode.RUN
    if not config.dry_run:
        sweep.enroll(folder)
    about_sweep = _taken(config, "home")
    try:
        if about_sweep is not None and alone:
            raise ConfigError(["this experiment is a sweep over several runs, which its section home compares: add -m"])
        chosen = {group: names[group] for group in run_id.GROUPS}
        run.run(config, folder, chosen, hydra_config.overrides.task, os.environ.get(sweep.SWEEP, config.name))
    except FedpruneError as error:
        if not config.dry_run:
            run.fail(folder, error, str(error))
        log.error("%s", error if alone else f"{folder.name}: {error}")
        if alone:
            sys.exit(1)
    except Exception as error:
        if config.dry_run:
            raise  # a dry run writes nothing, so it leaves no reason in a folder either
        _write_traceback(folder)
        run.fail(folder, error, f"{type(error).__name__}: {error}")
        if alone:
            raise
        log.error("%s\nunexpected %s: %s (see error.log there)", folder.name, type(error).__name__, error)


def _taken(config: DictConfig, key: str) -> object:
    """Return the value of a key that is about the sweep, and remove it: no run is described by it."""
    with open_dict(config):
        return config.pop(key)


def _write_traceback(folder: Path) -> None:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.log").write_text(traceback.format_exc())


def main() -> None:
    """Run the command. Ctrl-C keeps what is done, and a state from which the same command resumes."""
    sys.argv[1:] = arguments(sys.argv[1:])
    several = several_experiments(sys.argv)
    if several is not None:
        print(f"{several}: each runs as one job; a grid that an experiment declares is expanded only when it is launched alone")
    outputs = Path("outputs")
    if writes(sys.argv) and not writable(outputs):
        print(f"results go to {outputs.absolute()}, which is not a folder to write to: start elsewhere", file=sys.stderr)
        sys.exit(1)
    schema.register()
    run_id.register()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's "stop" ends a run as Ctrl-C does
    try:
        job()
    except KeyboardInterrupt:
        print("\ninterrupted; what is done is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    finally:
        dry.clean()


if __name__ == "__main__":
    main()
