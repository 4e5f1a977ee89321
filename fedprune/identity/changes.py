"""The changes between two runs of one configuration, in words: of code, installed packages, data and other files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedprune.identity import Inputs

Parts = Mapping[str, Mapping[str, str]]
"""Inputs as run.json has them."""


def changes(before: Parts, now: Inputs) -> str:
    """Return what has changed since `before`, as clauses of a sentence: `a.py has changed, b.py is new`."""
    clauses = [*_of_code(before.get("code", {}), now.code), *_of_packages(before.get("packages", {}), now.packages)]
    return ", ".join([*clauses, *_of_files(before.get("files", {}), now.files)])


def _of_code(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        if name not in now:
            yield f"{name} is no longer used"
        elif name not in before:
            yield f"{name} is new"
        elif before[name] != now[name]:
            yield f"{name} has changed"


def _of_packages(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        was, is_now = before.get(name, "none"), now.get(name, "none")
        if was != is_now:
            yield f"{name} was {was} and is {is_now}"


def _of_files(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            yield f"the content of {key} has changed"
