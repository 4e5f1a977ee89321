"""Writes a safetensors file piece by piece, where `safetensors.torch.save` would have it in memory as a whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fedprune.storage.spilled import Stored

Buffer = bytes | memoryview

DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"},
    **{torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.complex64: "C64"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
}
"""The format's names of types."""


class Rows(NamedTuple):
    """A uint8 tensor with rows of `length` bytes each."""

    length: int
    rows: list[bytes | Stored]


def pieces(tensors: Mapping[str, Tensor | Rows], metadata: Mapping[str, str]) -> Iterator[Buffer]:
    """Yield the file's bytes. Wide types come first, so that every tensor is aligned. A tensor may have several names."""
    order = sorted(tensors, key=lambda name: (-_width(tensors[name]), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        dtype, shape, size = _described(tensors[name])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    yield struct.pack("<Q", len(head))
    yield head
    for name in order:
        yield from _content(tensors[name])


def place(path: Path, name: str) -> tuple[list[int], int]:
    """Return (the shape of a tensor of a file, the offset of its first byte). Raises ValueError if there is no such tensor."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    if name not in header:
        raise ValueError(f"there is no {name}")
    return header[name]["shape"], 8 + length + header[name]["data_offsets"][0]


def _width(value: Tensor | Rows) -> int:
    return 1 if isinstance(value, Rows) else value.element_size()


def _described(value: Tensor | Rows) -> tuple[str, list[int], int]:
    if isinstance(value, Rows):
        return "U8", [len(value.rows), value.length], len(value.rows) * value.length
    return DTYPES[value.dtype], [*value.shape], value.numel() * value.element_size()


def _content(value: Tensor | Rows) -> Iterable[Buffer]:
    if isinstance(value, Rows):
        return (bytes(row) for row in value.rows)
    flat = value.detach().cpu().contiguous().as_strided((value.numel(),), (1,))
    return [flat.view(torch.uint8).numpy().data] if flat.numel() else []
