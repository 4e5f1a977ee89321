"""One run, one writer: the lock of a folder, who holds it, and what becomes of it when that process is gone."""

from __future__ import annotations

import csv
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import fedprune
from fedprune.errors import ConfigError, RunError
from fedprune.running import lock
from fedprune.running.lock import Held, held, holder_of, is_held_by_another, patience
from fedprune.storage import digest
from fedprune.storage.checkpoint import load_state
from helpers.composed import TINY
from helpers.forked import Forked

HOLD = """
import os, sys, time
from pathlib import Path
from fedprune.running.lock import held

with held(Path(sys.argv[1]), 0):
    child = os.fork() if "orphan" in sys.argv else 1
    if child:
        print(child, flush=True)
    time.sleep(60)
"""
"""A process that holds a folder's lock until it is killed; with `orphan` it has forked a worker that outlives it."""


@contextmanager
def another_process(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a process that holds the lock, and the number of its child, if it has one."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks, such as NFS without lockd."""

    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)


def test_a_second_process_is_told_who_writes_and_gets_the_lock_once_that_one_is_killed(tmp_path):
    with another_process(tmp_path / "run") as (process, _):
        with pytest.raises(Held, match=rf"run is being written by process {process.pid} on .*, since 20.*wait=null"):
            held(tmp_path / "run", 0).__enter__()
        assert is_held_by_another(tmp_path / "run")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "run" / lock.HOLDER).exists() and holder_of(tmp_path / "run") is None
        with held(tmp_path / "run", 0):
            assert holder_of(tmp_path / "run").pid == os.getpid()
    assert not (tmp_path / "run" / lock.HOLDER).exists()


def test_a_forked_worker_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
    with another_process(tmp_path / "run", "orphan") as (process, child):
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with held(tmp_path / "run", 0):
            os.kill(child, signal.SIGKILL)


def test_looking_into_a_run_loads_neither_torch_nor_the_library_of_locks():
    loads = "import sys, fedprune, fedprune.running.launched; fedprune.load; print({'torch', 'filelock'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", loads], check=False, capture_output=True, text=True).stdout == "set()\n"


def test_a_thread_of_the_same_process_is_told_so(tmp_path):
    said: list[str] = []

    def second() -> None:
        try:
            held(tmp_path, 0).__enter__()
        except Held as error:
            said.append(str(error))

    with held(tmp_path, 0):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert not is_held_by_another(tmp_path)
    assert "another thread of this process" in said[0]


@pytest.mark.parametrize("seconds", [30, None])
def test_who_waits_goes_on_when_the_other_one_has_ended(seconds, tmp_path, capsys):
    taken = threading.Event()

    def first() -> None:
        with held(tmp_path, 0):
            taken.set()
            time.sleep(0.3)

    threading.Thread(target=first).start()
    assert taken.wait(5)
    begun = time.monotonic()
    with held(tmp_path, seconds):
        assert 0.2 < time.monotonic() - begun < 5
    assert "waiting" in capsys.readouterr().out


def test_a_file_stands_for_the_lock_where_the_file_system_has_none(tmp_path, without_locks):
    with held(tmp_path, 0):
        assert holder_of(tmp_path) is not None
        with pytest.raises(Held):
            held(tmp_path, 0).__enter__()
    with held(tmp_path, 0):
        pass
    assert holder_of(tmp_path) is None


def test_such_a_file_of_a_dead_process_is_taken_over(tmp_path, without_locks):
    died = subprocess.run(
        [sys.executable, "-c", WITHOUT_LOCKS + HOLD.replace("time.sleep(60)", "os._exit(9)"), str(tmp_path)], check=False
    )
    assert died.returncode == 9 and (tmp_path / lock.SUBSTITUTE).exists()
    assert holder_of(tmp_path) is None
    with held(tmp_path, 2):
        pass


WITHOUT_LOCKS = """
import errno, fcntl
def refused(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = refused
"""


