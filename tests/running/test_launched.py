"""A job in a process of a launcher ends with the process that launched its sweep."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest

from fedprune.parent_process import began, lives
from fedprune.running import launched
from fedprune.running.launched import INTERRUPTED, Launch, ends_with_its_launcher


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which this one takes for the one that launched its sweep."""
    monkeypatch.setattr(launched, "GRACE", 0.2)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        noted(monkeypatch, Launch(os.uname().nodename, process.pid, began(process.pid), passes_over=True))
        yield process
        process.kill()


def noted(monkeypatch: pytest.MonkeyPatch, launch: Launch) -> None:
    monkeypatch.setenv(launched.LAUNCH, json.dumps(asdict(launch)))


@contextmanager
def job(stubborn: bool = False) -> Iterator[int]:
    """A process that does a job for a minute. stubborn: it does not heed Ctrl-C."""
    pid = os.fork()
    if pid == 0:
        with ends_with_its_launcher():
            if stubborn:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.1)
        yield pid
    finally:
        if lives(pid):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def status(pid: int, seconds: float) -> int | None:
    """The status of a process that ends within so many seconds; None if it does not."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.02)
    return None


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_job_ends_once_its_launcher_is_killed(stubborn, launcher):
    with job(stubborn) as pid:
        assert status(pid, 0.1) is None
        launcher.kill()  # nobody has taken note of its end yet
        assert status(pid, 5) == INTERRUPTED


def test_ctrl_c_ends_the_process_of_a_job_and_not_only_the_job(launcher):
    with job() as pid:
        os.kill(pid, signal.SIGINT)
        assert status(pid, 5) == INTERRUPTED


def test_another_process_of_the_same_number_is_not_the_launcher(launcher, monkeypatch):
    going_on = launched.launch()
    assert going_on is not None and not going_on.has_ended
    assert replace(going_on, began="1").has_ended


def test_jobs_of_slurm_and_of_other_machines_and_of_the_process_itself_are_not_watched(launcher, monkeypatch):
    watched: list[Launch] = []
    monkeypatch.setattr(launched, "_watch", watched.append)
    going_on = launched.launch()
    assert going_on is not None
    with ends_with_its_launcher():
        pass
    assert watched == [going_on]
    with monkeypatch.context() as patch:
        patch.setenv("SUBMITIT_EXECUTOR", "slurm")
        with ends_with_its_launcher():
            pass
    for other in (replace(going_on, host="elsewhere"), replace(going_on, pid=os.getpid())):
        noted(monkeypatch, other)
        with ends_with_its_launcher():
            pass
    assert watched == [going_on]


def test_without_a_sweep_nothing_is_watched(monkeypatch):
    monkeypatch.setattr(launched, "_watch", None)
    with pytest.raises(KeyboardInterrupt), ends_with_its_launcher():
        raise KeyboardInterrupt
