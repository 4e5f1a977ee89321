"""A file that is not what was written is told by its digest, whatever has changed in it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from xxhash import xxh3_128_hexdigest

from fedprune.storage import digest
from fedprune.storage.checkpoint import write_tensors

TENSORS = {"a": torch.arange(3000.0).view(3, 1000).t(), "b": torch.tensor([True, False, True])}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(TENSORS, {"name": 'x", "digest": "xxh3_128:' + 32 * "1"}, tmp_path / "file.safetensors")
    return tmp_path / "file.safetensors"


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(path):
    content = path.read_bytes()
    place = digest.PLACE.search(content)
    blank = content[: place.start(1)] + b"0" * 32 + content[place.end(1) :]
    assert place[1].decode() == xxh3_128_hexdigest(blank)
    digest.check(path)
    assert torch.equal(load_file(path)["a"], TENSORS["a"])  # and safetensors reads it


def test_each_of_many_flipped_bits_is_told_or_is_in_the_words_around_the_digest(path):
    content, rng = path.read_bytes(), random.Random(0)
    place = digest.PLACE.search(content)
    for _ in range(300):
        changed, at = bytearray(content), rng.randrange(len(content))
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        around = place.start() <= at < place.start(1) or at == place.end() - 1 or changed[at] == ord('"')
        if around or at < 8:
            continue  # it is no digest any more, and all else is whole; or safetensors itself refuses
        with pytest.raises(ValueError, match="not what was written"):
            digest.check(path)


@pytest.mark.parametrize("length", [0, 5, 100, 9000])
def test_what_is_cut_is_told_here_or_by_safetensors(length, path):
    path.write_bytes(path.read_bytes()[:length])

    def load() -> None:
        digest.check(path)
        load_file(path)

    with pytest.raises((ValueError, SafetensorError)):
        load()


def test_a_file_of_before_has_no_digest_and_is_accepted(path):
    save_file({"a": torch.ones(3)}, path)
    digest.check(path)
