"""Who is told: what is in a W&B run, that it cannot end a run, metrics.csv, and lines that were torn."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedprune import tracking
from fedprune.tracking import append, keep_until, read_metrics

TINY = (
    *("rounds=3", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "executor=serial", "density=0.3", "eval_every=2", "how_often=one_shot"),
)


# --- W&B -------------------------------------------------------------------------------------------------------------------

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


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> tuple[Path, list[Any], str]:
    """The folder, the W&B records and the output of a sweep of two runs, the first of which is read."""
    from fedprune.__main__ import main

    raise NotImplementedError
