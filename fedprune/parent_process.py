"""A process ends with the one that it works for, which may be killed without a chance to say so."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

OFTEN = 0.5
"""Seconds between two looks."""


def end_with(parent: int) -> None:
    """End this process, whatever it is doing, once its parent is gone."""
    when(lambda: os.getppid() != parent, lambda: os._exit(1))


def when(gone: Callable[[], bool], end: Callable[[], None]) -> None:
    """Call `end` in a thread of its own, once `gone` is true."""

    def watch() -> None:
        while not gone():
            time.sleep(OFTEN)
        end()

    threading.Thread(target=watch, daemon=True, name="watches the parent").start()


def lives(pid: int) -> bool:
    """Return whether a process of this machine lives; True if that cannot be known. One that has ended and of which nobody has
    taken note yet does not."""
    if os.name != "posix":  # where os.kill ends processes
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is somebody else's
        return True
    return not _is_dead(pid)


def began(pid: int) -> str:
    """Return what tells a process from a later one of the same number: when it began; "" if that cannot be known."""
    return (_status(pid) or [""] * 20)[19]


def _is_dead(pid: int) -> bool:
    return (_status(pid) or [""])[0] in ("Z", "X")


def _status(pid: int) -> list[str]:
    """Return what Linux says of a process, from its state on; [] elsewhere."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
