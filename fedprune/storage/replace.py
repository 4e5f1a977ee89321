"""A file that is written in one step: a reader, or a kill in the middle, meets the old one or the new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from fedprune.errors import RunError

REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make its folder writable"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
}
"""What a user does about the errors of a disk."""


def replace_by(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file in one step: complete and on the disk, or not at all. write: writes to a file that is open. Raises RunError
    if the disk refuses."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        what_to_do = f"{remedy(error)}, and the same command resumes"
        raise RunError(f"cannot write {path}: {error.strerror}. What was saved before is intact: {what_to_do}") from error


def remedy(error: OSError) -> str:
    """Return what a user does about an error of a disk."""
    return REMEDIES.get(error.errno or 0, "mend it")
