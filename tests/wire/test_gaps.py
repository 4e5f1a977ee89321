"""Masks near their entropy: back again; against the Shannon bound, at random and with patterns; by hand; refused if damaged."""

import hashlib
import math

import numpy as np
import pytest
import torch

from fedprune.types import Mask
from fedprune.wire.codec import auto, bitmap, gaps
from fedprune.wire.gaps import ALIVE, BITS, BLOCKS, BYTES, DEAD, GAPS, HOLES, pack_gaps, unpack_gaps
from fedprune.wire.symbols import Reader, bits, counted, join, number
from helpers.symbols_by_hand import ByHand

SHAPE = (512, 3136)  # 1,605,632 weights: the largest layer of cnn_fedavg
DENSITIES = (0.5, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def entropy(size: int, living: int) -> float:
    """Bytes of a mask with so many living entries, anywhere: Shannon's bound for entries at random."""
    return sum(part * math.log2(size / part) for part in (living, size - living) if part) / 8


def bound(mask: Mask) -> float:
    return entropy(sum(alive.numel() for alive in mask.values()), sum(int(alive.sum()) for alive in mask.values()))


def at_random(shape: tuple[int, ...], density: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.asarray(np.random.default_rng(seed).random(shape) < density))


def runs(size: int, density: float, length: float) -> torch.Tensor:
    """Living entries in runs, of so many on average: a chain with two states, alive and dead."""
    random = np.random.default_rng(0)
    pairs = np.stack([random.geometric(density / (1 - density) / length, size), random.geometric(1 / length, size)])
    ends = pairs.T.reshape(-1).cumsum()
    flips = np.zeros(size + 1, np.int64)
    flips[ends[ends < size]] = 1
    return torch.from_numpy(flips.cumsum()[:size] % 2 == 1)


def back(mask: Mask) -> bytes:
    """The bytes of a mask, that were read again."""
    data = pack_gaps(mask)
    found = unpack_gaps(data, {name: alive.shape for name, alive in mask.items()})
    assert list(found) == list(mask)
    for name, alive in mask.items():
        assert found[name].dtype == torch.bool and torch.equal(found[name], alive)
    return data


# --- there and back --------------------------------------------------------------------------------------------------------


SHAPES = [(), (1,), (7,), (0, 4), (3, 0), (1, 1), (40, 1), (1, 40), (16, 3, 5, 5), (64, 100), (3, 2000)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.004, 0.1, 0.4, 0.6, 0.97, 1.0])
def test_masks_of_all_sizes_come_back(shape, density):
    for seed in range(3):
        back({"a": at_random(shape, density, seed), "b": at_random(shape[::-1], 1 - density, seed)})


def test_a_mask_of_nothing_is_nothing():
    assert back({}) == b""


def test_a_distance_beyond_every_table_is_exact():
    """2^24 is where float32 ends, and the chances of a symbol; a distance here is beyond it."""
    alive = torch.zeros(2**24 + 10, dtype=torch.bool)
    alive[[1, 2**24 + 6, 2**24 + 9]] = True
    assert len(back({"w": alive})) < 30


def test_a_mask_in_another_order_of_memory_comes_back_in_its_own():
    alive = at_random((300, 200), 0.1).t()
    assert back({"w": alive}) == back({"w": alive.contiguous()})


# --- against the bound -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", DENSITIES)
def test_at_random_a_mask_and_values_take_at_most_1_005_of_the_bound(density):
    mask = {"w": at_random(SHAPE, density)}
    values = {"w": torch.ones(SHAPE) * mask["w"]}
    living = int(mask["w"].sum())
    for codec in (gaps, auto):
        assert len(codec(values, mask)) < 1.005 * (bound(mask) + 4 * living)
    assert len(auto(values, mask, mask)) == 2 + 4 * living  # known: only the values
    assert 0.999 * bound(mask) < len(back(mask)) < 1.003 * bound(mask) + 30


