"""A post whose nodes are in this process: each letter is answered at once, from the node's own file and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fedprune.deployment.memory import Memory
from fedprune.deployment.node import answered
from fedprune.deployment.post import Failed, Fields

Twist = Callable[[int, Fields, Fields], Fields | Failed | None]
"""(node, letter, its answer) -> the answer that arrives; None: none does."""


@dataclass
class NodesHere:
    """settings: by node, what it was started with. twist: what becomes of an answer. letters: all that was sent."""

    settings: dict[int, dict[str, object]]
    twist: Twist = lambda node, letter, answer: answer
    letters: list[tuple[int, Fields]] = field(default_factory=list)
    memories: dict[int, dict] = field(default_factory=dict)
    arrived: dict[str, Fields | Failed] = field(default_factory=dict)

    def nodes(self) -> set[int]:
        return {*self.settings}

    def send(self, letters: Iterable[tuple[int, Fields]]) -> list[str]:
        names = []
        for node, letter in letters:
            self.letters.append((node, letter))
            names.append(f"letter {len(self.letters)}")
            memory = Memory(self.memories.setdefault(node, {}))
            answer = self.twist(node, letter, answered(letter, memory, self.settings[node]))
            if answer is not None:
                self.arrived[names[-1]] = answer
        return names

    def receive(self, names: Iterable[str]) -> dict[str, Fields | Failed]:
        return {name: self.arrived.pop(name) for name in [*names] if name in self.arrived}


def nodes_of(folder: Path, clients: int) -> dict[int, dict[str, object]]:
    """The settings of one node for each client, by numbers that are no client's."""
    return {100 + client: {"data.local": str(folder / f"client_{client}.safetensors")} for client in range(clients)}
