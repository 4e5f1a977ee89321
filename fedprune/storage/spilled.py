"""Bytes that lie in a file until somebody asks for them: masks of many clients, beyond what memory is meant to hold.

A file is only ever appended to and what is in it never changes, so a State of ten rounds ago still finds its own. Files have no
name: they are gone with the last value that lies in them, however the process ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedprune.types import Personal


class Stored:
    """`length` bytes from `offset` of a file that is open for reading. Equal to what it holds."""

    __slots__ = ("file", "length", "offset")

    def __init__(self, file: IO[bytes], offset: int, length: int):
        self.file, self.offset, self.length = file, offset, length

    def __bytes__(self) -> bytes:
        return os.pread(self.file.fileno(), self.length, self.offset)

    def __len__(self) -> int:
        return self.length

    def __eq__(self, other: Any) -> bool:
        return bytes(self) == bytes(other) if isinstance(other, bytes | Stored) else NotImplemented

    def __hash__(self) -> int:
        return hash(bytes(self))


def beyond(personal: Mapping[int, Personal], most: float, folder: Path) -> Mapping[int, Personal]:
    """The same, with all masks in a file in `folder` if those in memory take more than `most` bytes.

    They go after those that lie there already; if more than half of that file is of no use any more, all go to a new one.
    """
    if sum(len(own.mask) for own in personal.values() if isinstance(own.mask, bytes)) <= most:
        return personal
    files = [own.mask.file for own in personal.values() if isinstance(own.mask, Stored) and own.mask.file.writable()]
    live = sum(len(own.mask) for own in personal.values())
    file = files[-1] if files and files[-1].seek(0, os.SEEK_END) <= live else _nameless(folder)
    moved = {c: replace(own, mask=_appended(own.mask, file)) for c, own in personal.items() if not _lies_in(own.mask, file)}
    file.flush()
    return {client: moved.get(client, own) for client, own in personal.items()}


def _lies_in(mask: bytes | Stored, file: IO[bytes]) -> bool:
    return isinstance(mask, Stored) and mask.file is file


def _appended(mask: bytes | Stored, file: IO[bytes]) -> Stored:
    offset = file.seek(0, os.SEEK_END)
    return Stored(file, offset, file.write(bytes(mask)))


def _nameless(folder: Path) -> IO[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)
