"""The digest in a file that is read back: xxh3_128, of all bytes of a safetensors file, and of the values in a JSON file.

Damage is told by it, and not malice: who changes a file on purpose can write its digest anew. It runs at the speed of memory
(8 ms for 100 MB, where crc32 takes 26 and sha256 95 with the processor's help). A file without one is of before, and is read
as it is.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from xxhash import xxh3_128, xxh3_128_hexdigest

from fedprune.errors import Damaged

if TYPE_CHECKING:  # importing torch takes a second, and results are looked into without it
    from fedprune.storage.safetensors_writer import Buffer
    from fedprune.types import Json

KEY = "digest"
"""The key of the digest in a file's metadata, and in a JSON object."""

BLANK = b"0" * 32
"""The place of the digest while it is computed."""

SEALED = {KEY: f"xxh3_128:{BLANK.decode()}"}
"""The metadata with which a safetensors file is begun."""

PLACE = re.compile(rb'"digest": ?"xxh3_128:([^"]{32})"')
"""The digest as metadata have it. Nothing else in a header looks like it, since quotes inside of strings are escaped."""

CHUNK = 1 << 20
"""Bytes that are read at once."""

CHANGED = "its content is not what was written"


def write(file: IO[bytes], pieces: Iterator[Buffer]) -> None:
    """Write a safetensors file whose metadata have SEALED, and put the digest in its place. pieces: see safetensors_writer."""
    start = bytes(next(pieces)) + bytes(next(pieces))
    digest = xxh3_128(start)
    file.write(start)
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
    place = PLACE.search(start)
    assert place, "pieces without SEALED"
    file.seek(place.start(1))
    file.write(digest.hexdigest().encode())


def check(path: Path) -> None:
    """Raise ValueError if a safetensors file has a digest, and it is not that of its content. Raises OSError."""
    with open(path, "rb") as file:
        start = file.read(8)
        start += file.read(min(struct.unpack("<Q", start)[0], path.stat().st_size)) if len(start) == 8 else b""
        place = PLACE.search(start)
        if place is None:
            return
        digest = xxh3_128(start[: place.start(1)] + BLANK + start[place.end(1) :])
        buffer = bytearray(CHUNK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):  # not mapped: what the disk cannot give is an OSError, and no signal
            digest.update(view[:count])
    if digest.hexdigest().encode() != place[1]:
        raise ValueError(CHANGED)


def of_bytes(content: Buffer) -> str:
    """Return the digest of some bytes, as files have it."""
    return f"xxh3_128:{xxh3_128_hexdigest(content)}"


def to_json(content: Mapping[str, object]) -> str:
    """Return an object as the text of a JSON file, with a digest of its values as the last key."""
    return json.dumps({**content, KEY: _of_values(content)}, indent=2) + "\n"


def load_json(path: Path) -> Json:
    """Return the object in a JSON file. Raises Damaged if it cannot be read, or is not what was written."""
    try:
        return from_json(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(path, error) from error


def from_json(content: bytes) -> Json:
    """Return the object in a JSON file. Raises ValueError if it is none, or has a digest that is not that of its values."""
    values = json.loads(content.decode())
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}")
    written = values.pop(KEY, None)
    if written is not None and written != _of_values(values):
        raise ValueError(f"{CHANGED}; if you have changed it, remove its last key, {KEY}")
    return values


def _of_values(content: Mapping[str, object]) -> str:
    return of_bytes(json.dumps(content).encode())
