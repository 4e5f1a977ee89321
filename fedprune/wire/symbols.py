"""Symbols <-> bytes, near their entropy, by asymmetric numeral systems (Duda 2009) as in `constriction` (Bamler 2022).

A message is a list of steps, and is read step by step in the same order: numbers and bits, which are sent as they are, and
symbols under a table of how often each of them occurs. The table goes first: the size of the alphabet, then for each symbol the
level of its count c,

    0 if c = 0, else 1 + the nearest integer to 2 log2(c)

as a difference from the level before (before the first it is twice the bit length of the number of symbols); what is rounded
away costs 0.007 bits a symbol. From the levels on everything is whole numbers, so that every machine reads the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from constriction import stream

PRECISION = 24  # bits of a probability, in constriction
LEVELS = 64  # counts below 2^32
LARGEST = 256  # alphabet


class Step(NamedTuple):
    """Symbols, the model that they are coded under, and the bits that this takes."""

    symbols: np.ndarray
    model: stream.model.Model
    cost: float


def join(steps: Sequence[Step]) -> bytes:
    """Return the steps as bytes."""
    coder = stream.stack.AnsCoder()
    for step in reversed(steps):  # what is written last is read first
        coder.encode_reverse(step.symbols, step.model)
    words: np.ndarray = coder.get_compressed()
    return words.astype("<u4").tobytes().rstrip(b"\0")


def cost(steps: Sequence[Step]) -> float:
    """Return the bits that these steps take."""
    return sum(step.cost for step in steps)


def number(value: int) -> Step:
    """Return the step of a whole number from 0: seven bits a byte, the lowest first; the eighth tells whether more follow."""
    parts = [value >> place & 127 for place in range(0, max(1, value.bit_length()), 7)]
    return _bytes(np.array([part | 128 for part in parts[:-1]] + parts[-1:]))


def bits(flags: np.ndarray) -> Step:
    """Return the step of zeros and ones, one bit each, up to a whole byte."""
    return _bytes(np.packbits(flags))


def counted(symbols: np.ndarray) -> list[Step]:
    """Return the steps of symbols from 0 (at least one), with the table of their counts before them."""
    counts = np.bincount(symbols, minlength=2)
    levels = np.where(counts > 0, 1 + np.rint(2 * np.log2(np.maximum(counts, 1))), 0).astype(np.int64)
    table, chances = np.diff(levels, prepend=_before(len(symbols))) + LEVELS, _chances(levels)
    shown = float(np.sum(PRECISION - np.log2(STEPS[table])))
    taken = float(np.sum(counts * (PRECISION - np.log2(chances))))
    steps = [Step(table.astype(np.int32), _model(STEPS), shown), Step(symbols.astype(np.int32), _model(chances), taken)]
    return [number(len(levels)), *steps]


class Reader:
    """Reads the steps that `join` wrote, in the same order. Raises ValueError on bytes that `join` does not write."""

    def __init__(self, data: bytes | memoryview):
        if data[-1:] == b"\0":
            raise ValueError("symbols that end with a zero byte")
        padded = bytes(data) + bytes(-len(data) % 4)
        self._coder = stream.stack.AnsCoder(np.frombuffer(padded, "<u4").astype(np.uint32))

    def number(self) -> int:
        """Read a whole number."""
        value = 0
        for place in range(0, 63, 7):
            byte = int(self._coder.decode(BYTE))
            value |= (byte & 127) << place
            if byte < 128:
                return value
        raise ValueError("a number without an end")

    def bits(self, count: int) -> np.ndarray:
        """Read so many zeros and ones, as bool."""
        packed: np.ndarray = self._coder.decode(BYTE, -(-count // 8))
        return np.unpackbits(packed.astype(np.uint8), count=count).view(np.bool_)

    def counted(self, count: int) -> np.ndarray:
        """Read so many symbols, as int32, with their table before them."""
        size = self.number()
        if not 2 <= size <= LARGEST:
            raise ValueError(f"a table of {size} symbols")
        levels = _before(count) + np.cumsum(self._coder.decode(_model(STEPS), size) - LEVELS)
        if not (levels.min() >= 0 < levels.max() <= LEVELS):
            raise ValueError("a table of counts that are none")
        symbols: np.ndarray = self._coder.decode(_model(_chances(levels)), count)
        return symbols

    def end(self) -> None:
        """Raise ValueError if there are more bytes, which were not written by the steps that were read."""
        if not self._coder.is_empty():
            raise ValueError("more than was written, or less")


def _bytes(values: np.ndarray) -> Step:
    return Step(values.astype(np.int32), BYTE, 8 * len(values))


def _before(count: int) -> int:
    return 2 * count.bit_length()


def _chances(levels: np.ndarray) -> np.ndarray:
    """Return the share of 2^24 of each symbol: at least 1, else in proportion to 2^(level / 2), by whole numbers alone."""
    top = int(levels.max())
    weights = np.array([math.isqrt(1 << max(0, 48 + level - top)) if level else 0 for level in levels.tolist()])
    free = (1 << PRECISION) - len(levels)
    shares = weights * free // weights.sum()
    shares[shares.argmax()] += free - shares.sum()
    chances: np.ndarray = shares + 1
    return chances


def _model(chances: np.ndarray) -> stream.model.Model:
    """Return the model with exactly these chances: `constriction` adds 1 to each number it is given, and scales by 1.0 here."""
    return stream.model.Categorical((chances - 1).astype(np.float64), perfect=False)


BYTE = stream.model.Uniform(256)
STEPS = _chances(np.array([max(1, 2 * LEVELS - 2 * abs(step)) for step in range(-LEVELS, LEVELS + 1)]))
"""The chance of a difference between two levels in a row, halved for every step."""
