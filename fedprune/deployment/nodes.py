"""The nodes of a federation: which one is which client. What a node says of itself is checked before it gets a task.

A node that is refused is named, with what to type on its device. All clients have to be there when a run begins. Later one may
leave, and come back as another node.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from fedprune import __version__
from fedprune.deployment.post import Failed, Fields, Post, number_of, text_of
from fedprune.errors import ConfigError, RunError

log = logging.getLogger(__name__)

HELLO: Fields = {"method": "hello"}
PAUSE = 0.2
"""Seconds between two looks for answers."""

Sizes = tuple[int, int, int]
"""The numbers of a client's train, val and test examples."""


@dataclass
class Nodes:
    """The nodes that were accepted.

    clients: how many clients the federation has. agreed: what all parties have to have alike (local_data.py), as the server has
    it. patience: seconds that a node may take to say who it is.
    """

    post: Post
    clients: int
    agreed: Mapping[str, object]
    patience: float = 60.0
    node_of: dict[int, int] = field(default_factory=dict)
    sizes: dict[int, Sizes] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def gather(self) -> list[Sizes]:
        """Wait until all clients are there, and return the number of examples of each. Raises RunError, which says who is
        missing and who was refused, if it takes longer than `patience`."""
        ends = time.monotonic() + self.patience
        while len(self.node_of) < self.clients and time.monotonic() < ends:
            self.refresh(max(0.0, ends - time.monotonic()))
            time.sleep(0 if len(self.node_of) == self.clients else PAUSE)
        missing = [client for client in range(self.clients) if client not in self.node_of]
        if missing:
            refusals = "".join(f"\n- {reason}" for reason in self.refused.values())
            raise RunError(
                f"{self.clients - len(missing)} of federated.clients={self.clients} clients are there; missing: "
                f"{', '.join(map(str, missing))}. Start a SuperNode for each, or type federated.clients=N{refusals}"
            )
        return [self.sizes[client] for client in range(self.clients)]

    def refresh(self, patience: float | None = None) -> None:
        """See who has left, and ask those who are new who they are."""
        there = self.post.nodes()
        for client, node in [*self.node_of.items()]:
            if node not in there:
                log.warning("client %d: its node %d has left", client, node)
                del self.node_of[client]
                self.refused.clear()  # one of them may have come in its place before it was known to have left
        new = there - {*self.node_of.values()} - {*self.refused}
        for node, answer in self._asked(sorted(new), self.patience if patience is None else patience):
            self._take(node, answer)

    def _asked(self, nodes: list[int], patience: float) -> Iterator[tuple[int, Fields | Failed]]:
        """Yield what new nodes say of themselves. Those that say nothing in time are asked again later."""
        if not nodes:
            return
        waiting = dict(zip(self.post.send((node, HELLO) for node in nodes), nodes, strict=True))
        ends = time.monotonic() + patience
        while waiting:
            for name, answer in self.post.receive([*filter(None, waiting)]).items():
                yield waiting.pop(name), answer
            waiting = waiting if time.monotonic() < ends else {}
            time.sleep(PAUSE if waiting else 0)

    def _take(self, node: int, answer: Fields | Failed) -> None:
        problem = answer.reason if isinstance(answer, Failed) else self.problem_of(answer)
        if problem is not None:
            self.refused[node] = f"node {node} is refused: {problem}"
            log.warning("%s", self.refused[node])
            return
        assert not isinstance(answer, Failed), "it has a problem"
        client = number_of(answer, "client")
        if client in self.node_of:
            taken = f"it says that it is client {client}, as node {self.node_of[client]} does: give it another file of data"
            self.refused[node] = f"node {node} is refused: {taken}"
            log.warning("%s", self.refused[node])
            return
        log.info("client %d is node %d", client, node)
        self.node_of[client], self.sizes[client] = node, sizes_of(answer) or (0, 0, 0)

    def problem_of(self, answer: Fields) -> str | None:
        """Return why what a node says of itself cannot be, with what to type on its device; None if it can."""
        if "error" in answer:
            return text_of(answer, "error")
        about, client, sizes = _read(text_of(answer, "about")), number_of(answer, "client"), sizes_of(answer)
        theirs, highest = about.get("fedprune"), self.clients - 1
        if theirs != __version__:
            return f"it has fedprune {theirs}, and the server {__version__}: type pip install fedprune=={__version__} there"
        if not 0 <= client < self.clients:
            return f"it says that it is client {client}, of 0 to {highest}: type federated.clients={client + 1} or more"
        if sizes is None:
            return f"client {client} has nothing to train on, or does not say whole numbers: its file needs train_x and train_y"
        if client in self.sizes and sizes != self.sizes[client]:
            return f"client {client} has {sizes} examples, and had {self.sizes[client]} at the start: give it the same file"
        if about.get("torch") != torch.__version__:
            both = (client, about.get("torch"), torch.__version__)
            log.warning("client %d has torch %s, and the server %s: results may differ by rounding", *both)
        return self._disagreement(client, about.get("agreed"))

    def _disagreement(self, client: int, theirs: object) -> str | None:
        theirs = theirs if isinstance(theirs, dict) else {}
        for key, value in self.agreed.items():
            if theirs.get(key) != value:
                return (
                    f"client {client} has {key} {theirs.get(key)}, and the server {value}: write its file of the same data set "
                    "(python -m fedprune.deployment split FOLDER)"
                )
        return None


def sizes_of(answer: Fields) -> Sizes | None:
    """Return a client's numbers of examples; None if what it says is none, or it has nothing to train on."""
    sizes = _read(text_of(answer, "sizes"), list)
    whole = len(sizes) == 3 and all(type(size) is int and 0 <= size < 2**40 for size in sizes)
    return (sizes[0], sizes[1], sizes[2]) if whole and sizes[0] else None


def _read(text: str, kind: type = dict):  # type: ignore[no-untyped-def]  # of this kind
    """Return the JSON of a text if it is of this kind, else an empty one."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    return content if isinstance(content, kind) else kind()


@dataclass
class Office:
    """The federation of the ServerApp that this process is; nothing in every other process. names: the chosen option of each
    config group, which nodes build their part of a run from."""

    nodes: Nodes | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> Nodes:
        """Return the nodes. Raises ConfigError if this process is no ServerApp."""
        if self.nodes is None:
            raise ConfigError(
                [
                    "executor=flower runs in Flower's ServerApp, and this command does not: type python -m fedprune.deployment "
                    "run OVERRIDES (see docs/deployment.md), or executor=auto for a simulation on this machine"
                ]
            )
        return self.nodes


OFFICE = Office()
