"""A data set that was read before is there at once, and is what its files say."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedprune.data import cache
from fedprune.data.datasets import Dataset, fashion_mnist
from fedprune.data.sources import FASHION_MNIST


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place(tmp_path / "data", shade=3)
    return tmp_path / "data"


def place(folder: Path, shade: int) -> None:
    """Twenty images of one shade, and ten to test on."""
    folder.mkdir(exist_ok=True)
    for file, number in zip(FASHION_MNIST.files, (20, 20, 10, 10), strict=True):
        images = "images" in file.unpacked
        array = torch.full((number, 28, 28), shade) if images else torch.arange(number) % 10
        header = struct.pack(f">BBBB{array.dim()}I", 0, 0, 8, array.dim(), *array.shape)
        (folder / file.unpacked).write_bytes(header + array.to(torch.uint8).numpy().tobytes())


def kept() -> list[Path]:
    return sorted(cache.home().iterdir()) if cache.home().exists() else []


def same(first: Dataset, second: Dataset) -> bool:
    pairs = [(value, getattr(second, name)) for name, value in vars(first).items()]
    return all(torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b for a, b in pairs)


def test_what_is_read_the_second_time_is_what_was_read_the_first_time(root):
    first = fashion_mnist(str(root))
    (path,) = kept()
    written = path.stat().st_mtime_ns
    second = fashion_mnist(str(root))
    assert same(first, second) and type(second) is Dataset
    assert path.stat().st_mtime_ns == written
    second.x[0] = 99  # a copy on write: nobody else sees it
    assert same(first, fashion_mnist(str(root)))


def test_files_that_have_changed_are_read_anew(root):
    assert int(fashion_mnist(str(root)).x.max()) == 3
    place(root, shade=7)
    for file in root.iterdir():
        os.utime(file, ns=(1, 1))  # whatever the clock's resolution: another time than before
    assert int(fashion_mnist(str(root)).x.max()) == 7


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"no tensors at all"])
def test_a_damaged_cache_does_no_harm(root, content):
    first = fashion_mnist(str(root))
    (path,) = kept()
    path.write_bytes(content)
    assert same(first, fashion_mnist(str(root)))
    assert same(first, fashion_mnist(str(root)))  # and it is whole again


def test_a_flipped_bit_and_a_file_under_another_name_are_told_and_mended(root, caplog):
    first = fashion_mnist(str(root))
    (path,) = kept()
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert same(first, fashion_mnist(str(root)))
    assert f"{path} is damaged (its content is not what was written)" in caplog.text
    caplog.clear()
    place(root, shade=9)
    fashion_mnist(str(root))
    (other,) = {*kept()} - {path}
    path.write_bytes(other.read_bytes())
    cache._read(other, Dataset)
    with pytest.raises(ValueError, match="under another name"):
        cache._read(path, Dataset)


def test_nor_does_a_place_that_cannot_be_written_to(root, monkeypatch):
    Path(os.environ["XDG_CACHE_HOME"]).write_text("a file where a folder should be")
    assert len(fashion_mnist(str(root)).x) == 20
