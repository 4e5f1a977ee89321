"""The post between the server and its nodes: fields by name, sent to a node, answered by fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Field = bytes | str | int | float
Fields = dict[str, Field]
"""The content of a message: what Flower's ConfigRecord holds."""


@dataclass(frozen=True)
class Failed:
    """Stands for the answer of a node that could not give one."""

    reason: str


class Post(Protocol):
    """Sends messages to nodes, and receives their answers."""

    def nodes(self) -> set[int]:
        """Return the identities of the nodes that are there."""

    def send(self, letters: Iterable[tuple[int, Fields]]) -> list[str]:
        """Send (node, fields) to each node, and return the name of each letter, in order; "" for one that cannot be sent."""

    def receive(self, names: Iterable[str]) -> Mapping[str, Fields | Failed]:
        """Return the answers that have arrived to these letters, each once. It does not wait."""


def text_of(fields: Mapping[str, Field], name: str) -> str:
    """Return a text among the fields; "" if there is none of this name and type."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def bytes_of(fields: Mapping[str, Field], name: str) -> bytes:
    """Return bytes among the fields; b"" if there are none of this name and type."""
    value = fields.get(name)
    return value if isinstance(value, bytes) else b""


def number_of(fields: Mapping[str, Field], name: str) -> int:
    """Return a whole number among the fields; -2, which is no client and no size, if there is none of this name and type."""
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else -2


LETTERS = "letters"


def bundled(letters: Sequence[Fields], common: Fields | None = None) -> Fields:
    """Return several letters as one. common: fields that are the same in all of them, and are written once."""
    fields: Fields = {LETTERS: len(letters), **(common or {})}
    for number, letter in enumerate(letters):
        fields |= {f"{number}/{name}": value for name, value in letter.items()}
    return fields


def unbundled(fields: Fields, expected: int | None = None) -> list[Fields]:
    """Return the letters of a bundle. What is no bundle of `expected` letters stands for each of them (as an error does)."""
    number = number_of(fields, LETTERS)
    if number < 0 or (expected is not None and number != expected):
        return [fields] * (1 if expected is None else expected)
    common = {name: value for name, value in fields.items() if "/" not in name and name != LETTERS}
    own = [{name.partition("/")[2]: v for name, v in fields.items() if name.startswith(f"{each}/")} for each in range(number)]
    return [common | letter for letter in own]
