"""`python -m fedprune`: compose -> build -> run."""

from __future__ import annotations

import json
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
from omegaconf import DictConfig

from fedprune import run_id
from fedprune.config import schema
from fedprune.errors import FedpruneError
from fedprune.run import sweep

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
"""Inside the package in an installed wheel, beside it in a checkout."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(config: DictConfig) -> None:
    """One job, alone or of a sweep. In a sweep a job that fails leaves its reason, and the others go on."""
    from fedprune.run import run  # torch and Lightning take seconds: --help and typos need not wait for them

    hydra_config = HydraConfig.get()
    folder, names = Path(hydra_config.runtime.output_dir), hydra_config.runtime.choices
    alone = hydra_config.mode is RunMode.RUN
    sweep.enroll(folder)
    try:
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
            raise  # what writes nothing leaves no reason in a folder either
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.log").write_text(traceback.format_exc())
        run.fail(folder, error, f"{type(error).__name__}: {error}")
        if alone:
            raise
        log.error("%s\nunexpected %s: %s (see error.log there)", folder.name, type(error).__name__, error)


def arguments(given: list[str]) -> list[str]:
    """Flags first, for Hydra's parser refuses overrides after a flag, and users append `-m`; and paths in quotes."""
    with_value = {
        "--config-path",
        "-cp",
        "--config-name",
        "-cn",
        "--config-dir",
        "-cd",
        "--info",
        "-i",
        "--package",
        "-p",
        "--cfg",
        "-c",
    }
    flags, overrides, rest = [], [], iter(given)
    for word in rest:
        if word.startswith("-") and not word.startswith("-="):
            flags.append(word)
            if word in with_value:
                flags += [value for value in [next(rest, None)] if value is not None]
        else:
            overrides.append(_quoted(word))
    return flags + overrides


ASKING = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"}
"""Flags of commands that answer and write nothing."""


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and folder.is_dir() if folder.exists() else os.access(folder.absolute().parent, os.W_OK)


def _quoted(word: str) -> str:
    """`ticket=FILE`, or several for a sweep, as `ticket.path` and in quotes: run folders have = and , in their names."""
    key, _, value = word.partition("=")
    if key not in ("ticket", "ticket.path") or value.startswith("{"):
        return word
    key = "ticket.path"
    files = [value] if Path(value).exists() else value.split(",")
    return f"{key}={','.join(map(json.dumps, files))}" if all(Path(file).exists() for file in files) else f"{key}={value}"


def main() -> None:
    """The command. Ctrl-C leaves what is done, and a state from which the same command resumes."""
    sys.argv[1:] = arguments(sys.argv[1:])
    several = [word for word in sys.argv if word.startswith("+experiment=") and "," in word]
    if several:
        print(
            f"{several[0]}: each runs as one job; a grid that an experiment declares is expanded only when it is launched alone"
        )
    if not ASKING & set(sys.argv) and not _writable(Path("outputs")):
        print(
            f"results go to {Path('outputs').absolute()}, which is not a folder to write to: start elsewhere", file=sys.stderr
        )
        sys.exit(1)
    schema.register()
    run_id.register()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's "stop" is as good as Ctrl-C
    try:
        job()
    except KeyboardInterrupt:
        print("\ninterrupted; what is done is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
