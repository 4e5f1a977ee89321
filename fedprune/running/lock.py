"""One run, one writer: the lock on a run's folder, and who holds it.

The lock is `.lock` in the folder, one of the system's (flock), so that it goes with the process that has it, however that ends;
forked workers let go of it. Over NFS the server keeps it for all machines. On a file system without such locks a file that
names its maker stands for one: it is taken over once that process is gone, if it was one of this machine. `running.json` beside
it says who writes; without the lock it is what a killed process has left.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedprune.errors import ConfigError, RunError
from fedprune.parent_process import lives
from fedprune.running.display import console
from fedprune.storage.replace import remedy

if TYPE_CHECKING:  # imported where a lock is taken: importing it takes 10 ms, and most results are only looked into
    from filelock import BaseFileLock

LOCK, SUBSTITUTE, HOLDER = ".lock", ".lock.made", "running.json"

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What file systems without locks answer, such as Lustre without -o flock, and NFS whose server has no lockd."""

MOMENT, REQUEUED = 5.0, 60.0
"""Seconds that a run waits under wait=auto: for a process that is ending, and for one that Slurm is ending to start it anew."""

GLANCE = 0.1
"""Seconds of a try that does not wait: whoever asks whether the lock is held has it for less."""

OFTEN = 0.05
"""Seconds between two tries."""


@dataclass(frozen=True)
class Holder:
    """The process that writes to a folder. since: the local time when it began."""

    host: str
    pid: int
    since: str

    @property
    def is_here(self) -> bool:
        """Return whether it is this process."""
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        if self.is_here:
            return f"another thread of this process ({self.pid}), since {self.since}"
        return f"process {self.pid} on {self.host}, since {self.since}"


class Held(RunError):
    """Another one writes to the folder."""

    def __init__(self, folder: Path, holder: Holder | None):
        self.holder = holder
        super().__init__(
            f"{folder} is being written by {holder or 'another process'}: type wait=null to wait until it ends, or look at "
            "what is there with fedprune.load"
        )


def patience(wait: float | str | None, auto: float | None) -> float | None:
    """Return for how many seconds to wait; None: as long as it takes. auto: what wait=auto stands for. Raises ConfigError."""
    if wait == "auto":
        return auto
    if wait is None or (not isinstance(wait, str | bool) and wait >= 0):
        return wait
    raise ConfigError([f"wait={wait} must be auto, a number of seconds (0: do not wait), or null (as long as it takes)"])


def moment() -> float:
    """Return what wait=auto stands for where a run is alone."""
    return REQUEUED if os.environ.get("SLURM_RESTART_COUNT", "0") != "0" else MOMENT


@contextmanager
def held(folder: Path, seconds: float | None) -> Iterator[None]:
    """Hold a folder's lock in the context, and say so in running.json. seconds: how long to wait for another one; None: as long
    as it takes. Raises Held if that was too short, and RunError if the folder cannot be written to."""
    lock = _taken(folder, LOCK, GLANCE)
    if lock is None and seconds != 0:
        console.print(f"waiting: {folder} is being written by {_noted(folder) or 'another process'}")
        lock = _taken(folder, LOCK, -1 if seconds is None else seconds)
    if lock is None:
        raise Held(folder, _noted(folder))
    _note(folder / HOLDER)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until nobody else is in this context of this folder, in any process. For what takes seconds."""
    lock = _taken(folder, LOCK, -1)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def holder_of(folder: Path) -> Holder | None:
    """Return who writes to a folder at this moment; None if nobody does, or it cannot be known."""
    noted = _noted(folder)
    if noted is None:
        return None
    if (folder / SUBSTITUTE).exists():
        return noted if noted.host != socket.gethostname() or lives(noted.pid) else None
    return noted if _is_locked(folder / LOCK) else None


def is_held_by_another(folder: Path) -> bool:
    """Return whether another process writes to a folder at this moment."""
    holder = holder_of(folder)
    return holder is not None and not holder.is_here


def _taken(folder: Path, name: str, seconds: float) -> BaseFileLock | None:
    """Return the lock, taken; None if another one had it all the time. seconds: less than 0 for as long as it takes."""
    from filelock import FileLock, SoftFileLock, Timeout

    kind = FileLock if name == LOCK else SoftFileLock
    lock: BaseFileLock = kind(folder / name, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds, poll_interval=OFTEN)
    except Timeout:
        return None
    except OSError as error:
        if error.errno in NO_LOCKS and name == LOCK:
            return _taken(folder, SUBSTITUTE, seconds)
        why = f"cannot write {folder / name}: {error.strerror}"
        raise RunError(f"{why}. Type another hydra.run.dir, or {remedy(error)}") from error
    return lock


def _is_locked(path: Path) -> bool:
    """Return whether somebody has the lock of this file, without waiting for it. False if that cannot be known."""
    from filelock import lock_descriptor, unlock_descriptor

    for mode in (os.O_RDWR, os.O_RDONLY):  # NFS wants the first, and who may only read has the second
        with suppress(OSError), _open(path, mode) as descriptor:
            if not lock_descriptor(descriptor, blocking=False):
                return True
            unlock_descriptor(descriptor)
            return False
    return False


@contextmanager
def _open(path: Path, mode: int) -> Iterator[int]:
    descriptor = os.open(path, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _note(path: Path) -> None:
    """Write down who this is. No disk is waited for: after a power cut nobody holds anything."""
    ours = Holder(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"))
    partial = path.with_name(f"{path.name}.partial")
    with suppress(OSError):  # on a full disk the run itself says so
        partial.write_text(json.dumps(asdict(ours)) + "\n", encoding="utf-8")
        os.replace(partial, path)


def _noted(folder: Path) -> Holder | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        noted = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return Holder(str(noted["host"]), int(noted["pid"]), str(noted["since"]))
    return None
