"""The command `python -m fedprune`: Hydra composes a configuration, and one run is done."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

from fedprune.command.help import ALONE, COMPLETION, help_text, version_text
from fedprune.command.words import (
    arguments,
    own_folders,
    results_folder,
    several_experiments,
    unknown_flag,
    writable,
    writes,
)
from fedprune.errors import FedpruneError

if TYPE_CHECKING:
    from omegaconf import DictConfig

SHELLS = ("install", "uninstall", "query")
"""The words that --shell-completion takes."""

FULL_ERROR = "HYDRA_FULL_ERROR"
"""The environment variable by which a user asks Hydra for whole tracebacks, with 1."""

ELSEWHERE = "start in another folder, or type hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"
"""What to type where a command cannot write its results."""

REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}
"""What a file system answers where nothing can be written."""

log = logging.getLogger(__name__)


def answer(words: list[str]) -> str | None:
    """Return the answer to a command that asks for no run, or None."""
    if not words:
        return ALONE
    if {"--help", "-h"} & set(words):
        return help_text(own_folders(words))
    if "--version" in words:
        return version_text()
    if {"--shell-completion", "-sc"} & set(words) and not any(word.partition("=")[0] in SHELLS for word in words):
        return COMPLETION
    return None


def main() -> None:
    """Run the command. Ctrl-C keeps what is done, and a state from which the same command resumes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack letters that a path or a table has
    words = arguments(sys.argv[1:])
    told = answer(words)
    if told is not None:
        print(told, end="" if told.endswith("\n") else "\n")
        return
    unknown = unknown_flag(words)
    if unknown is not None:
        print(unknown, file=sys.stderr)
        sys.exit(1)
    sys.argv[1:] = words
    several = several_experiments(sys.argv)
    if several is not None:
        print(f"{several}: each runs as one job; a grid that an experiment declares is expanded only when it is launched alone")
    outputs = results_folder(sys.argv)
    if writes(sys.argv) and not writable(outputs):
        print(f"results go to {outputs.absolute()}, which is not a folder to write to: {ELSEWHERE}", file=sys.stderr)
        sys.exit(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's "stop" ends a run as Ctrl-C does
    try:
        _launch()
    except KeyboardInterrupt:
        print("\ninterrupted; what is done is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    finally:
        from fedprune.running import dry

        dry.clean()


def _launch() -> None:
    """Let Hydra compose, and do the job or the sweep. An error that the user can mend is one message, and status 1."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import InterpolationResolutionError

    from fedprune import run_id
    from fedprune.command.advice import explained, unresolved
    from fedprune.config import CONF, schema

    schema.register()
    run_id.register()
    before = os.environ.get(FULL_ERROR, "0")
    os.environ[FULL_ERROR] = "1"  # so that Hydra hands its errors on, and they can be explained
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(_job)()
    except InterpolationResolutionError as error:  # `name`, or a reference to a key that does not exist
        print(unresolved(error) if before == "0" else traceback.format_exc(), file=sys.stderr)
        sys.exit(1)
    except HydraException as error:
        print(explained(error) if before == "0" else traceback.format_exc(), file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # Hydra makes the folders of results
        refused = error.errno in REFUSALS and error.filename and before == "0"
        print(f"{error.filename}: {error.strerror}: {ELSEWHERE}" if refused else traceback.format_exc(), file=sys.stderr)
        sys.exit(1)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        os.environ[FULL_ERROR] = before


def _job(config: DictConfig) -> float | None:
    from fedprune.api.launch import job  # importing torch and Lightning takes seconds: typos need not wait

    try:
        return job(config)
    except FedpruneError as error:  # here, because Hydra would print the overrides, too
        log.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
