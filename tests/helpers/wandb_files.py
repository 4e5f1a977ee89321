"""The files that W&B writes offline, read without W&B."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024


FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of an offline run's file: a header, then LevelDB log blocks."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    magic, number, _version = struct.unpack("<4sHB", data[:7])
    assert (magic, number) == (b":W&B", 0xBEE1)
    place, parts = 7, []
    while place < len(data):
        if BLOCK - place % BLOCK < 7:  # no room for a header: the rest of the block is padding
            place += BLOCK - place % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", data[place : place + 7])
        chunk = data[place + 7 : place + 7 + length]
        assert checksum == zlib.crc32(bytes([kind]) + chunk)
        place += 7 + length
        parts.append(chunk)
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts.clear()
            yield record


def fields(items: Any) -> dict[str, Any]:
    """key -> value of the records' items; nested keys joined by dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def offline_runs(folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """(id, rows of rounds) of each offline run of a folder, in the order in which `wandb sync` takes them."""
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        kinds = [(record.WhichOneof("record_type"), record) for record in records(path)]
        (name,) = (record.run.run_id for kind, record in kinds if kind == "run")
        history = [fields(record.history.item) for kind, record in kinds if kind == "history"]
        found.append((name, [row for row in history if "train/loss" in row]))
    return found
