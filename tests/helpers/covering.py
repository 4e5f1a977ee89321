"""Fewer cells of a grid, in which each two, three or four answers still meet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import TypeVar

Cell = TypeVar("Cell", bound=Sequence[str])
Meeting = tuple[tuple[int, str], ...]


def meetings(cell: Sequence[str], ways: int) -> set[Meeting]:
    """Return each so many answers of a cell, with their places."""
    return set(itertools.combinations(enumerate(cell), ways))


def fewest(cells: Sequence[Cell], ways: int) -> list[Cell]:
    """Return cells in which all answers meet that meet in `cells`, `ways` at a time; greedy, for small grids."""
    unmet = set[Meeting]().union(*(meetings(cell, ways) for cell in cells))
    chosen: list[Cell] = []
    while unmet:
        chosen.append(max(cells, key=lambda cell: len(unmet & meetings(cell, ways))))
        unmet -= meetings(chosen[-1], ways)
    return [cell for cell in cells if cell in chosen] or list(cells)


def fewer(cells: Sequence[Cell], ways: int) -> list[Cell]:
    """Return cells in which the same answers meet, `ways` at a time: of a large grid, in one pass."""
    met: set[Meeting] = set()
    chosen = set()
    for number in random.Random(0).sample(range(len(cells)), len(cells)):
        new = meetings(cells[number], ways) - met
        chosen |= {number} if new else set()
        met |= new
    return [cells[number] for number in sorted(chosen)]
