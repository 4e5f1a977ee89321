"""The content of files as a digest: what they hold counts, and neither where they are nor when they were touched."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from fedprune.identity import files
from fedprune.identity.files import content, file_digest

LONG_AGO = 1_000_000_000_000_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "SETTLED_NS", -1)
    return tmp_path / "cache" / "fedprune" / "digests.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "pictures"
    for name in ("cats/1", "cats/2", "dogs/1"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(name)
    return made


def test_a_file_counts_by_what_is_in_it_and_not_by_its_name(tmp_path):
    (tmp_path / "a").write_bytes(b"ticket")
    (tmp_path / "b").write_bytes(b"ticket")
    assert content([tmp_path / "a"]) == content([tmp_path / "b"]) == hashlib.sha256(b"ticket").hexdigest()[:16]
    assert file_digest(tmp_path / "a", "md5") == hashlib.md5(b"ticket").hexdigest()


def test_a_folder_counts_by_its_files_and_their_names_in_it(folder, tmp_path):
    before = content([folder])
    assert content([shutil.copytree(folder, tmp_path / "elsewhere")]) == before
    os.utime(folder / "cats/1", ns=(LONG_AGO, LONG_AGO))
    (folder / ".hidden").write_text("anything")
    assert content([folder]) == before
    (folder / "cats/1").rename(folder / "dogs/2")
    assert content([folder]) != before
    (folder / "dogs/2").rename(folder / "cats/1")
    assert content([folder]) == before
    (folder / "cats/1").write_text("cats/X")
    assert content([folder]) != before


def test_files_that_have_not_changed_are_not_read_again(folder, cache, monkeypatch):
    before = content([folder])
    assert cache.exists()
    monkeypatch.setattr(files, "_digest_of", lambda path, algorithm: pytest.fail(f"{path} was read again"))
    assert content([folder]) == before
    (folder / "cats/1").write_text("cats/X")
    with pytest.raises(pytest.fail.Exception, match="was read again"):
        content([folder])


def test_what_has_changed_just_now_is_not_remembered(folder, cache, monkeypatch):
    monkeypatch.setattr(files, "SETTLED_NS", 2_000_000_000)
    content([folder])
    assert not cache.exists()


@pytest.mark.parametrize("damaged", ["", "[]", "{", '{"a": 1}'])
def test_a_cache_that_cannot_be_read_or_written_does_no_harm(damaged, folder, cache, monkeypatch):
    before = content([folder])
    cache.write_text(damaged)
    assert content([folder]) == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cats/1"))  # a file where a folder should be
    assert content([folder]) == before


def test_the_latest_are_remembered(folder, monkeypatch, cache):
    monkeypatch.setattr(files, "REMEMBERED", 2)
    for name in ("cats/1", "cats/2", "dogs/1"):
        content([folder / name])
    assert len(files._read()) == 2


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OSError, match="missing"):
        content([tmp_path / "missing"])
