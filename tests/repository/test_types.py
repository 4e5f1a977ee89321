"""The types of the package say something: `Any` is rare, and what the type checker is told to ignore has a code and a reason.

Read from the text of the modules. mypy itself is run by `make lint`.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import fedprune

ROOT = Path(fedprune.__file__).parent

MOST = 45
"""Fewer lines than these may have `Any`, imports left out: those where Hydra, torch, JSON or pickle force it."""

WELL = re.compile(r"# type: ignore\[[a-z-]+(, ?[a-z-]+)*\]  # \S.*")
"""A comment that ignores an error of the type checker: with the error's code, and a reason."""


def tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(source).readline)


def untyped_lines(source: str) -> set[int]:
    """Return the numbers of the lines in which `Any` is a name in code, but for imports."""
    named = (token for token in tokens(source) if token.type == tokenize.NAME and token.string == "Any")
    return {token.start[0] for token in named if "import" not in token.line}


def bare_ignores(source: str) -> list[str]:
    """Return the comments that ignore an error without its code or without a reason."""
    comments = (token.string for token in tokens(source) if token.type == tokenize.COMMENT)
    return [comment for comment in comments if "type: ignore" in comment and not WELL.fullmatch(comment)]


SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(ROOT.rglob("*.py"))}


def test_any_is_rare():
    lines = [f"{name}:{line}" for name, source in SOURCES.items() for line in sorted(untyped_lines(source))]
    assert len(lines) < MOST, "\n".join(["`object`, a Protocol, or Json or Function of fedprune/types.py instead?", *lines])


def test_every_ignore_has_a_code_and_a_reason():
    assert {name: bare for name, source in SOURCES.items() if (bare := bare_ignores(source))} == {}


def test_lines_with_any_are_counted():
    source = 'from typing import Any\nx: dict[Any, Any] = {}  # not Any\n"""Any text."""\ny: Any = 1\nCompany = 2\n'
    assert untyped_lines(source) == {2, 4}


def test_an_ignore_without_code_or_reason_is_found():
    assert bare_ignores("a = 1  # type: ignore\n") == ["# type: ignore"]
    assert bare_ignores("a = 1  # type: ignore[misc]\n") == ["# type: ignore[misc]"]
    assert bare_ignores("a = 1  # type: ignore[misc, no-any-return]  # torch does not type it\n") == []
