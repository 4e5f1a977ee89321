"""A run that was interrupted, killed or stopped goes on as if nothing had happened: bit for bit, and in metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fedprune.running.run import run
from fedprune.storage.checkpoint import load_state, read
from fedprune.types import State
from helpers.forked import Forked
from helpers.interrupting import raised, raised_in

pytestmark = pytest.mark.slow

ROUNDS = 20
LONG = (
    *("federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=4", "eval_every=7"),
    *("federated=fedavgm", "criterion=rigl", "how_often=dynamic", "how_often.every=5", "when.start=0.2", "when.stop=1"),
    *(f"rounds={ROUNDS}", "density=0.3", "logger=none", "checkpoint_every=0"),
)
"""A run with prune events, server momentum and evidence from clients."""


def rows(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock on the wall."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def final(folder: Path) -> State:
    assert (folder / "summary.json").exists()
    return load_state(folder / "state" / "state.safetensors")


def summary(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    return {key: value for key, value in metrics.items() if not key.startswith("time/")}


def assert_same(folder: Path, reference: Path, differences) -> None:
    assert differences(final(folder), final(reference)) == []
    assert rows(folder) == rows(reference)
    assert summary(folder) == summary(reference)
    (ticket, about), (other, abouts) = read(folder / "ticket.safetensors"), read(reference / "ticket.safetensors")
    assert about == abouts
    assert all(torch.equal(ticket[group][name], other[group][name]) for group in other for name in other[group])


@pytest.fixture(scope="module")
def reference(tmp_path_factory, compose) -> Path:
    """The folder of the same run, done in one go."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    config, names = compose(*LONG, "executor=serial")
    run(config, folder, names, LONG, "reference")
    assert len(rows(folder)) == ROUNDS
    return folder


@pytest.fixture
def here(outputs: Path, compose) -> Callable[..., Path]:
    """here(*overrides) -> the folder of the run, done or gone on with in this process."""

    def do(*overrides: str) -> Path:
        config, names = compose(*LONG, *overrides)
        folder = outputs / "fedprune" / "run"
        run(config, folder, names, LONG, "here")
        return folder

    return do


class Stop(Exception):
    """What the test throws into a run."""


def stop_in_round(number: int, job: Callable, *overrides: str, error: type[BaseException] = Stop) -> None:
    """Do the job, and throw the error when round `number` is about to be written down."""
    with raised_in(number, error), pytest.raises(error):
        job(*overrides)


@pytest.mark.parametrize("number", [0, 7, ROUNDS - 1])
def test_a_run_that_ends_in_any_round_goes_on_bit_for_bit(number, reference, here, differences):
    stop_in_round(number, here, "executor=serial")
    folder = Path("outputs/fedprune/run")
    assert not (folder / "summary.json").exists()
    assert len(rows(folder)) == number
    assert_same(here("executor=serial"), reference, differences)


def test_a_run_that_is_interrupted_again_and_again_goes_on_bit_for_bit(reference, here, differences):
    for number in (3, 4, 14):
        stop_in_round(number, here, "executor=serial", error=KeyboardInterrupt)
    assert_same(here("executor=serial"), reference, differences)


def test_a_run_may_go_on_with_other_workers(reference, here, differences):
    stop_in_round(10, here, "executor=processes", "executor.workers=2")
    assert_same(here("executor=serial"), reference, differences)


def test_without_a_checkpoint_of_its_own_a_killed_run_starts_anew_and_its_lines_are_not_doubled(reference, here, differences):
    """A process that is killed between two checkpoints has written lines that the state does not know of."""
    stop_in_round(12, here, "executor=serial")
    folder = Path("outputs/fedprune/run")
    shutil.rmtree(folder / "state")
    assert_same(here("executor=serial"), reference, differences)


def test_a_line_that_was_torn_is_written_again(reference, here, differences):
    stop_in_round(12, here, "executor=serial")
    with open("outputs/fedprune/run/metrics.jsonl", "a") as file:
        file.write('{"round": 12, "test/acc')
    assert_same(here("executor=serial"), reference, differences)


