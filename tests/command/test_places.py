"""Where results go: folders that cannot be written to, names that are none, letters beyond ASCII, a machine without a home."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

import fedprune
from fedprune.command.words import arguments, results_folder, writable, writes
from fedprune.errors import ConfigError
from fedprune.identity import files


@pytest.mark.parametrize("name", ["..", ".", "../../x", "/tmp/x", "", "a//b", "n" * 300, "ü" * 150, "a\x1b[2Jb", " "])
def test_a_name_is_that_of_a_folder_below_outputs(name):
    with pytest.raises(
        ConfigError, match=r"^name='.* is not the name of a folder below outputs/ .*hydra\.run\.dir=FOLDER"
    ) as error:
        fedprune.compose([f'name="{name}"'])
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


@pytest.mark.parametrize("name", ["paper/figure_2", "a b", "Zürich", "v1.2", "n" * 200])
def test_these_are_names(name):
    assert fedprune.compose([f"name={name}"]).folder.parent == Path("outputs", name)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("name=Zürich", 'name="Zürich"'),
        ("name=Zürich,Genf", 'name="Zürich","Genf"'),
        ("data.root=/tmp/日本/x", 'data.root="/tmp/日本/x"'),
        ("name='ü'", "name='ü'"),
        ("+data={path: ü}", "+data={path: ü}"),
        ("name=plain", "name=plain"),
    ],
)
def test_letters_beyond_ascii_are_put_in_quotes_for_hydra(typed, words):
    assert arguments([typed]) == [words]


def test_a_ticket_may_lie_in_a_folder_with_any_letters(tmp_path):
    path = tmp_path / "Zürich ü" / "日本,=" / "ticket.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    assert fedprune.compose([f"ticket={path}"]).config.ticket.path == str(path)


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["rounds=1"], "outputs"),
        (["hydra.run.dir=/a/b"], "/a/b"),
        (["hydra.run.dir='/a/${name}/x'"], "/a/"),
        (["hydra.run.dir=/a/b", "-m"], "outputs"),
        (["hydra.sweep.dir=/a/c", "--multirun"], "/a/c"),
    ],
)
def test_results_go_where_it_is_typed(words, folder):
    assert results_folder(words) == Path(folder)


def test_a_flag_that_only_prints_writes_nothing_however_its_value_is_typed():
    assert not any(map(writes, (["--cfg", "job"], ["--cfg=job"], ["--info=all"], ["rounds=1", "dry_run=true"])))
    assert writes(["rounds=1"]) and writes(["-m", "info=1"]) and writes(["dry_run=false"])


def test_a_folder_is_writable_if_the_nearest_that_exists_is(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert writable(tmp_path / "a" / "b" / "c") and not writable(tmp_path / "file") and not writable(tmp_path / "file" / "a")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert not writable(tmp_path / "a" / "b")


def test_without_a_home_the_cache_is_among_temporary_files(monkeypatch):
    def nobody(path):
        raise RuntimeError("Could not determine home directory.")  # as pathlib does for a user whom the machine does not know

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    assert files.home().name == "fedprune" and files.home().parent.name == f"cache-{os.getuid()}"


def test_what_killed_processes_left_in_the_cache_goes_after_a_day(tmp_path):
    old, young, other = (tmp_path / f"digits-1a2b.{name}" for name in ("0123456789abcdef", "fedcba9876543210", "safetensors"))
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 90_000, time.time() - 90_000))
    new = files.beside(tmp_path / "digits-1a2b.safetensors")
    assert not old.exists() and young.exists() and other.exists() and not new.exists() and new.parent == tmp_path


def test_a_folder_of_results_that_hydra_cannot_make_is_one_line(command, monkeypatch, tmp_path):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = command("rounds=1", "logger=none")
    assert result.rc == 1 and "Permission denied: start in another folder, or type hydra.run.dir=FOLDER" in result.err
    assert result.err.count("\n") == 1
