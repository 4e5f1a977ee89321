"""One file of a run is damaged before the run goes on: it says so, and comes to the same result bit for bit, or refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedprune.errors import FedpruneError
from fedprune.running import resume
from fedprune.running.run import run
from fedprune.storage.checkpoint import load_saved, read, write
from fedprune.storage.history import read_history
from helpers.composed import TINY, composed

pytestmark = pytest.mark.slow

OVERRIDES = (*TINY, "rounds=5", "local.steps=1", "model=mlp", "model.hidden=[8]", "checkpoint_every=0", "federated=fedavgm")
STATE, PREVIOUS, DAMAGED = (Path("state") / f"{name}.safetensors" for name in ("state", "previous", "damaged"))


def perform(folder: Path, seed: int = 0) -> Path:
    config, names = composed(*OVERRIDES, f"seed={seed}")
    run(config, folder, names, OVERRIDES, "damage")
    return folder


def stopped(folder: Path, seed: int = 0) -> Path:
    """The folder of a run that was killed when four rounds were saved, and the fifth was written down."""
    kept = folder.with_name("kept")
    save = resume.save_state

    def last(state, path, *rest):
        save(state, path, *rest)
        if state.round == 5 and not kept.exists():
            shutil.copytree(folder, kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "save_state", last)
        perform(folder, seed)
    shutil.rmtree(folder)
    shutil.move(kept, folder)
    (folder / PREVIOUS).rename(folder / "saved")
    shutil.copy(folder / "saved", folder / STATE)
    shutil.copy(folder / "saved", folder / PREVIOUS)
    (folder / "saved").unlink()
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    return perform(tmp_path_factory.mktemp("done") / "run")


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    return stopped(tmp_path_factory.mktemp("killed") / "run")


@pytest.fixture
def folder(killed, tmp_path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "run"))


def assert_same(folder: Path, done: Path, differences) -> None:
    saved, expected = (load_saved(each / STATE) for each in (folder, done))
    assert differences(saved.state, expected.state) == []
    assert (folder / "metrics.jsonl").read_bytes() == saved.lines
    rows, others = (read_history(each) for each in (folder, done))
    assert rows.problems == () == others.problems
    for row, other in zip(rows.rows, others.rows, strict=True):
        assert {k: v for k, v in row.items() if "time" not in k} == {k: v for k, v in other.items() if "time" not in k}
    (ticket, about), (expected_ticket, expected_about) = (read(each / "ticket.safetensors") for each in (folder, done))
    assert about == expected_about
    assert all((ticket[group][name] == value).all() for group, t in expected_ticket.items() for name, value in t.items())
    assert not (folder / PREVIOUS).exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 4
    path.write_bytes(content)


def change(old: bytes, new: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new, 1))  # type: ignore[func-returns-value]


def without_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


WORDS = {
    "a flipped bit of the checkpoint": (STATE, flip, "its content is not what was written): it is set aside as"),
    "half a checkpoint": (STATE, lambda path: path.write_bytes(path.read_bytes()[:3000]), "is damaged"),
    "no checkpoint under its name": (STATE, Path.unlink, "is missing"),
    "a changed round": (STATE, change(b'\\"round\\": 4', b'\\"round\\": 3'), "is not what was written"),
    "an unreadable line": ("metrics.jsonl", change(b'"round": 1,', b'"round" 1,'), "line 2 cannot be read (Expecting ':'"),
    "a changed number": ("metrics.jsonl", change(b'"train/loss": 2.', b'"train/loss": 1.'), "which are not what the run wrote"),
    "a line less": ("metrics.jsonl", without_a_line, "there is no round 1"),
    "no lines": ("metrics.jsonl", Path.unlink, "it has 0 rounds"),
}


@pytest.mark.parametrize("damage", WORDS)
def test_a_damaged_file_is_named_and_the_result_is_that_of_the_whole_one(damage, folder, done, differences, caplog):
    name, spoil, words = WORDS[damage]
    spoil(folder / name)
    assert_same(perform(folder), done, differences)
    assert words in caplog.text and str(folder / name) in caplog.text


@pytest.mark.parametrize(
    ("name", "spoil"),
    [("metrics.jsonl", torn), ("run.json", flip), ("config.yaml", flip), ("partition.safetensors", flip), ("plan.txt", torn)],
)
def test_what_is_written_again_anyway_needs_no_word(name, spoil, folder, done, differences, caplog):
    """Of metrics.jsonl, that is the last line, of a round that no checkpoint has."""
    spoil(folder / name)
    assert_same(perform(folder), done, differences)
    assert caplog.text == ""


def test_when_both_checkpoints_are_damaged_the_run_begins_anew(folder, done, differences, caplog, capsys):
    flip(folder / STATE)
    flip(folder / PREVIOUS)
    assert_same(perform(folder), done, differences)
    assert caplog.text.count("is damaged") == 2
    assert "they are done again" in capsys.readouterr().out


def test_the_checkpoint_before_the_newest_is_kept_until_the_run_has_ended(folder):
    saved = load_saved(folder / PREVIOUS)
    assert saved.state.round == 4 and saved.lines.count(b"\n") == 4
    resume.save(folder, saved.state, b"{}\n", "")
    assert (folder / PREVIOUS).stat().st_ino != (folder / STATE).stat().st_ino
    assert load_saved(folder / PREVIOUS).lines == saved.lines


def test_without_hard_links_it_is_kept_too(folder, monkeypatch):
    monkeypatch.setattr(resume.os, "link", lambda *_: (_ for _ in ()).throw(PermissionError()))
    saved = load_saved(folder / STATE)
    resume.save(folder, saved.state, b"{}\n", "")
    assert load_saved(folder / PREVIOUS).lines == saved.lines and load_saved(folder / STATE).lines == b"{}\n"


def test_the_checkpoint_of_another_run_is_refused_by_name(folder, tmp_path):
    other = perform(tmp_path / "other" / "run", seed=1)
    shutil.copy(other / STATE, folder / STATE)
    with pytest.raises(FedpruneError, match=r"state.safetensors belongs elsewhere: it is of the run .*"):
        perform(folder)


@pytest.mark.parametrize("whole", [True, False])
def test_a_checkpoint_of_before_goes_on_if_its_rounds_are_all_there(whole, folder, done, differences, caplog):
    """It has no digest, no lines and no id; without a proof the run begins anew."""
    (folder / PREVIOUS).unlink()
    groups, metadata = read(folder / STATE)
    state = metadata["state"].replace('"format": 3', '"format": 2')
    write(groups, {"state": state}, folder / STATE)
    change(b'"digest"', b'"before"')(folder / STATE)
    if not whole:
        without_a_line(folder / "metrics.jsonl")
    assert_same(perform(folder), done, differences)
    assert ("there is no round 1, and the checkpoint of 4 rounds has no copy" in caplog.text) is not whole
