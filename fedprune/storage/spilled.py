"""Masks of many clients in a file instead of in memory, each read when it is used.

A file is only appended to, and its content never changes, so that a State of ten rounds ago still finds its masks. Files have
no name: the system removes them with the last value that refers to them, however the process ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from fedprune.types import Personal


class Stored:
    """Stands for `length` bytes from `offset` of a file that is open for reading, and equals them."""

    __slots__ = ("file", "length", "offset")

    def __init__(self, file: IO[bytes], offset: int, length: int):
        self.file, self.offset, self.length = file, offset, length

    def __bytes__(self) -> bytes:
        return os.pread(self.file.fileno(), self.length, self.offset)

    def __len__(self) -> int:
        return self.length

    def __eq__(self, other: object) -> bool:
        return bytes(self) == bytes(other) if isinstance(other, bytes | Stored) else NotImplemented

    def __hash__(self) -> int:
        return hash(bytes(self))


def beyond(personal: Mapping[int, Personal], most: float, folder: Path) -> Mapping[int, Personal]:
    """Return the same clients, with all masks in a file in `folder` if those in memory take more than `most` bytes.

    They go after those that are in a file already. If more than half of that file is of no use any more, all go to a new one.
    """
    masks = [each.mask for each in personal.values()]
    if sum(len(mask) for mask in masks if isinstance(mask, bytes)) <= most:
        return personal
    file = _file(masks, folder)
    in_file = {
        client: each if _lies_in(each.mask, file) else replace(each, mask=_appended(each.mask, file))
        for client, each in personal.items()
    }
    file.flush()
    return in_file


def _file(masks: list[bytes | Stored], folder: Path) -> IO[bytes]:
    """Return the file to append to: the last one that some of these masks are in, unless it would be more than half waste."""
    files = [mask.file for mask in masks if isinstance(mask, Stored) and mask.file.writable()]
    size = sum(len(mask) for mask in masks)
    return files[-1] if files and files[-1].seek(0, os.SEEK_END) <= size else _nameless(folder)


def _lies_in(mask: bytes | Stored, file: IO[bytes]) -> bool:
    return isinstance(mask, Stored) and mask.file is file


def _appended(mask: bytes | Stored, file: IO[bytes]) -> Stored:
    offset = file.seek(0, os.SEEK_END)
    return Stored(file, offset, file.write(bytes(mask)))


def _nameless(folder: Path) -> IO[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)
