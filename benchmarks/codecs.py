"""Bytes over the Shannon bound and milliseconds of every codec: `python benchmarks/codecs.py [--repeats 9]`.

One matrix of 512 x 3136 weights (1.6 million, the largest of cnn_fedavg) and its mask. The bound is n H(density) bits of mask,
which is what entries at random are worth, and 4 bytes for each value; a mask with a pattern can be below it. Codecs take turns;
milliseconds are this thread's own, so that a busy machine makes less difference; medians, and nothing is remembered between two
turns. `known` is `auto` to a receiver that holds the mask, against the values alone.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from table import machine, table

from fedprune.pruning import mask as masks
from fedprune.types import Job, Mask, Subnet, Update
from fedprune.wire import gaps as distances
from fedprune.wire.codec import Layout, auto, bitmap, decode, dense, gaps
from fedprune.wire.frame import length
from fedprune.wire.message import Wire

SHAPE = (512, 3136)
CODECS = {"dense": dense, "bitmap": bitmap, "gaps": gaps, "auto": auto}
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
RATIO, MILLISECONDS = "1.005", "25.0"  # at most: of `gaps` and `auto` for entries at random; of a job and its update
MASKS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "half of the rows, dense": lambda random: np.broadcast_to(random.random((512, 1)) < 0.5, SHAPE),
    "half of the columns, dense": lambda random: np.broadcast_to(random.random(64).repeat(49) < 0.5, SHAPE),
    "half of the rows, a tenth of them": lambda random: (random.random((512, 1)) < 0.5) & (random.random(SHAPE) < 0.1),
    "rows of unequal density": lambda random: random.random(SHAPE) < 0.2 * random.random((512, 1)) ** 2,
    "runs of 8": lambda random: random.random((512, 392)).repeat(8, axis=1) < 0.1,
    "2 of 4": lambda random: (random.random((512 * 784, 4)).argsort(1) < 2).reshape(SHAPE),
}


def bound(alive: torch.Tensor) -> float:
    """Bytes of mask and values."""
    size, living = alive.numel(), int(alive.sum())
    return sum(part * math.log2(size / part) for part in (living, size - living) if part) / 8 + 4 * living


def timed(function: Callable[[], object], into: list[float]) -> object:
    """What the function returns; its milliseconds go `into` the list."""
    for memory in (masks._unpack, distances._unpack, masks.places):
        memory.cache_clear()
    started = time.thread_time()
    found = function()
    into.append(1e3 * (time.thread_time() - started))
    return found


def measure(subnet: Subnet, repeats: int) -> dict[str, tuple[float, float, float]]:
    """(bytes over the bound, milliseconds to encode, to decode) by codec, and for a known mask."""
    layout, known = Layout.of(subnet.params, ("w",)), {"w": subnet.mask["w"].clone()}
    ways: dict[str, tuple[Callable, Mask | None]] = {name: (codec, None) for name, codec in CODECS.items()}
    ways["known"] = (auto, known)
    spent: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    sizes = {}
    for _ in range(repeats):
        for name, (codec, held) in ways.items():
            data = timed(functools.partial(codec, subnet.params, subnet.mask, held), spent[name][0])
            timed(functools.partial(decode, data, layout, held), spent[name][1])
            sizes[name] = len(data)
    whole, values = bound(subnet.mask["w"]), 4 * masks.count(subnet.mask)
    return {name: (sizes[name] / (values if name == "known" else whole), *map(statistics.median, spent[name])) for name in ways}


def messages(subnet: Subnet, held: bool, repeats: int) -> tuple[float, float]:
    """(milliseconds of a job and its update, both encoded and decoded; bytes of the two over the bound).

    held: the update's mask is the job's; else neither end knows any.
    """
    there, spent = Wire(auto, Layout.of(subnet.params, ("w",))), []
    known = subnet.mask if held else {"w": ~subnet.mask["w"]}
    job, update = Job(1, 2, 3, 4, subnet), Update(1, subnet, 600, metrics={"loss": 0.5, "steps": 20, "seen": 600})

    def exchange() -> int:
        down = there.encode_job(job, there.subnet_block(subnet))
        there.decode_job(down)
        up = there.encode_update(update, known)
        there.decode_update(up, known)
        return length(down) + length(up)

    for _ in range(repeats):
        size = timed(exchange, spent)
    whole = bound(subnet.mask["w"])
    return statistics.median(spent), size / (whole + (4 * masks.count(subnet.mask) if held else whole))


def subnet_of(alive: np.ndarray) -> Subnet:
    """Weights under this mask."""
    mask = {"w": torch.from_numpy(np.ascontiguousarray(alive))}
    return Subnet(masks.apply({"w": torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))}, mask), mask)


def subnets(random: np.random.Generator) -> Iterator[tuple[str, str, Subnet]]:
    """(name, at most, weights under a mask): at random by density, and with a pattern."""
    for density in DENSITIES:
        yield f"at random, {density}", RATIO, subnet_of(random.random(SHAPE) < density)
    for name, drawn in MASKS.items():
        yield name, "", subnet_of(drawn(random))


def both(random: np.random.Generator, repeats: int) -> tuple[list[list[str]], list[list[str]]]:
    """The lines of two tables: bytes over the bound, and milliseconds to encode and to decode."""
    sizes, times = [], []
    for name, bound, subnet in subnets(random):
        found = measure(subnet, repeats)
        ratios = [f"{ratio:.4f}" for ratio, _, _ in found.values()]
        sizes.append([name, *ratios[:-1], bound, ratios[-1], bound])
        times.append([name, *(f"{there:.1f} / {back:.1f}" for _, there, back in found.values())])
    return sizes, times


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    random, names = np.random.default_rng(0), [f"`{name}`" for name in CODECS]
    sizes, times = both(random, repeats)
    print(f"{machine()}, numpy {np.__version__}")
    print("\n" + table(("bytes over the bound", *names, "at most", "mask known", "at most"), sizes))
    print("\n" + table(("ms to encode / to decode", *names, "mask known"), times))
    tenth, lines = subnet_of(random.random(SHAPE) < 0.1), []
    for name, held in (("neither mask known", False), ("the update's mask known", True)):
        taken, ratio = messages(tenth, held, repeats)
        lines.append([name, f"{taken:.1f}", MILLISECONDS, f"{ratio:.4f}"])
    print("\n" + table(("a job and its update, at random, 0.1", "ms", "at most", "bytes over the bound"), lines))


if __name__ == "__main__":
    main()