def test_a_folder_that_cannot_be_written_to_is_named_with_the_reason(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(
        RunError, match=r"cannot write .*run/\.lock: (Not a directory|File exists)\. Type another hydra\.run\.dir"
    ):
        held(tmp_path / "run", 0).__enter__()


def test_waits_are_seconds_for_ever_or_what_is_usual():
    assert [patience(wait, auto=7) for wait in ("auto", None, 0, 2.5)] == [7, None, 0, 2.5]
    for wrong in (-1, "long", True, float("nan")):
        with pytest.raises(ConfigError, match="must be auto, a number of seconds"):
            patience(wrong, auto=7)


def test_a_run_that_slurm_starts_again_waits_longer_for_the_one_that_it_ends(monkeypatch):
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert lock.moment() == lock.MOMENT
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert lock.moment() == lock.REQUEUED > 30  # Slurm kills what has not ended 30 seconds after it was asked to


# --- whole runs ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_being_done_is_left_alone_and_can_be_looked_into(command, outputs, folder, capsys):
    assert command(*TINY, "eval_every=1").rc == 0
    (folder() / "summary.json").unlink()
    before = {path.name: path.read_bytes() for path in folder().iterdir() if path.is_file()}
    with another_process(folder()) as (process, _):
        second = command(*TINY, "eval_every=1", "wait=0")
        assert second.rc == 1 and f"is being written by process {process.pid} on" in second.err
        result = fedprune.load(folder())
        assert result.status == "running" and f"process {process.pid}" in result.reason and len(result.rounds) == 3
        (row,) = fedprune.analysis.load_runs([folder()]).to_dict("records")
        assert row["status"] == "running" and row["reason"].startswith("3 of 3 rounds done by process")
    assert {path.name: path.read_bytes() for path in folder().iterdir() if path.name in before} == before
    assert command(*TINY, "eval_every=1").rc == 0  # what the killed one had is taken over
    assert result.status == "done" and result.reason == ""


def test_a_run_that_is_done_and_a_dry_run_take_no_lock(command, outputs, folder, monkeypatch):
    assert command(*TINY).rc == 0
    monkeypatch.setattr("fedprune.running.run.held", None)
    assert (command(*TINY).rc, command(*TINY, "dry_run=true", "seed=7").rc) == (0, 0)


def test_what_is_done_while_one_waits_is_not_done_again(outputs, folder, command, monkeypatch):
    assert command(*TINY).rc == 0
    summary = (folder() / "summary.json").read_text()
    (folder() / "summary.json").unlink()

    @contextmanager
    def after_the_other(where: Path, seconds: float | None) -> Iterator[None]:
        (where / "summary.json").write_text(summary)
        yield

    monkeypatch.setattr("fedprune.running.run.held", after_the_other)
    monkeypatch.setattr("fedprune.running.run.build", None)
    assert "already done" in command(*TINY).out


def test_a_failure_is_not_written_into_the_folder_of_a_process_that_is_at_it(command, outputs, folder):
    assert command(*TINY).rc == 0
    (folder() / "summary.json").unlink()
    run = digest.from_json((folder() / "run.json").read_bytes())
    (folder() / "run.json").write_text(digest.to_json(run | {"id": "another"}))
    with another_process(folder()):
        assert "holds another run" in command(*TINY).err
        assert not (folder() / "failed.json").exists()
    assert command(*TINY).rc == 1 and (folder() / "failed.json").exists()


def test_a_wrong_wait_is_one_line(command, outputs):
    for words in ((), ("seed=0,1", "-m")):
        result = command(*TINY, "wait=soon", *words)
        assert (
            result.rc == 1
            and result.err.strip()
            == "wait=soon must be auto, a number of seconds (0: do not wait), or null (as long as it takes)"
        )


SWEEP = (*TINY, "seed=0,1,2", "-m")


@pytest.fixture
def second_run(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the second run of SWEEP, before it is begun. No figures are drawn."""
    monkeypatch.setattr("fedprune.analysis.figures.save", lambda *_: [])
    composed = fedprune.compose([*TINY, "seed=1"])
    return outputs / "fedprune" / composed.folder.name


def test_a_sweep_goes_on_past_a_run_that_another_process_does_and_comes_back_to_it(command, outputs, second_run, monkeypatch):
    other = held(second_run, 0)
    other.__enter__()
    ended: Callable[[float], None] = lambda seconds: other.__exit__(None, None, None)  # noqa: E731
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=ended)  # without a result, as if it had been killed
    monkeypatch.setattr("fedprune.running.come_back.time", clock)
    result = command(*SWEEP)
    assert result.rc == 0, result.text
    third, passed_over = result.out.index("#2 : "), result.out.index("waiting for another process")
    assert third < passed_over < result.out.rindex("seed 1")
    assert len(list(outputs.glob("fedprune/*/summary.json"))) == 3 and (second_run / "summary.json").exists()
    (row,) = csv.DictReader((outputs / "fedprune" / "table.csv").read_text().splitlines())
    assert (row["seeds"], row["status"]) == ("3", "done")
    assert [path.name.partition("-")[0] for path in (outputs / ".sweeps").iterdir()] == ["fedprune"]


def test_a_sweep_that_does_not_wait_names_what_another_process_does(command, outputs, second_run):
    with another_process(second_run) as (process, _):
        result = command(*SWEEP, "wait=0")
    assert result.rc == 1 and f"{second_run.name}: process {process.pid} on" in result.err
    assert len(list(outputs.glob("fedprune/*/summary.json"))) == 2


SLOW = """
import contextlib, time
from fedprune.analysis import figures

figures.save = lambda *_: []  # which takes seconds

class Slow:
    def round(self, metrics):
        time.sleep(0.1)

    def finish(self, summary, files):
        pass

@contextlib.contextmanager
def slow(folder, about):
    print("trained here:", folder)
    yield Slow()
"""


def test_two_terminals_share_a_sweep_and_each_run_is_done_once(perform, outputs, tmp_path_factory, differences, monkeypatch):
    monkeypatch.setattr("fedprune.analysis.figures.save", lambda *_: [])
    (outputs.parent / "slow.py").write_text(SLOW)
    words = ("logger._target_=slow.slow", "seed=0,1,2,3", "-m")
    both = [Forked(outputs.parent, *TINY, *words, said=name) for name in ("one_", "two_")]
    said = ["".join(each.communicate()) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    done = [re.findall(r"trained here: (\S+)", text) for text in said]
    assert len({*done[0], *done[1]}) == len(done[0] + done[1]) == 4 and all(done)
    table = next(iter(csv.DictReader((outputs / "fedprune" / "table.csv").read_text().splitlines())))
    assert (table["seeds"], table["status"]) == ("4", "done")
    alone = tmp_path_factory.mktemp("alone")
    assert perform(alone, *TINY, "seed=0,1,2,3", "-m").rc == 0
    for state in sorted(alone.glob("outputs/fedprune/*/state/state.safetensors")):
        (theirs,) = outputs.glob(f"fedprune/{state.parent.parent.name}/state/state.safetensors")
        assert differences(load_state(state), load_state(theirs)) == []
