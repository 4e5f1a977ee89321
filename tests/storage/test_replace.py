"""What is said where a disk refuses."""

from __future__ import annotations

import errno
import os

import pytest

from fedprune.errors import RunError
from fedprune.storage.replace import replace_by


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left on device. What was saved before is intact: make room, and"),
        (errno.EDQUOT, "make room, and the same command resumes"),
        (errno.EROFS, "Read-only file system. What was saved before is intact: make its folder writable, and"),
        (errno.EACCES, "make its folder writable"),
        (errno.EMFILE, "allow more open files (ulimit -n)"),
        (errno.EIO, "Input/output error. What was saved before is intact: mend it, and the same command resumes"),
    ],
)
def test_the_remedy_is_that_of_the_error_and_the_old_file_stays(number, says, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(file):
        file.write(b"ne")
        raise OSError(number, os.strerror(number))

    with pytest.raises(RunError) as error:
        replace_by(path, refuse)
    assert says in str(error.value) and str(path) in str(error.value)
    assert path.read_bytes() == b"old" and [each.name for each in tmp_path.iterdir()] == ["file"]
