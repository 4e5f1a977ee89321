"""What every executor with several workers keeps: test_execution.py and test_ray.py run these tests on theirs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fedprune.execution import Executor, Task, pool
from fedprune.execution.worker import Factory

# Evidence from clients, an exchange of units, BatchNorm tensors that stay with the client, dropout-free but shuffled batches.
RIGL = ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "rounds=4", "when.stop=1", "federated.cohort=3")
BATCHNORM = ("model=resnet20", "model.norm=batch", "federated.batchnorm=local", "local.steps=1", "rounds=2", "criterion=snip")
BATCHNORM += ("how_often=one_shot",)
VOLATILE = ("time/train_s", "time/round_s")


class Tasks:
    """Stands in for a ClientRound. `count` says how many tasks this worker did, with this one, and who it is."""

    def __init__(self) -> None:
        self.done = 0

    def count(self, name: Any = None, seconds: float = 0.0) -> tuple[Any, int, int]:
        time.sleep(seconds)
        self.done += 1
        return name, self.done, os.getpid()

    def threads(self) -> int:
        return torch.get_num_threads()

    def fail(self, message: str) -> None:
        raise ValueError(message)

    def unsent(self) -> Any:
        return lambda: None

    def strange(self) -> None:
        class Strange(Exception):
            pass

        raise Strange("not to be found from elsewhere")

    def out_of_memory(self, error: type[Exception], message: str, note: Path, times: int = 2) -> str:
        with open(note, "a") as file:
            file.write(".")
        if note.stat().st_size <= times:
            raise error(message)
        return "enough"

    def end(self) -> None:
        os._exit(7)


def nothing_to_begin_with() -> Any:
    """A factory that cannot make what it is to make."""
    raise ValueError("there is no such network")


def tasks(*names: str) -> list[Task]:
    return [("count", (name, 0.02)) for name in names]


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key not in VOLATILE}


def assert_same(played, reference, differences) -> None:
    assert len(played) == len(reference)
    for (state, metrics), (other, others) in zip(played, reference, strict=True):
        assert differences(state, other) == []
        assert without_times(metrics) == without_times(others)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def gone(pid: int) -> bool:
    """Whether there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class Contract:
    """The tests. option: what is typed for it; begin: (factory, workers) -> the executor."""

    option: ClassVar[str]
    begin: ClassVar[Callable[[Factory, int], Executor]]

    @pytest.fixture(params=[1, 2, 3])
    def workers(self, request) -> int:
        """How many workers a whole run has."""
        return request.param

    @pytest.fixture(scope="class")
    def serial(self, tiny, play) -> dict[tuple[str, ...], Any]:
        """What one process, client after client, makes of each experiment."""
        return {overrides: play(tiny(*overrides)) for overrides in (RIGL, BATCHNORM)}

    @pytest.fixture(scope="class")
    def one(self) -> Iterator[Executor]:
        """An executor with one worker, who may have done tasks before."""
        executor = type(self).begin(Tasks, 1)
        yield executor
        executor.close(now=True)

    @pytest.mark.parametrize("overrides", [RIGL, BATCHNORM], ids=["rigl", "batchnorm"])
    def test_a_run_gives_what_one_process_gives_bit_for_bit(self, overrides, workers, tiny, play, serial, differences):
        played = play(tiny(*overrides, f"executor={self.option}", f"executor.workers={workers}"))
        assert_same(played, serial[overrides], differences)

    def test_answers_come_in_the_order_of_the_tasks_and_the_largest_start_first(self, one):
        answers = list(one.map(tasks("a", "b", "c", "d"), [3, 50, 10, 20]))
        assert [name for name, *_ in answers] == ["a", "b", "c", "d"]
        assert [name for name, *_ in sorted(answers, key=lambda answer: answer[1])] == ["b", "d", "c", "a"]

    def test_each_worker_has_one_thread(self, one):
        assert list(one.map([("threads", ())], [0])) == [1]

    def test_a_mistake_in_a_task_is_raised_with_the_place_where_it_was_made_and_the_worker_goes_on(self, one):
        ((_, before, _),) = one.map(tasks("a"), [0])
        with pytest.raises(ValueError, match="no such thing") as caught:
            list(one.map([("fail", ("no such thing",))], [0]))
        assert "in fail\n    raise ValueError(message)" in caught.value.__notes__[0]
        with pytest.raises(RuntimeError, match="Strange: not to be found from elsewhere"):
            list(one.map([("strange", ())], [0]))
        with pytest.raises(Exception, match="lambda"):
            list(one.map([("unsent", ())], [0]))
        ((_, after, _),) = one.map(tasks("b"), [0])
        assert after == before + 1

    def test_workers_that_die_are_replaced_and_what_they_did_is_done_again(self, one, monkeypatch, tmp_path, caplog):
        monkeypatch.setattr(pool, "GRACE", 0.0)
        ((_, _, killed),) = one.map(tasks("a"), [0])
        os.kill(killed, signal.SIGKILL)
        ((name, done, worker),) = one.map(tasks("b"), [0])
        assert (name, done) == ("b", 1) and worker != killed and gone(killed)
        no_memory = ("out_of_memory", (MemoryError, "Unable to allocate 2.91 TiB", tmp_path / "note", 1))
        assert list(one.map([no_memory], [0])) == ["enough"]
        assert wait_for(lambda: gone(worker))
        assert caplog.text.count("a worker process died (") == caplog.text.count("); its task is done again") == 2

    def test_closing_now_leaves_no_worker_and_does_not_touch_those_of_another_executor(self, one):
        ((_, before, kept),) = one.map(tasks("a"), [0])
        closed = type(self).begin(Tasks, 1)
        ((_, _, worker),) = closed.map(tasks("b"), [0])
        assert not gone(worker)
        closed.close(now=True)
        assert wait_for(lambda: gone(worker))
        assert list(one.map(tasks("c"), [0])) == [("c", before + 1, kept)]
        closed.close()  # once more does no harm

    def test_closing_now_does_not_wait_for_what_is_being_done(self):
        executor = type(self).begin(Tasks, 1)
        results = executor.map([("count", ("short",)), *[("count", ("long", 600))] * 5], [1, 0, 0, 0, 0, 0])
        assert next(results)[0] == "short"
        executor.close(now=True)  # would be there for ten minutes

    def test_what_a_worker_cannot_begin_with_is_told(self):
        with pytest.raises(ValueError, match="no such network"):  # noqa: PT012
            executor = type(self).begin(nothing_to_begin_with, 1)
            try:
                list(executor.map(tasks("a"), [0]))
            finally:
                executor.close()
