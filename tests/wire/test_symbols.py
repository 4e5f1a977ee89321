"""Symbols under tables: back again, at their entropy, the same to a reader of whole numbers alone, and refused if damaged."""

import numpy as np
import pytest

from fedprune.wire.symbols import LEVELS, STEPS, Reader, Step, _chances, _model, bits, cost, counted, join, number
from helpers.symbols_by_hand import ByHand, chances


def entropy(counts: np.ndarray) -> float:
    """Bits of so many of each symbol, in any order: sum of c log2(n / c)."""
    present = counts[counts > 0]
    return float(np.sum(present * np.log2(counts.sum() / present)))


DRAWN = {
    "one symbol": lambda random: np.zeros(50, int),
    "another alone": lambda random: np.full(7, 200),
    "two": lambda random: (random.random(1000) < 0.02).astype(int),
    "geometric": lambda random: random.geometric(0.1, 5000) - 1,
    "uniform": lambda random: random.integers(0, 256, 4000),
    "far apart": lambda random: random.choice([0, 3, 250], 999, p=[0.001, 0.9, 0.099]),
    "a single one": lambda random: np.array([5]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_symbols_come_back_at_their_entropy_and_a_table(name):
    symbols = DRAWN[name](np.random.default_rng(0)) % 256
    steps = counted(symbols)
    data = join(steps)
    reader = Reader(data)
    assert reader.counted(len(symbols)).tolist() == symbols.tolist()
    reader.end()
    counts = np.bincount(symbols)
    table = 8 * 2 + 20 * np.count_nonzero(counts) + 2 * len(counts)
    assert cost(steps) - 16 < 8 * len(data) < cost(steps) + 64
    assert entropy(counts) - 1 < cost(steps) < entropy(counts) + 0.015 * len(symbols) + table


@pytest.mark.parametrize("name", DRAWN)
def test_whole_numbers_alone_read_the_same(name):
    symbols = DRAWN[name](np.random.default_rng(1)) % 256
    reader = ByHand(join([number(300), *counted(symbols), number(0), *counted(symbols[::-1])]))
    assert reader.number() == 300
    assert reader.counted(len(symbols)) == symbols.tolist()
    assert reader.number() == 0
    assert reader.counted(len(symbols)) == symbols[::-1].tolist()
    assert reader.state == 0 and not reader.words


def test_symbols_are_these_bytes():
    """They must be the same on every machine, and in a later version: 8 zeros, 4 ones, 2 twos, 1 three; 300; three bits."""
    data = join([*counted(np.array([0, 1, 0, 2, 0, 1, 0, 3, 0, 1, 0, 2, 0, 1, 0])), number(300), bits(np.array([1, 0, 1]))])
    assert data.hex() == GOLDEN


GOLDEN = "2f7286330ccf04495d7526"


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**31, 2**62])
def test_numbers_take_a_byte_for_every_seven_bits(value):
    reader = Reader(join([number(value), number(7)]))
    assert reader.number() == value and reader.number() == 7
    assert number(value).cost == 8 * max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_bits_take_a_bit_each_up_to_a_byte(count):
    flags = np.random.default_rng(count).random(count) < 0.3
    data = join([bits(flags), number(99)])
    assert len(data) <= -(-count // 8) + 1 + 2  # the last to be written is the first for the coder, and takes three bytes
    reader = Reader(data)
    found = reader.bits(count)
    assert found.dtype == bool and found.tolist() == flags.tolist() and reader.number() == 99
    reader.end()


def test_what_was_not_written_is_refused():
    reader = Reader(join([number(3)]))
    with pytest.raises(ValueError, match="more than was written"):
        reader.end()
    with pytest.raises(ValueError, match="end with a zero byte"):
        Reader(join([number(3)]) + b"\0")
    with pytest.raises(ValueError, match="without an end"):
        Reader(join([bits(np.ones(80, bool))])).number()


@pytest.mark.parametrize("size", [0, 1, 257, 2**40])
def test_tables_of_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"a table of {size} symbols"):
        Reader(join([number(size)])).counted(5)


@pytest.mark.parametrize("steps", [(-2, 0), (-3, 9), (0, -3), (63, 0)])
def test_counts_that_are_none_are_refused(steps):
    """Of one symbol: its bit length is 1, and the first step is from 2. Levels: all 0; below it; below it; above 64."""
    table = Step(np.array(steps, np.int32) + LEVELS, _model(STEPS), 0.0)
    with pytest.raises(ValueError, match="counts that are none"):
        Reader(join([number(2), table])).counted(1)


@pytest.mark.parametrize("levels", [(1, 0), (0, 64, 0), (1, 2, 3, 4), (3,) * 256, (64, *(0,) * 254, 1)])
def test_chances_are_whole_and_nothing_is_impossible(levels):
    found = _chances(np.array(levels))
    assert found.tolist() == chances(list(levels))
    assert found.sum() == 2**24 and found.min() >= 1
