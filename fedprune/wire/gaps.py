"""A mask <-> bytes near its entropy: the gaps between the living, under a table of how often each occurs.

Each tensor is told in the cheapest of these ways, which goes first:

    DEAD, ALIVE     all of it
    BITS            a bit for each entry
    BYTES           eight entries together, under a table of how often each of the 256 patterns occurs
    GAPS, HOLES     how many there are of the rarer kind, the living or the dead; the distance of each from the one before
    BLOCKS          classes of rows (the first dimension) and of columns (all others), and each pair of classes in its own way

A distance d is told by the number n = d + 3, by the three highest of its bits and how many more there are; these follow as they
are, so that no distance is too large to be exact:

    d       1  2  3  4 | 5-6  7-8  9-10  11-12 | 13-16 ...
    symbol  0  1  2  3 |  4    5    6     7    |   8   ...     4 x the number of bits that follow, + 0 to 3
    follow      0      |          1            |   2   ...

Since every tensor has its own table, a layer's density is told once, and living entries that stand close together cost less
than they would at random. In blocks, rows or columns that are wholly dead (filters, channels, neurons) cost a fraction of a bit
each, and the others are told at their own density.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from fedprune.pruning.mask import places
from fedprune.types import Mask
from fedprune.wire.symbols import Reader, Step, bits, cost, counted, join, number

DEAD, ALIVE, BITS, BYTES, GAPS, HOLES, BLOCKS = range(7)
MORE = 2  # bits of a number in its symbol, after the highest
LEAST = 1 << MORE  # the number of the distance 1
CLASSES = 16  # of rows or of columns, at most
TABLE = 160  # bits of one table more, about


def pack_gaps(mask: Mask) -> bytes:
    """Return the mask as bytes: names in the order of the dict, entries row by row."""
    return join([step for alive in mask.values() for step in _tensor(alive)])


def unpack_gaps(data: bytes, shapes: dict[str, torch.Size]) -> Mask:
    """Return the mask that `pack_gaps` was given. shapes: in the same order. Raises ValueError for other bytes."""
    return dict(_unpack(data, tuple(shapes.items())))


@functools.lru_cache(maxsize=8)
def _unpack(data: bytes, shapes: tuple[tuple[str, torch.Size], ...]) -> Mask:
    # Remembered, as `unpack` remembers.
    reader = Reader(data)
    mask = {name: torch.from_numpy(_read_tensor(reader, tuple(shape))) for name, shape in shapes}
    reader.end()
    return mask


def _tensor(mask: torch.Tensor) -> list[Step]:
    """Return the steps of a tensor's mask: the cheaper of its entries one after the other, and its blocks."""
    alive, living = mask.numpy(), places(mask)  # which is remembered: values are taken from there
    whole = _entries(alive.reshape(-1), None if isinstance(living, slice) else living)
    blocks = _blocks(alive.reshape(len(alive), -1)) if alive.ndim > 1 and alive.size else None
    return min(whole, blocks or whole, key=cost)


