"""Errands on their way to nodes and back. All that a node is asked at once is one letter to it, which one process answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedprune.deployment import nodes as rooms
from fedprune.deployment.memory import STATE
from fedprune.deployment.nodes import Nodes
from fedprune.deployment.post import Failed, Fields, bundled, text_of, unbundled

log = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds between two looks at which nodes are still there."""

NOT_THERE = Failed("its node is not there")


@dataclass(frozen=True)
class Errand:
    """A task, or a part of one, for one client. examples: how many are evaluated (0: none). more: what the node is sent if it
    has not what the letter names by its digest."""

    client: int
    letter: Fields
    more: Mapping[str, Fields]
    examples: int = 0


Numbered = tuple[int, Errand]
"""(the number of the errand, the errand)."""


class RoundTrip:
    """Errands on their way, by number. Nodes work at the same time; an answer is held until it is asked for.

    timeout: seconds from the start after which nobody is waited for. common: the fields of all letters.
    """

    def __init__(self, nodes: Nodes, timeout: float, common: Fields, errands: Sequence[Errand]):
        self._nodes, self._timeout, self._common = nodes, timeout, common
        self._answers: dict[int, Fields | Failed] = {}
        self._waiting: dict[str, list[Numbered]] = {}
        self._ends, self._look = time.monotonic() + timeout, time.monotonic() + LOOK
        self._send([*enumerate(errands)])

    def _send(self, numbered: Sequence[Numbered]) -> None:
        """Send errands, those of one client together. Who is not there has answered with that."""
        of_client: dict[int, list[Numbered]] = {}
        for number, errand in numbered:
            of_client.setdefault(errand.client, []).append((number, errand))
        there = [(self._nodes.node_of[client], bundle) for client, bundle in of_client.items() if client in self._nodes.node_of]
        letters = [(node, bundled([errand.letter for _, errand in bundle], self._common)) for node, bundle in there]
        names = self._nodes.post.send(letters) if letters else []
        self._waiting |= {name: bundle for name, (_, bundle) in zip(names, there, strict=True) if name}
        on_their_way = {number for bundle in self._waiting.values() for number, _ in bundle}
        self._answers |= {number: NOT_THERE for number, _ in numbered if number not in on_their_way}

    def answer(self, number: int) -> Fields | Failed:
        """Return the answer to the errand of this number; wait for it as long as the timeout allows."""
        while number not in self._answers:
            self._receive()
            if number in self._answers:
                break
            if time.monotonic() > self._ends:
                return Failed(f"it has not answered within executor.timeout={self._timeout:g} seconds")
            if time.monotonic() > self._look:
                self._give_up_on_those_who_left()
            time.sleep(rooms.PAUSE)
        return self._answers.pop(number)

    def _receive(self) -> None:
        again: list[Numbered] = []
        for name, answer in self._nodes.post.receive([*self._waiting]).items():
            bundle = self._waiting.pop(name)
            answers: list[Fields | Failed] = [answer] * len(bundle)
            if not isinstance(answer, Failed):
                answers = [*unbundled(answer, len(bundle))]
            for (number, errand), each in zip(bundle, answers, strict=True):
                if not isinstance(each, Failed) and text_of(each, "wants") in errand.more:
                    again.append((number, _completed(errand, text_of(each, "wants"))))
                else:
                    self._answers[number] = _sound(each)
        if again:
            self._send(again)

    def _give_up_on_those_who_left(self) -> None:
        there, self._look = self._nodes.post.nodes(), time.monotonic() + LOOK
        for name, bundle in [*self._waiting.items()]:
            if self._nodes.node_of.get(bundle[0][1].client) not in there:
                del self._waiting[name]
                self._answers |= {number: Failed("its node has left") for number, _ in bundle}


def _sound(answer: Fields | Failed) -> Fields | Failed:
    """Return an answer; one that says why there is none has failed."""
    return answer if isinstance(answer, Failed) or "error" not in answer else Failed(text_of(answer, "error"))


def _completed(errand: Errand, wanted: str) -> Errand:
    """Return an errand with what its node misses. A client that has lost what it kept begins anew."""
    if wanted == STATE:
        log.warning("client %d: its node has lost what the client kept, and begins anew", errand.client)
    rest = {name: fields for name, fields in errand.more.items() if name != wanted}
    return replace(errand, letter=errand.letter | errand.more[wanted], more=rest)
