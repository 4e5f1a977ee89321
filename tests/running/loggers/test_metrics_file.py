"""A line of metrics.jsonl that the disk refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fedprune.errors import RunError
from fedprune.running.lock import held
from fedprune.running.loggers import append, metrics_file


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left on device. Make room, and the same command resumes"),
        (errno.EROFS, "Read-only file system. Make its folder writable, and the same command resumes"),
        (errno.EMFILE, "Too many open files. Allow more open files (ulimit -n), and the same command resumes"),
    ],
)
def test_the_remedy_is_that_of_the_error(number: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(metrics_file, "open", refuse, raising=False)
    with pytest.raises(RunError, match=r"metrics\.jsonl") as error:
        append(tmp_path, {"round": 0})
    assert str(error.value).endswith(says)


def test_so_it_is_of_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(RunError, match=r"No space left on device\. Type another hydra\.run\.dir, or make room$"):
        held(tmp_path / "run", 0).__enter__()