def test_layers_of_unequal_density_cost_less_than_one_density_would():
    """2 x 200,000 entries, 19 % and 1 %: H(0.19) + H(0.01) is 0.7815 bits for two, and H(0.1) twice is 0.9380."""
    mask = {"a": at_random((400, 500), 0.19), "b": at_random((400, 500), 0.01)}
    assert len(back(mask)) < 0.84 * bound(mask)
    apart = sum(bound({name: alive}) for name, alive in mask.items())
    assert len(back(mask)) < 1.005 * apart + 60


@pytest.mark.parametrize("lines", ["rows", "columns", "both"])
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_dead_rows_and_columns_cost_a_bit_each(lines, density):
    """Half of the filters or neurons are dead, or of the channels (with 49 columns each), and the rest is at random."""
    alive = at_random(SHAPE, density, 1)
    living = alive.numel()
    if lines != "columns":
        alive, living = alive & at_random((SHAPE[0], 1), 0.5, 2), living / 2
    if lines != "rows":
        alive, living = alive & at_random((64,), 0.5, 3).repeat_interleave(49), living / 2
    data = back({"w": alive})
    within = int(alive.any(1).sum()) * int(alive.any(0).sum())
    assert len(data) < 1.006 * entropy(within, int(alive.sum())) + (SHAPE[0] + SHAPE[1]) / 8 + 60
    assert len(data) < 0.85 * bound({"w": alive})
    assert density < 1 or len(data) < 0.005 * bound({"w": alive})


def test_rows_and_columns_of_their_own_densities_cost_less_than_at_random():
    """Odds of rows and of columns that differ by factors of up to 64, as those of neurons and pixels do after training."""
    random = np.random.default_rng(0)
    odds = np.exp2(random.uniform(-3, 3, (300, 1)) + random.uniform(-3, 3, 784) - 4)
    alive = torch.from_numpy(random.random((300, 784)) < odds / (1 + odds))
    chance = odds / (1 + odds)
    true = -np.sum(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance)) / 8
    data = back({"w": alive})
    assert true < len(data) < 1.08 * true < 0.85 * bound({"w": alive})


@pytest.mark.parametrize(("density", "length"), [(0.5, 8), (0.1, 4), (0.01, 10)])
def test_runs_cost_what_a_chain_is_worth(density, length):
    """A chain of two states: after each living entry a run ends or not, after each dead one another begins or not."""
    alive = runs(400_000, density, length)
    living, begin = int(alive.sum()), int((alive[1:] & ~alive[:-1]).sum())
    data = back({"w": alive})
    assert len(data) < 1.02 * (entropy(living, begin) + entropy(400_000 - living, begin)) + 60
    assert len(data) < 0.7 * bound({"w": alive})


def test_blobs_cost_less_than_at_random():
    """Living entries crowd around 20 places of a matrix."""
    random = np.random.default_rng(0)
    places = random.integers((400, 1000), size=(20, 2))[:, None] + random.normal(0, 12, (20, 1500, 2))
    rows, columns = places.round().astype(int).reshape(-1, 2).T
    there = (rows >= 0) & (rows < 400) & (columns >= 0) & (columns < 1000)
    alive = torch.zeros(400, 1000, dtype=torch.bool)
    alive[rows[there], columns[there]] = True
    assert len(back({"w": alive})) < 0.75 * bound({"w": alive})


def test_two_of_four_cost_what_their_six_patterns_are_worth():
    random = np.random.default_rng(0)
    alive = torch.from_numpy(random.random((100_000, 4)).argsort(1) < 2).view(500, 800)
    patterns = 100_000 * math.log2(6) / 8
    assert patterns < len(back({"w": alive})) < 1.005 * patterns + 120
    assert patterns < 0.65 * bound({"w": alive})


