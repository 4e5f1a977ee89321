"""Text files are read and written as UTF-8, whatever the machine's language is set to. Read from the modules' syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SOURCES = [path for folder in ("fedprune", "benchmarks", "docs") for path in sorted((ROOT / folder).rglob("*.py"))]


def without_encoding(source: str) -> Iterator[str]:
    """Yield the calls in a module that read or write text in the machine's own encoding."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _is_of_text(node) and not any(each.arg == "encoding" for each in node.keywords):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def _is_of_text(call: ast.Call) -> bool:
    """Return whether a call opens a text file, or reads or writes it as a whole. `gzip.open` and the like open bytes."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
        return True
    if isinstance(call.func, ast.Name) and call.func.id == "open":
        modes = call.args[1:2]
    elif isinstance(call.func, ast.Attribute) and call.func.attr == "open":
        modes = call.args[:1]  # of Path.open; others have a path there, or an integer for os.open
    else:
        return False
    modes += [each.value for each in call.keywords if each.arg == "mode"]
    texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    plain = isinstance(call.func, ast.Name) and not modes
    return plain or any(set(text) <= set("rwax+t") for text in texts)


def test_every_text_file_has_an_encoding():
    found = {str(path.relative_to(ROOT)): [*without_encoding(path.read_text(encoding="utf-8"))] for path in SOURCES}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "call", ["p.read_text()", "(p / 'a').write_text('b')", "open(p)", "open(p, 'a')", "open(p, mode='w')", "p.open('w')"]
)
def test_a_call_without_encoding_is_found(call: str):
    assert [*without_encoding(call)] != []


@pytest.mark.parametrize(
    "call",
    [
        "p.read_text(encoding='utf-8')",
        "open(p, 'rb')",
        "os.open(p, flags)",
        "gzip.open(p)",
        "p.open('wb')",
        "write_text(p, 't')",
    ],
)
def test_others_are_left_alone(call: str):
    assert [*without_encoding(call)] == []