def _read_tensor(reader: Reader, shape: tuple[int, ...]) -> np.ndarray:
    way, size = reader.number(), int(np.prod(shape, dtype=np.int64))
    if way != BLOCKS:
        return _read_entries(reader, way, size).reshape(shape)
    if len(shape) < 2 or not size:
        raise ValueError(f"blocks of a tensor of shape {shape}")
    return _read_blocks(reader, shape[0], size // shape[0]).reshape(shape)


def _entries(alive: np.ndarray, living: np.ndarray | None = None) -> list[Step]:
    """Return the steps of entries one after the other. living: the places of those that are alive (None: not counted yet)."""
    size, count = len(alive), int(np.count_nonzero(alive))
    if count in (0, size):
        return [number(ALIVE if count else DEAD)]
    ways = [[number(BITS), bits(alive)], [number(BYTES), *counted(np.packbits(alive))]]
    sparse = 2 * count <= size
    rarer = living if sparse and living is not None else np.flatnonzero(alive if sparse else ~alive)
    numbers = np.diff(rarer, prepend=-1) + LEAST - 1
    # A float64 has its number's bit length, plus 1022, in front of the 52 bits after the highest.
    symbols = (numbers.astype(np.float64).view(np.int64) >> 52 - MORE) - (1023 + MORE << MORE)
    gaps = [number(GAPS if sparse else HOLES), number(len(rarer)), *counted(symbols)]
    best = min(ways, key=cost)
    if cost(gaps) + int((symbols >> MORE).sum()) < cost(best):
        return [*gaps, bits(_following(numbers, symbols))]
    return best


def _read_entries(reader: Reader, way: int, size: int) -> np.ndarray:
    if way == BITS:
        return reader.bits(size)
    if way == BYTES and size:
        return np.unpackbits(reader.counted(-(-size // 8)).astype(np.uint8), count=size).view(np.bool_)
    if way not in (DEAD, ALIVE, GAPS, HOLES):
        raise ValueError(f"a mask in the way {way}, which is none")
    alive = np.full(size, way in (ALIVE, HOLES))
    if way in (GAPS, HOLES):
        alive[_read_places(reader, size)] = way == GAPS
    return alive


def _read_places(reader: Reader, size: int) -> np.ndarray:
    """Read ascending places below `size`, at most half of all."""
    count = reader.number()
    if not 1 <= count <= size // 2:
        raise ValueError(f"{count} places, as the rarer of {size}")
    symbols = reader.counted(count).astype(np.int64)
    if symbols.max() >> MORE > size.bit_length():
        raise ValueError(f"a distance beyond {size} entries")
    numbers = LEAST + symbols % LEAST << (symbols >> MORE)
    order, having = _longest_first(symbols)
    following, start = np.zeros(count, np.int64), 0
    flags = reader.bits(sum(having))
    for place, many in enumerate(having):
        following[:many] |= flags[start : start + many].astype(np.int64) << place
        start += many
    numbers[order] += following
    ascending = np.cumsum(numbers - LEAST + 1) - 1
    if ascending[-1] >= size:
        raise ValueError(f"a place beyond {size} entries")
    return ascending


def _following(numbers: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Return the bits that follow the symbols: the lowest of all numbers that have one, then the next of those that have two
    ..."""
    order, having = _longest_first(symbols)
    numbers = numbers[order]
    flags = [numbers[:many] >> place & 1 for place, many in enumerate(having)]
    return np.concatenate([np.empty(0, np.bool_), *flags], dtype=np.bool_, casting="unsafe")


def _longest_first(symbols: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return an order of numbers by how many bits follow their symbols, and how many have at least one, two ... of them."""
    lengths = symbols >> MORE
    having = len(lengths) - np.cumsum(np.bincount(lengths))
    return np.argsort(~lengths.astype(np.uint8), kind="stable"), having[:-1].tolist()


def _blocks(alive: np.ndarray) -> list[Step] | None:
    """Return the steps of a matrix by classes of rows and columns; None if there is one of each."""
    rows, columns = (_classes(alive.sum(axis=axis, dtype=np.int32), alive.shape[axis]) for axis in (1, 0))
    if not (rows.any() or columns.any()):
        return None
    parts = [alive[rows == row] for row in range(rows.max() + 1)]
    blocks = [_entries(part[:, columns == column].reshape(-1)) for part in parts for column in range(columns.max() + 1)]
    return [number(BLOCKS), *counted(rows), *counted(columns), *(step for block in blocks for step in block)]


def _read_blocks(reader: Reader, height: int, width: int) -> np.ndarray:
    rows, columns = reader.counted(height), reader.counted(width)
    if max(rows.max(), columns.max()) >= CLASSES:
        raise ValueError(f"more than {CLASSES} classes of rows or columns")
    alive = np.empty((height, width), np.bool_)
    for row in range(rows.max() + 1):
        for column in range(columns.max() + 1):
            there = np.ix_(rows == row, columns == column)
            shape = there[0].size, there[1].size
            alive[there] = _read_entries(reader, reader.number(), shape[0] * shape[1]).reshape(shape)
    return alive


def _classes(living: np.ndarray, size: int) -> np.ndarray:
    """Return the class of each line with so many living entries of `size`: numbers from 0, all of them in use.

    The wholly dead and the wholly alive are classes of their own. In the others the odds of being alive are within a factor
    of 4, from half to twice those of all such lines, or the next; 4 entries are added to both sides, since small numbers
    differ by chance. All are of one class if telling them apart takes more than their densities are worth.
    """
    mixed = living[(living > 0) & (living < size)]
    odds, usual = (np.log2((some + 4) / (size - some + 4)) for some in (living, mixed.mean() if len(mixed) else 0))
    kinds = np.clip(np.rint((odds - usual) / 2), -6, 6)
    kinds[living == 0], kinds[living == size] = -7, 7
    classes = np.unique(kinds, return_inverse=True)[1]
    lines, alive = np.bincount(classes), np.bincount(classes, living)
    told = cost(counted(classes)) + TABLE * (len(lines) - 1)
    apart, together = _entropy(alive, lines * size), _entropy(living.sum(keepdims=True), np.array([living.size * size]))
    return classes if told + apart < together else np.zeros_like(classes)


def _entropy(living: np.ndarray, size: np.ndarray) -> float:
    """Return the bits of so many living among so many entries at random: [n] each, summed."""
    return float(sum(np.sum(part * np.log2(size / np.maximum(part, 1))) for part in (living, size - living)))
