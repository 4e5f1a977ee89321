"""Workers that die: what they did is done again by others, and nothing of it can be seen; what kills them all is left out."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedprune.errors import RunError
from fedprune.execution import Lost, Processes, pool
from fedprune.federated.availability import Fate
from fedprune.types import SERVER, Job
from helpers.contract import Tasks

pytestmark = pytest.mark.slow

SNIP = ("how_often=one_shot", "when=before_training", "criterion=snip")
WHOLE = (*SNIP, "federated.cohort=3", "rounds=2", "eval_every=1", "federated=fedavgm", "federated.optimizer_state=kept")
"""Evidence, training, evaluation, and state at both ends."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> None:
    monkeypatch.setattr(pool, "GRACE", 0.0)


class Mortal:
    """A ClientRound that is killed at the tasks that are `fatal`, so many times each; how often it was is noted in a folder."""

    def __init__(self, inner: Any, folder: Path, fatal: Callable[[str, Any], bool], times: int):
        self._inner, self._folder, self._fatal, self._times = inner, folder, fatal, times

    def run(self, message: bytes, kept: dict, held: bytes) -> Any:
        job = self._inner.context.wire.decode_job(message, held)
        return self._do("run", job, f"{job.round} {job.client} {job.measure}", message, kept, held)

    def evaluate(self, block: bytes, kept: dict, held: bytes, where: Any) -> Any:
        return self._do("evaluate", where, f"{where}", block, kept, held, where)

    def _do(self, method: str, about: Any, name: str, *arguments: Any) -> Any:
        if self._fatal(method, about):
            with open(self._folder / name, "ab", buffering=0) as file:
                if file.tell() < self._times:
                    file.write(b".")
                    os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self._inner, method)(*arguments)


@pytest.fixture
def mortal(tmp_path) -> Callable[..., contextlib.AbstractContextManager[Processes]]:
    """mortal(experiment, fatal, times, workers) -> its workers, who die so many times at each fatal task."""

    @contextlib.contextmanager
    def executor(experiment, fatal, times: int = 10, workers: int = 2) -> Iterator[Processes]:
        inner = experiment.executor()._client_round
        made = Processes(lambda: Mortal(inner, tmp_path, fatal, times), workers)
        try:
            yield made
        finally:
            made.close(now=True)

    return executor


def training(*clients: int) -> Callable[[str, Any], bool]:
    """Whether a task is the training of one of these clients."""
    return lambda method, job: method == "run" and not job.measure and job.client in clients


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith("time/")}


@pytest.fixture(scope="module")
def undisturbed(tiny, play):
    return play(tiny(*WHOLE))


@pytest.mark.parametrize(
    ("fatal", "times"),
    [
        (training(0, 1, 2, 3), 1),
        (training(1), 2),
        (lambda method, job: method == "run" and bool(job.measure), 2),
        (lambda method, about: method == "evaluate", 2),
        (lambda method, about: True, 1),
    ],
    ids=["training once", "one client twice", "evidence twice", "evaluation twice", "everything once"],
)
def test_tasks_whose_workers_die_are_done_again_and_no_bit_is_different(
    fatal, times, tiny, play, mortal, undisturbed, differences, tmp_path
):
    experiment = tiny(*WHOLE)
    with mortal(experiment, fatal, times) as executor:
        played = play(experiment, executor)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) >= 2 * times
    for (state, metrics), (other, others) in zip(played, undisturbed, strict=True):
        assert differences(state, other) == []
        assert without_times(metrics) == without_times(others)


def test_workers_that_are_killed_between_rounds_are_replaced(tiny, play, undisturbed, differences):
    experiment = tiny(*WHOLE, "executor=processes", "executor.workers=2")
    executor = experiment.executor()
    try:
        ((state, _),) = play(experiment, executor, stop=1)
        killed = {child.pid for child in multiprocessing.active_children()}
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        ((last, _),) = play(experiment, executor, state)
        assert not killed & {child.pid for child in multiprocessing.active_children()}
    finally:
        executor.close(now=True)
    assert differences(last, undisturbed[-1][0]) == []


def test_a_client_that_costs_three_workers_their_lives_is_dropped_counted_and_named(
    tiny, play, mortal, differences, caplog, tmp_path
):
    """As if the two others had been the cohort; and the round after it, in which it is not to die, is as ever."""
    experiment = tiny("federated.cohort=4", "rounds=2")

    def fatal(method: str, job: Job) -> bool:
        return training(2)(method, job) and job.round == 0

    with caplog.at_level(logging.WARNING), mortal(experiment, fatal) as executor:
        (state, metrics), (last, others) = play(experiment, executor)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [3]
    assert caplog.text.count("a worker process died (killed by SIGKILL)") == 3
    assert re.search(r"client 2 in round 0: its worker .*fewer workers \(executor\.workers, now 2\).*left out", caplog.text)
    assert metrics["clients/dropped"] == metrics["clients/dropped/2"] == 1
    assert others["clients/dropped"] == 0 and "clients/dropped/2" not in others

    silent = replace(experiment, options=replace(experiment.options, fates=lambda client, clock: fate(client, clock)))

    def fate(client: int, clock: int) -> Fate:
        return Fate.SILENT if (client, clock) == (2, 0) else Fate.ANSWERS

    for (other, its), (mine, my) in zip(play(silent), [(state, metrics), (last, others)], strict=True):
        assert differences(mine, other) == []
        assert {k: v for k, v in without_times(my).items() if "clients/" not in k} == {
            k: v for k, v in without_times(its).items() if "clients/" not in k
        }