def test_what_is_done_is_not_done_again_unless_forced(reference, here, capsys, differences):
    folder = Path("outputs/fedprune/run")
    shutil.copytree(reference, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    here("executor=serial")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "already done" in capsys.readouterr().out
    here("executor=serial", "force=true")
    assert (folder / "summary.json").stat().st_mtime_ns > before[folder / "summary.json"]
    assert_same(folder, reference, differences)


def test_a_sweep_that_was_interrupted_keeps_what_is_done_and_goes_on_with_the_rest(command, outputs):
    sweep = ("rounds=3", *LONG[:3], "local.epochs=null", "local.steps=1", "logger=none", "executor=serial", "seed=0,1,2", "-m")
    with raised(KeyboardInterrupt, lambda folder, metrics: "seed=1" in folder.name and metrics["round"] == 1):
        assert command(*sweep).rc == 130
    assert len(list(outputs.glob("*/*/summary.json"))) == 1
    assert len(list(outputs.glob("*/*/run.json"))) == 2
    again = command(*sweep)
    assert again.rc == 0
    assert again.out.count("already done") == 1
    assert re.findall(f"going on from round 1 of 3: {outputs}/fedprune/.*seed=1-", again.out)
    assert len(list(outputs.glob("*/*/summary.json"))) == 3
    assert all(len(rows(path.parent)) == 3 for path in outputs.glob("*/*/summary.json"))


# --- a process of its own --------------------------------------------------------------------------------------------------


SLOW = """
import contextlib, os, time
from fedprune.local.module import LocalModule

class Slow:
    def round(self, metrics):
        time.sleep(0.1)

    def finish(self, summary, files):
        pass

@contextlib.contextmanager
def slow(folder, about):
    yield Slow()

class SlowModule(LocalModule):
    def training_step(self, batch, batch_idx):
        worker = os.getpid() != os.getpgrp()  # and not the run itself, which tries a step when it is built
        time.sleep(worker * float(os.environ.get("TRAINING", 0)))
        return super().training_step(batch, batch_idx)

    def outcome(self, batch):
        time.sleep(float(os.environ.get("EVALUATION", 0)))
        return super().outcome(batch)
"""
"""What makes rounds last, so that a run can be caught in the middle: a logger, which does not change which run it is; and a
module, which takes its time as the environment says."""


@contextlib.contextmanager
def started(*arguments: str, new: bool = False, **environment: str) -> Iterator[subprocess.Popen | Forked]:
    """The command in a process group of its own, if `new` from the interpreter's start; nothing of it outlives the block."""
    here = Path.cwd()
    (here / "slow.py").write_text(SLOW)
    arguments = (*arguments, "logger._target_=slow.slow")
    if new:
        path = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
        words, pipe = [sys.executable, "-m", "fedprune", *arguments], subprocess.PIPE
        environ = os.environ | environment | {"PYTHONPATH": path}
        process = subprocess.Popen(words, env=environ, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    else:
        process = Forked(here, *arguments, **environment)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def metrics_written(outputs: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in outputs.glob("*/*/metrics.jsonl"))


def nobody_left(group: int) -> bool:
    """Whether no process of the group is alive."""
    return not alive(group) if Path("/proc/self/stat").exists() else not _answers(group)


def alive(group: int) -> set[int]:
    """The processes of the group. (One that has ended may wait for somebody to take note: that is no life.)"""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.add(int(path.parent.name))
    return found


def _answers(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


WORKERS = ("executor=processes", "executor.workers=2")


def test_a_killed_run_leaves_no_worker_behind_and_goes_on_bit_for_bit(reference, outputs, command, folder, differences):
    with started(*LONG, *WORKERS) as process:
        assert wait_for(lambda: metrics_written(outputs) >= 3)
        process.kill()
        process.wait()
        workers_gone = wait_for(lambda: nobody_left(process.pid), 15)
    assert not (folder() / "summary.json").exists()
    assert len(rows(folder())) < ROUNDS
    went_on = command(*LONG, "executor=serial")
    assert (went_on.rc, went_on.err) == (0, "")
    assert_same(folder(), reference, differences)
    assert workers_gone, "workers outlive the process that they work for"


SIDE_BY_SIDE = ("seed=0,1", "executor=serial", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "-m")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="sees processes in /proc")
def test_the_jobs_of_a_killed_sweep_write_down_where_they_are_and_end(reference, outputs, command, differences):
    with started(*LONG, *SIDE_BY_SIDE, new=True) as process:
        assert wait_for(lambda: len(list(outputs.glob("*/*/metrics.jsonl"))) == 2)
        process.kill()
        assert wait_for(lambda: alive(process.pid) <= {process.pid}, 10), "jobs outlive the sweep that has launched them"
    (first,) = outputs.glob("*/*seed=0*")
    assert load_state(first / "state" / "state.safetensors").round == len(rows(first)) < ROUNDS
    went_on = command(*LONG, "executor=serial")
    assert (went_on.rc, went_on.err) == (0, "")
    assert_same(first, reference, differences)
    assert not list(Path("/dev/shm").glob(f"*-{process.pid}-*"))


# A terminal's Ctrl-C reaches every process of the group; a scheduler's request to end only the first, or all of them.
STOPS = {"ctrl-c": (os.killpg, signal.SIGINT), "ended": (os.kill, signal.SIGTERM), "all ended": (os.killpg, signal.SIGTERM)}


@pytest.mark.parametrize("how", STOPS)
def test_an_interrupted_run_says_so_leaves_no_worker_and_goes_on_bit_for_bit(
    how, reference, outputs, command, folder, differences
):
    send, stop = STOPS[how]
    with started(*LONG, *WORKERS, new=how == "ctrl-c") as process:
        assert wait_for(lambda: metrics_written(outputs) >= 3)
        send(process.pid, stop)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert wait_for(lambda: nobody_left(process.pid), 15), "workers outlive the process that they work for"
    assert err.strip() == "interrupted; what is done is kept, and the same command goes on from there"
    assert "Traceback" not in out and "worker process died" not in out
    assert not (folder() / "summary.json").exists()
    done = len(rows(folder()))
    assert 3 <= done < ROUNDS
    assert load_state(folder() / "state" / "state.safetensors").round == done
    went_on = command(*LONG, "executor=serial")
    assert (went_on.rc, went_on.err) == (0, "")
    assert_same(folder(), reference, differences)


SLOWLY = ("local.module._target_=slow.SlowModule", "eval_every=1", "executor=processes", "executor.workers=3")


def once_it_is_known(outputs: Path, group: int) -> bool:
    return any(outputs.glob("*/*/run.json"))


def once_there_are_workers(outputs: Path, group: int) -> bool:
    return once_it_is_known(outputs, group) and len(alive(group)) > 1  # git, which is asked for a commit, comes before


def once_there_are_rounds(outputs: Path, group: int) -> bool:
    return metrics_written(outputs) > 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="sees processes in /proc")
@pytest.mark.parametrize(
    ("begun", "within", "pauses"),
    [
        (once_it_is_known, 2, {"TRAINING": "300"}),
        (once_there_are_workers, 0.1, {"TRAINING": "300"}),
        (once_there_are_rounds, 1, {"TRAINING": "0.3"}),
        (once_there_are_rounds, 1, {"EVALUATION": "0.3"}),
    ],
    ids=["start-up", "first workers", "training", "evaluation"],
)
def test_ctrl_c_at_a_random_time_ends_all_workers_in_the_middle_of_a_step_and_the_run_goes_on_bit_for_bit(
    begun, within, pauses, reference, outputs, command, folder, differences, monkeypatch
):
    with started(*LONG, *SLOWLY, **pauses) as process:
        assert wait_for(lambda: begun(outputs, process.pid))
        time.sleep(random.uniform(0, within))
        os.killpg(process.pid, signal.SIGINT)
        assert wait_for(lambda: alive(process.pid) <= {process.pid}), "workers that wait for the end of what they do"
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert nobody_left(process.pid)
    assert err.strip() == "interrupted; what is done is kept, and the same command goes on from there"
    assert "Traceback" not in out and "worker process died" not in out
    state = folder() / "state" / "state.safetensors"
    assert state.exists() or begun is not once_there_are_rounds
    if state.exists():
        assert load_state(state).round == len(rows(folder()))
    monkeypatch.syspath_prepend(outputs.parent)
    went_on = command(*LONG, *SLOWLY[:2], "executor=serial")
    assert (went_on.rc, went_on.err) == (0, "")
    assert differences(final(folder()), final(reference)) == []