@pytest.mark.parametrize("shape", [(5, 7), (10, 100), (20, 10, 5, 5), (300,)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.5, 0.9, 1.0])
def test_small_tensors_take_no_more_than_bits(shape, density):
    for seed in range(5):
        mask = {"a": at_random(shape, density, seed), "b": at_random(shape, density, seed + 10)}
        values = {name: alive.float() for name, alive in mask.items()}
        assert len(auto(values, mask)) <= len(bitmap(values, mask))
        assert len(back(mask)) <= sum(1 + -(-alive.numel() // 8) for alive in mask.values()) + 2  # a way and bits, each


# --- by hand ---------------------------------------------------------------------------------------------------------------


def told(ways: list, shape: tuple[int, ...]) -> torch.Tensor:
    return unpack_gaps(join(ways), {"w": torch.Size(shape)})["w"]


def test_ways_by_hand():
    assert not told([number(DEAD)], (3, 2)).any()
    assert told([number(ALIVE)], (3, 2)).all()
    assert told([number(BITS), bits(np.array([1, 0, 0, 1]))], (4,)).tolist() == [True, False, False, True]
    patterns = [number(BYTES), *counted(np.array([0b10000001, 0b11000000]))]
    assert told(patterns, (11,)).int().tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0]
    # The distances 1, 4, 6, 13: symbols 0, 3, 4 and 1 that follows, 8 and 00 that follow: the lowest of those with most first.
    steps = [number(4), *counted(np.array([0, 3, 4, 8])), bits(np.array([0, 1, 0]))]
    places = [0, 4, 10, 23]
    assert told([number(GAPS), *steps], (25,)).nonzero().flatten().tolist() == places
    assert (~told([number(HOLES), *steps], (25,))).nonzero().flatten().tolist() == places
    # Rows of the classes 0 1 0, columns of 1 0. Rows 0 and 2 have a dead last column, and a first of the bits 01; and row 1 ...
    blocks = [number(DEAD), number(BITS), bits(np.array([0, 1])), number(ALIVE), number(DEAD)]
    found = told([number(BLOCKS), *counted(np.array([0, 1, 0])), *counted(np.array([1, 0])), *blocks], (3, 2))
    assert found.tolist() == [[False, False], [False, True], [True, False]]


@pytest.mark.parametrize("density", [0.03, 0.95])
def test_whole_numbers_alone_read_the_same_mask(density):
    """A reader that shares nothing with the one that is tested: Python's numbers, one bit after the other."""
    alive = at_random((2000,), density)
    reader = ByHand(pack_gaps({"w": alive}))
    way, count = reader.number(), reader.number()
    symbols = reader.counted(count)
    numbers = [4 + symbol % 4 for symbol in symbols]
    follow, lowest = {index: symbol // 4 for index, symbol in enumerate(symbols)}, dict.fromkeys(range(count), 0)
    flags = []
    for place in range(max(follow.values())):
        flags += [(index, place) for index in sorted(follow, key=lambda i: -follow[i]) if follow[index] > place]
    for start in range(0, len(flags), 8):
        byte = reader.symbol([2**16] * 256)
        for offset, (index, place) in enumerate(flags[start : start + 8]):
            lowest[index] += (byte >> 7 - offset & 1) << place
    distances = [(n << follow[index]) + lowest[index] - 3 for index, n in enumerate(numbers)]
    rare = torch.zeros(2000, dtype=torch.bool)
    rare[torch.tensor(distances).cumsum(0) - 1] = True
    assert way == (GAPS if density < 0.5 else HOLES)
    assert torch.equal(rare if way == GAPS else ~rare, alive)


def test_a_mask_is_these_bytes():
    """They must be the same on every machine, and in a later version: all ways, and no random numbers."""
    line = torch.arange(60_000)
    crossed, sparse = (line * line % 7919 < 700).view(200, 300), line * line % 7919 < 80
    blocks = crossed & (torch.arange(200) % 3 > 0).view(200, 1) & (torch.arange(300) % 5 > 1)
    mask = {"gaps": sparse, "holes": ~sparse, "blocks": blocks, "bits": line[:40] % 3 == 0, "bytes": line % 8 < 5}
    mask |= {"dead": line < 0, "alive": line >= 0}
    data = back(mask)
    assert (len(data), hashlib.sha256(data).hexdigest()[:16]) == GOLDEN
    ways = [Reader(pack_gaps({name: alive})).number() for name, alive in mask.items()]
    assert ways == [GAPS, HOLES, BLOCKS, BITS, BYTES, DEAD, ALIVE]


GOLDEN = (2851, "0317bb0c9ab39afc")
"""Length, and the beginning of the SHA-256."""


# --- damage ----------------------------------------------------------------------------------------------------------------


DAMAGED = {
    "gaps": {"w": at_random((60, 50), 0.05)},
    "holes": {"w": at_random((60, 50), 0.95)},
    "blocks": {"w": at_random((60, 50), 0.5) & at_random((60, 1), 0.5, 1) & at_random((50,), 0.5, 2)},
    "bits": {"w": at_random((20, 5), 0.5)},
    "bytes": {"w": torch.arange(3000).view(60, 50) % 8 < 5},
}


def survives(data: bytes, shapes: dict[str, torch.Size]) -> bool:
    """Whether the bytes are read: as a mask of these shapes, or else refused with ValueError."""
    try:
        mask = unpack_gaps(data, shapes)
    except ValueError:
        return False
    assert {name: alive.shape for name, alive in mask.items()} == shapes
    assert all(alive.dtype == torch.bool for alive in mask.values())
    return True


@pytest.mark.parametrize("name", sorted({*DAMAGED} - {"bits"}))  # of which few may happen to be another mask's
def test_cut_or_lengthened_bytes_are_refused_at_every_length(name):
    shapes = {key: alive.shape for key, alive in DAMAGED[name].items()}
    data = pack_gaps(DAMAGED[name])
    assert survives(data, shapes)
    assert not any(survives(data[:length], shapes) for length in range(1, len(data)))
    assert not any(survives(data + bytes([1] * more), shapes) for more in (1, 4, 100))


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_bytes_are_refused_or_read_as_something_and_never_crash(name):
    shapes = {key: alive.shape for key, alive in DAMAGED[name].items()}
    data = pack_gaps(DAMAGED[name])
    assert survives(data, shapes)
    random = np.random.default_rng(0)
    for place in random.integers(len(data), size=60):
        for bit in range(8):
            garbled = bytearray(data)
            garbled[place] ^= 1 << bit
            survives(bytes(garbled), shapes)  # what is damaged on its way is for the message's checksum to notice


def test_an_encoding_of_a_larger_network_is_refused():
    data = pack_gaps(DAMAGED["gaps"])
    assert not any(survives(data, {"w": torch.Size(shape)}) for shape in [(60, 40), (500,), (1,), (0, 4)])


PLACES = [*counted(np.array([0, 1])), bits(np.empty(0, bool))]
CRAFTED = {
    "a way that is none": [number(7)],
    "blocks within blocks": [number(BLOCKS), *counted(np.zeros(4, int)), *counted(np.zeros(5, int)), number(BLOCKS)],
    "no places": [number(GAPS), number(0)],
    "more places than half of all": [number(GAPS), number(11), *counted(np.zeros(11, int))],
    "more places than there is memory": [number(HOLES), number(2**60)],
    "a place past the end": [number(GAPS), number(2), *counted(np.array([17, 0])), bits(np.zeros(4, bool))],
    "a distance past all ends": [number(GAPS), number(2), *counted(np.array([0, 255]))],
    "too many classes": [number(BLOCKS), *counted(np.array([0, 0, 0, 16])), *counted(np.zeros(5, int))],
    "a class of no row": [
        *(number(BLOCKS), *counted(np.array([0, 0, 0, 2])), *counted(np.zeros(5, int))),
        *(number(DEAD), number(GAPS), number(1)),
    ],
    "something after the end": [number(GAPS), number(2), *PLACES, number(1)],
}


@pytest.mark.parametrize("name", CRAFTED)
def test_sound_symbols_that_are_no_mask_are_refused(name):
    shapes = {"w": torch.Size((4, 5))}
    assert survives(join([number(GAPS), number(2), *PLACES]), shapes)
    assert not survives(join(CRAFTED[name]), shapes)


def test_blocks_of_what_has_no_rows_are_refused():
    for shape in [(20,), (), (0, 4)]:
        assert not survives(join([number(BLOCKS), *counted(np.zeros(4, int))]), {"w": torch.Size(shape)})
