"""`python -m fedprune` in a process of its own that has all imports already: that saves four seconds a process.

It is forked from a server that does nothing else, not from the tests' own process: what threads of Ray or W&B hold there at the
moment of a fork would be held in the child for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from subprocess import TimeoutExpired

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["fedprune.__main__", "fedprune.running.run", "helpers.forked"])


class Forked:
    """What tests ask of `subprocess.Popen`, of a process with a group of its own and `folder` as its first import path.

    said: what its stdout and stderr are called there.
    """

    def __init__(self, folder: Path, *arguments: str, said: str = "std", **environment: str):
        self._said = (folder / f"{said}out.txt", folder / f"{said}err.txt")
        self._process = SERVER.Process(target=perform, args=(folder, self._said, arguments, {**os.environ, **environment}))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = 60.0) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutExpired("fedprune", timeout)
        return self.returncode

    def communicate(self, timeout: float = 60.0) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (path.read_text() if path.exists() else "" for path in self._said)
        return out, err


def perform(folder: Path, said: tuple[Path, Path], arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
    """Do, in this process, what the command does in a folder, and end it. said: the files of its stdout and stderr."""
    os.setsid()
    for descriptor, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = ["fedprune", *arguments]
    os._exit(_returncode())


def _returncode() -> int:
    from fedprune.__main__ import main

    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