def test_a_client_whose_evidence_is_lost_is_dropped_from_it(tiny, play, mortal):
    experiment = tiny(*WHOLE)
    asked = []

    def fatal(method: str, job: Job) -> bool:
        asked.append(job)
        return method == "run" and bool(job.measure) and job.client == 3

    with mortal(experiment, fatal) as executor:
        ((_, metrics),) = play(experiment, executor, stop=1)
    assert metrics["clients/dropped"] == metrics["clients/dropped/3"] == 1
    assert metrics["prune/events"] == 1


@pytest.mark.parametrize("broken", ["stop", "drop"])
def test_when_everybody_is_lost_the_run_stops_unless_it_was_told_to_drop(broken, tiny, play, mortal, equal):
    experiment = tiny(f"federated.broken={broken}", "rounds=1")
    with mortal(experiment, training(0, 1, 2, 3)) as executor:
        if broken == "stop":
            with pytest.raises(RunError, match=r"fewer workers \(executor\.workers, now 2\).*federated\.broken=drop"):
                play(experiment, executor)
            return
        ((state, metrics),) = play(experiment, executor)
    assert metrics["clients/dropped"] == 2
    assert equal(state.server.params, state.init)


@pytest.mark.parametrize(
    ("overrides", "fatal"),
    [
        ((), lambda method, about: method == "evaluate"),
        ((*SNIP, "where=server", "where.proxy=100"), lambda method, job: method == "run" and job.client == SERVER),
    ],
    ids=["evaluation", "server evidence"],
)
def test_what_cannot_be_done_without_stops_the_run_with_what_to_do(overrides, fatal, tiny, play, mortal):
    experiment = tiny(*overrides, "eval_every=1", "federated.broken=drop")
    expected = r"worker process died.*fewer workers \(executor\.workers, now 2\) or executor=serial.*same command resumes"
    with mortal(experiment, fatal) as executor, pytest.raises(RunError, match=expected):
        play(experiment, executor)


# --- the executor alone ----------------------------------------------------------------------------------------------------


@pytest.fixture
def one() -> Iterator[Processes]:
    executor = Processes(Tasks, workers=1)  # type: ignore[arg-type]
    yield executor
    executor.close(now=True)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError, "Unable to allocate 2.91 TiB for an array"),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes. Error code 12"),
    ],
)
def test_a_worker_without_memory_is_replaced_by_one_that_may_have_it(error, message, one, tmp_path, caplog):
    assert list(one.map([("out_of_memory", (error, message, tmp_path / "note"))], [0])) == ["enough"]
    assert caplog.text.count("a worker process died (out of memory); its task is done again") == 2


def test_the_others_results_come_all_the_same(one, caplog):
    results = list(one.map([("count", ("a",)), ("end", ()), ("count", ("b",))], [1, 2, 3]))
    assert results[0][:2] == ("a", 1) and results[2][:2] == (
        "b",
        1,
    )  # the largest was done first, and the last by a fresh worker
    assert isinstance(results[1], Lost)
    assert "a worker process died (exit code 7)" in caplog.text


def test_no_more_is_begun_ahead_than_so_many_tasks_per_worker(one, monkeypatch):
    """Largest first alone would end with the first, whose result is asked for first: all others would wait for it."""
    monkeypatch.setattr(pool, "AHEAD", 4)
    number = 20
    results = list(one.map([("count", (place,)) for place in range(number)], range(number)))
    assert [place for place, *_ in results] == list(range(number))
    assert all(done <= place + 4 for place, done, _ in results)
    assert results[3][1] == 1  # the largest of the first four


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_now_does_not_wait_and_leaves_neither_process_nor_thread(workers):
    before, threads = set(multiprocessing.active_children()), threading.active_count()
    executor = Processes(Tasks, workers)  # type: ignore[arg-type]
    lasts = 300  # seconds; what is compared with it may take long on a busy machine
    results = executor.map([("count", ("short",)), *[("count", ("long", lasts))] * 5], [1, 0, 0, 0, 0, 0])
    assert next(results)[:2] == ("short", 1)
    started = time.monotonic()
    executor.close(now=True)
    assert time.monotonic() - started < lasts / 5
    assert set(multiprocessing.active_children()) == before
    assert threading.active_count() == threads
