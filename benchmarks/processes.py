"""The memory of a process and all its descendants, as Linux tells it: pages that several of them share are counted once."""

from __future__ import annotations

from pathlib import Path


def tree(process: int) -> list[int]:
    """The process and its descendants, those that have ended meanwhile left out."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text(encoding="utf-8").split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [process, *(one for child in children for one in tree(child))]


def memory(process: int) -> float:
    """The sum of the proportional set sizes of the tree, in MB (2^20 bytes)."""
    return sum(map(_proportional, tree(process)))


def _proportional(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
