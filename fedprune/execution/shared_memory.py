"""Objects between two processes: through a pipe, but their large arrays through shared memory.

A pipe passes on 64 KB at a time, and wakes both ends for each; shared memory is written once. An array that the thing before
this one had in the same place lies there already: what many tasks have in common crosses once.
"""

from __future__ import annotations

import itertools
import mmap
import pickle
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from fedprune.wire.frame import Piece, array

LEAST = 2**16
"""Bytes; smaller arrays go through the pipe."""

ROOM = 2**28
"""Bytes of the memory for one direction. Pages that are never written take none. Arrays that do not fit go through the pipe."""

ALIGNED = 64


def room() -> mmap.mmap | None:
    """Return memory that this process shares with those that it forks; None if the system gives none."""
    try:
        return mmap.mmap(-1, ROOM)
    except (OSError, ValueError):
        return None


def to_itself(room: mmap.mmap | None) -> None:
    """Keep this memory from processes that are forked from now on: they would hold it after it is given up."""
    if room is not None and hasattr(mmap, "MADV_DONTFORK"):
        room.madvise(mmap.MADV_DONTFORK)


class Sender:
    """The sending end. An array that is sent again from the same address must have the same bytes as before."""

    def __init__(self, pipe: Connection, room: mmap.mmap | None):
        self._pipe, self._room = pipe, room
        self._lying: list[np.ndarray] = []  # what is in the room; held, so that nothing else can come to lie at its address

    def send(self, thing: object) -> None:
        """Send an object whose arrays nobody changes any more."""
        large: list[np.ndarray] = []
        body = pickle.dumps(thing, 5, buffer_callback=lambda buffer: not self._taken(array(buffer.raw()), large))
        spans = _spans(large)
        there = sum(1 for _ in itertools.takewhile(lambda pair: same(*pair), zip(large, self._lying, strict=False)))
        for new, (start, stop) in zip(large[there:], spans[there:], strict=True):
            assert self._room is not None, "without shared memory no array is taken"
            self._room[start:stop] = new.data
        self._lying = large
        self._pipe.send((body, spans))

    def _taken(self, new: np.ndarray, large: list[np.ndarray]) -> bool:
        """Return whether an array fits into the shared memory; it is then appended to `large`."""
        fits = self._room is not None and len(new) >= LEAST and _spans([*large, new])[-1][1] <= len(self._room)
        if fits:
            large.append(new)
        return fits


class Receiver:
    """The receiving end. hold: makes the buffer of an array: a copy, or the memory itself, which the next object overwrites.
    Nobody may write to the memory itself, since its sender relies on its content."""

    def __init__(self, pipe: Connection, room: mmap.mmap | None, hold: Callable[[memoryview], Piece]):
        self._pipe, self._room, self._hold = pipe, memoryview(room) if room else memoryview(b""), hold

    def receive(self) -> Any:
        """Return the next object. Raises EOFError and OSError if none can come."""
        body, spans = self._pipe.recv()
        return pickle.loads(body, buffers=[self._hold(self._room[start:stop]) for start, stop in spans])


def _spans(arrays: Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """Return (start, stop) of each array in the shared memory, one after the other."""
    place, spans = 0, []
    for each in arrays:
        spans.append((place, place + len(each)))
        place += -(-len(each) // ALIGNED) * ALIGNED
    return spans


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether these are the same bytes of this process's memory."""
    return one.ctypes.data == other.ctypes.data and len(one) == len(other)
