"""Docstrings are sentences."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import fedprune

ROOT = Path(fedprune.__file__).parent

RIDDLE = re.compile(r"(What|How|Who|Whose|Whether|Which|Where|When)\b")
"""How a docstring begins that names no subject: "What is sent of it.\""""


def riddles(source: str) -> list[str]:
    """Return the first lines of the docstrings of modules, classes and functions that begin as a riddle."""
    nodes = ast.walk(ast.parse(source))
    texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    return [text.partition("\n")[0] for text in texts if RIDDLE.match(text)]


def test_docstrings_are_sentences():
    found = {str(path.relative_to(ROOT)): riddles(path.read_text()) for path in ROOT.rglob("*.py")}
    assert {file: texts for file, texts in found.items() if texts} == {}


def test_a_riddle_is_found():
    assert riddles('def sent():\n    """What is sent of it."""\n') == ["What is sent of it."]
    assert riddles('"""Whatever is sent is counted."""\n\ndef sent():\n    """Return what is sent."""\n') == []
