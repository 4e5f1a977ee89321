"""Shared memory: what is sent arrives, whatever its size and whether there is any; what is the same crosses once."""

import mmap
import multiprocessing
import random

import numpy as np
import pytest

from fedprune.execution import shared_memory
from fedprune.execution.shared_memory import LEAST, Receiver, Sender

pytestmark = pytest.mark.slow


def ends(size: int | None, hold=bytearray) -> tuple[Sender, Receiver, mmap.mmap | None]:
    """A sender and a receiver within this process, with shared memory of so many bytes."""
    theirs, ours = multiprocessing.Pipe(duplex=False)
    room = None if size is None else mmap.mmap(-1, size)
    return Sender(ours, room), Receiver(theirs, room, hold), room


def things() -> list:
    generator = np.random.default_rng(0)
    large, small = generator.integers(0, 256, 3 * LEAST, np.uint8), np.arange(5.0)
    tensors = {"w": generator.random((300, 100), np.float32), "b": np.zeros(3, np.int64), "t": generator.random((200, 200)).T}
    return [None, ("run", (small, b"x" * 10)), (large, large[: 2 * LEAST], "text", tensors), (tensors, large), {"a": large[1:]}]


def equal(one, other) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("size", [None, LEAST // 2, 4 * LEAST, 100 * LEAST])
def test_things_arrive_as_they_were_sent_in_any_order(size, monkeypatch):
    """Small ones fit into a pipe; a pipe of this process alone cannot take a large one, so that there is always a room."""
    sent = things() if size and size > 50 * LEAST else things()[:2]
    sender, receiver, _ = ends(size)
    for seed in range(5):
        for thing in random.Random(seed).sample(sent, len(sent)):
            sender.send(thing)
            assert equal(receiver.receive(), thing)


def test_an_array_that_lies_there_is_not_written_again_and_any_other_is():
    sender, receiver, room = ends(100 * LEAST)
    shared = np.full(2 * LEAST, 7, np.uint8)
    for number in range(3):
        own = np.full(LEAST, number, np.uint8)
        sender.send((shared, own))
        assert equal(receiver.receive(), (shared, own))
    room[0] = 9  # had it been written once more, this would be gone
    sender.send((np.frombuffer(shared, np.uint8), b""))
    got, _ = receiver.receive()
    assert got[0] == 9 and got[1] == 7
    sender.send((shared.copy(), b""))
    got, _ = receiver.receive()
    assert got[0] == 7


def test_what_is_held_is_a_copy_or_the_memory_itself():
    for hold, after in ((bytearray, 1), (memoryview, 2)):
        sender, receiver, _ = ends(10 * LEAST, hold)
        sender.send(np.full(LEAST, 1, np.uint8))
        first = receiver.receive()
        sender.send(np.full(LEAST, 2, np.uint8))
        receiver.receive()
        assert first[0] == after


class Echo:
    """Stands in for a ClientRound."""

    def back(self, *things):
        return things


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("room", [shared_memory.ROOM, LEAST, None])
def test_there_and_back_between_processes(start, room, monkeypatch):
    from fedprune.execution import Processes

    monkeypatch.setattr(shared_memory, "ROOM", room or 0)  # of 0 bytes there is none: mmap refuses
    executor = Processes(Echo, workers=1, start=start)  # type: ignore[arg-type]
    try:
        sent = things()
        for thing, back in zip(sent, executor.map([("back", (thing,)) for thing in sent], range(len(sent))), strict=True):
            assert equal(back, (thing,))
    finally:
        executor.close()


def test_what_a_worker_sends_back_as_it_came_is_that_of_this_task():
    """It lies at the same address in every task."""
    from fedprune.execution import Processes

    executor = Processes(Echo, workers=1, start="fork")  # type: ignore[arg-type]
    try:
        sent = [np.full(LEAST, float(number)) for number in range(4)]
        back = executor.map([("back", (array,)) for array in sent], range(4))
        assert all(equal(got, (array,)) for got, array in zip(back, sent, strict=True))
    finally:
        executor.close()
