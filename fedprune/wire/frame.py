"""Frames: a header and blocks <-> a message, which is bytes, in one piece or in several that are the message end to end.

    magic, checksum | length, header as JSON | length, block | length, block | ...

A piece ends after a block, or between the length of a block and the block: a long block is a piece of its own, so that it is
not copied, and can be the same in many messages.
"""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedprune.types import Json
from fedprune.wire.header import parsed

MAGIC = b"FP01"
FRAME = struct.Struct("<4sI")  # magic, checksum
LENGTH = struct.Struct("<I")
ROW = 2**13  # bytes; what has two rows or more is long
PARTS = 64  # of a message, at most: a header, a network, a control, and a block for each piece of evidence

Piece = bytes | bytearray | memoryview | Any
"""Bytes, or an array of them: np.ndarray of type uint8, of which type checkers do not know that it has a buffer."""

Message = Piece | tuple[Piece, ...]


def framed(header: Mapping[str, object], blocks: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return the message. Its long pieces are arrays."""
    parts = [json.dumps(header, separators=(",", ":")).encode(), *blocks]
    pieces = itertools.chain.from_iterable((LENGTH.pack(len(part)), part) for part in parts)
    return tuple(_joined(itertools.chain((FRAME.pack(MAGIC, checksum(parts)),), pieces)))


def unframed(message: Message) -> tuple[Json, list[memoryview]]:
    """Return the header and the blocks of a message. Raises ValueError and struct.error for other bytes."""
    pieces = [memoryview(piece) for piece in (message if isinstance(message, tuple) else (message,))]
    if not pieces or len(pieces[0]) < FRAME.size:
        raise ValueError("a message shorter than its frame")
    magic, expected = FRAME.unpack_from(pieces[0])
    parts = list(itertools.islice(_parts([pieces[0][FRAME.size :], *pieces[1:]]), PARTS + 1))
    if not 1 <= len(parts) <= PARTS:
        raise ValueError(f"a message of {'no' if not parts else f'more than {PARTS}'} parts")
    if magic != MAGIC or checksum(parts) != expected:
        raise ValueError("a damaged message")
    return parsed(bytes(parts[0])), parts[1:]


def length(message: Message) -> int:
    """Return the length of a message in bytes."""
    return sum(map(len, message)) if isinstance(message, tuple) else len(message)


def array(piece: Piece) -> np.ndarray:
    """Return the same bytes, not copied, as an array, which can cross to another process without being copied."""
    return np.frombuffer(piece, np.uint8)


def checksum(parts: Iterable[Piece]) -> int:
    """Return the crc32 of these parts, each preceded by its length.

    Of a long part it is that of the sums of its rows and columns (as words of 64 bits) and of the bytes after the last row.
    That takes a fifth of the time; damage that it misses has to keep all of these sums.
    """
    crc = 0
    for part in parts:
        crc = zlib.crc32(LENGTH.pack(len(part)), crc)
        whole = len(part) - len(part) % ROW
        if whole > ROW:
            rows = np.frombuffer(part, np.uint64, whole // 8).reshape(-1, ROW // 8)
            for sums in (rows.sum(0, dtype=np.uint64), rows.sum(1, dtype=np.uint64)):
                crc = zlib.crc32(sums, crc)
            part = memoryview(part)[whole:]
        crc = zlib.crc32(part, crc)
    return crc


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the same bytes in fewer pieces: short ones in a row become one."""
    for long, some in itertools.groupby(pieces, key=lambda piece: len(piece) >= 2 * ROW):
        if long:
            yield from map(array, some)
        else:
            yield b"".join(some)


def _parts(pieces: Iterable[memoryview]) -> Iterator[memoryview]:
    """Yield the parts, by the lengths before them. Raises ValueError if the pieces do not end with a part."""
    due: int | None = None
    for piece in pieces:
        offset = 0
        while due is not None or offset < len(piece):
            if due is None:
                (due,), offset = LENGTH.unpack_from(piece, offset), offset + LENGTH.size
            if due and offset == len(piece):
                break
            if offset + due > len(piece):
                raise ValueError("a damaged message: it ends within a part")
            yield piece[offset : offset + due]
            offset, due = offset + due, None
    if due is not None:
        raise ValueError("a damaged message: it ends before a part")
