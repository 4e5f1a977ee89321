"""Images from anybody: what another program would run, bombs and crafted files are unreadable, with a reason."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fedprune.data import pixels
from fedprune.errors import DataError


def test_a_file_for_another_program_is_no_image_whatever_its_name(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(touch) run\n")
    with pytest.raises(pixels.Unreadable, match="cannot identify image file"):
        pixels.pixels([path], None, None)


def png(width: int, height: int) -> bytes:
    """A PNG that claims this size, and has a few bytes of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_a_bomb_is_unreadable(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(100_000, 100_000))
    with pytest.raises(pixels.Unreadable, match="decompression bomb"):
        pixels.pixels([path], None, None)


def test_images_beyond_memory_are_told_with_what_to_type(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("L", (4, 4)).save(path)

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(DataError, match=r"data\.size=\[32,32\]"):
        pixels.pixels([path] * 2, None, None)


def test_a_table_of_endless_columns_is_refused_by_its_first_line(tmp_path):
    from fedprune.data.own import table

    path = tmp_path / "a.csv"
    path.write_text("a," * 200_000 + "b\n1\n")
    with pytest.raises(DataError, match="more than 100000 columns"):
        table.read(str(path), "data.path")
