"""Where clients run cannot be seen in a result: serial, processes, any number of workers, forked or spawned, any order."""

from __future__ import annotations

import multiprocessing
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from fedprune import execution as executor
from fedprune.data.batches import Slice
from fedprune.errors import ConfigError
from fedprune.execution import Processes, Serial, Task, auto, available_cores, employed, processes
from helpers.contract import BATCHNORM, RIGL, Contract, Tasks, assert_same, tasks

pytestmark = pytest.mark.slow


class Shuffled:
    """Does its tasks in another order than they are asked for, and answers in theirs."""

    def __init__(self, inner: Serial, seed: int):
        self._inner, self._random = inner, random.Random(seed)

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
        places = list(range(len(tasks)))
        self._random.shuffle(places)
        done = {place: next(self._inner.map([tasks[place]], [sizes[place]])) for place in places}
        return iter([done[place] for place in range(len(tasks))])

    def close(self, now: bool = False) -> None:
        self._inner.close(now)


@pytest.fixture(scope="module")
def serial(tiny, play):
    """What one process, client after client, makes of each experiment."""
    return {overrides: play(tiny(*overrides)) for overrides in (RIGL, BATCHNORM)}


class TestProcesses(Contract):
    option = "processes"
    begin = Processes


@pytest.mark.parametrize("overrides", [RIGL, BATCHNORM], ids=["rigl", "batchnorm"])
@pytest.mark.parametrize("cores", [1, 2])
def test_auto_gives_what_one_process_gives_bit_for_bit(cores, overrides, tiny, play, serial, differences, monkeypatch):
    monkeypatch.setattr(executor, "available_cores", lambda: cores)
    assert_same(play(tiny(*overrides, "executor=auto")), serial[overrides], differences)


def test_a_spawned_process_gives_what_one_process_gives_bit_for_bit(tiny, play, serial, differences):
    played = play(tiny(*RIGL, "executor=processes", "executor.workers=1", "executor.start=spawn"))
    assert_same(played, serial[RIGL], differences)


@pytest.mark.parametrize("overrides", [RIGL, BATCHNORM], ids=["rigl", "batchnorm"])
def test_the_order_in_which_clients_run_cannot_be_seen(overrides, tiny, play, serial, differences):
    experiment = tiny(*overrides)
    for seed in (1, 2):
        assert_same(play(experiment, Shuffled(experiment.executor(), seed)), serial[overrides], differences)


@pytest.mark.parametrize("workers", [1, 3, None])
def test_workers_are_as_many_as_asked_or_as_cores_and_are_gone_when_closed(workers):
    before = children()
    executor = Processes(Tasks, workers)  # type: ignore[arg-type]
    try:
        answers = list(executor.map(tasks(*"abcdefghijkl"), [0] * 12))
        assert len(children() - before) == (workers or available_cores())
        assert {worker for *_, worker in answers} <= children() - before
    finally:
        executor.close()
    assert children() == before


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


@pytest.mark.parametrize(("platform", "method"), [("linux", "fork"), ("darwin", "spawn"), ("win32", "spawn")])
def test_workers_are_spawned_where_they_cannot_be_forked_safely(platform, method, monkeypatch):
    asked, get_context = [], multiprocessing.get_context
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(multiprocessing, "get_context", lambda name: (asked.append(name), get_context(name))[1])
    Processes(Tasks, workers=1).close()  # type: ignore[arg-type]
    assert asked == [method]


def test_what_the_workers_own_never_travels(tiny, play):
    """Tasks are bytes, numpy arrays and plain values: a module or a tensor would become memory shared between workers."""
    experiment = tiny(*BATCHNORM)
    seen: list[object] = []

    class Spy(Serial):
        def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
            for (_, arguments), answer in zip(tasks, super().map(tasks, sizes), strict=True):
                seen.extend([*arguments, *answer])
                yield answer

    play(experiment, Spy(lambda: experiment.executor()._client_round))
    assert {type(part) for thing in seen for part in parts_of(thing)} == {bytes, np.ndarray, Slice, float}


def parts_of(thing: object) -> list[object]:
    """What lies in dicts and tuples, however deep."""
    if not isinstance(thing, dict | tuple) or hasattr(thing, "_fields"):
        return [thing]
    return [part for inner in (thing.values() if isinstance(thing, dict) else thing) for part in parts_of(inner)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("executor=processes", "executor.workers=0"), "executor.workers=0 must be at least 1"),
        (("executor=processes", "executor.start=threads"), "executor.start=threads is not to be had here: choose one of"),
        (("executor=auto", "executor.workers=0"), "executor.workers=0 must be at least 1"),
        (("executor=auto", "federated.cohort=1", "executor.workers=-1"), "executor.workers=-1 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(override, message, tiny):
    with pytest.raises(ConfigError, match=message):
        tiny(*override).executor()


class Chooser:
    """Stands in for a ClientRound that asks what `auto` would choose where it is."""

    def choice(self, *arguments: int) -> str:
        return chosen(*arguments)


def chosen(*arguments: int) -> str:
    """What `auto` chooses, and how many workers it begins with."""
    before = len(children())
    with employed(auto(Chooser, *arguments)) as made:
        return f"{type(made).__name__} {len(children()) - before}"


@pytest.mark.parametrize(
    ("cores", "cohort", "workers", "choice"),
    [
        (3, 5, None, "Processes 3"),
        (3, 2, None, "Processes 3"),  # evaluation takes all of them
        (3, 1, None, "Serial 0"),
        (1, 5, None, "Serial 0"),
        (1, 5, 2, "Processes 2"),  # who asks for them gets them
        (3, 5, 1, "Serial 0"),
        (3, 1, 2, "Serial 0"),
    ],
)
def test_auto_takes_processes_for_several_clients_on_several_cores(cores, cohort, workers, choice, monkeypatch):
    monkeypatch.setattr(executor, "available_cores", lambda: cores)
    monkeypatch.setattr(processes, "available_cores", lambda: cores)
    assert chosen(cohort, workers) == choice


def test_auto_takes_no_more_cores_within_a_process_that_shares_them_with_others(monkeypatch):
    monkeypatch.setattr(executor, "available_cores", lambda: 3)
    with employed(Processes(Chooser, workers=1)) as made:  # type: ignore[arg-type]
        assert list(made.map([("choice", (5,))], [0])) == ["Serial 0"]


def test_an_executor_is_closed_when_its_use_ends_and_at_once_when_it_ends_badly():
    closed: list[bool] = []

    class Noted(Serial):
        def close(self, now: bool = False) -> None:
            closed.append(now)

    with employed(Noted(Tasks)):
        assert closed == []
    with pytest.raises(KeyboardInterrupt), employed(Noted(Tasks)):
        raise KeyboardInterrupt
    assert closed == [False, True]
