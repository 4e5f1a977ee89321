"""Clients on devices of their own. An executor: see execution. Each task goes to the node that is its client.

The server does what is its own: it evaluates on its test set. A node that is not there, fails or takes too long is a client
that does not answer: its job is lost for this round, and in an evaluation its examples count as not measured (not a number).
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load

from fedprune.data.batches import Batches, Slice
from fedprune.deployment.limits import refuse_what_cannot_be
from fedprune.deployment.memory import MASK, STATE, digest, receipt, receipt_of
from fedprune.deployment.nodes import OFFICE
from fedprune.deployment.post import Failed, Fields, bytes_of, text_of
from fedprune.deployment.round_trip import Errand, RoundTrip
from fedprune.execution.pool import Lost
from fedprune.execution.worker import Task
from fedprune.federated.client.round import Client
from fedprune.federated.client.state_arrays import KeptArrays
from fedprune.local.outcomes import Outcomes, concatenated
from fedprune.types import SERVER
from fedprune.wire.frame import Message, Piece, unframed

log = logging.getLogger(__name__)

OF_CLIENTS = ("decode", "train", "encode")
"""The phases of which a client reports the seconds."""


class Flower:
    """One node of Flower's for each client. timeout: seconds that a node may take for a task."""

    def __init__(self, factory: functools.partial[Client], timeout: float = 600.0):
        made_of = factory.keywords
        refuse_what_cannot_be(made_of)
        torch.set_num_threads(1)
        self._nodes, self._timeout, self._task = OFFICE.open(), timeout, made_of["task"]
        self._common: Fields = {"config": json.dumps(made_of["config"]), "names": json.dumps(dict(OFFICE.names))}
        self._clients, self._server = made_of["clients"], factory()
        self._batches = Batches(made_of["dataset"], made_of["clients"], torch.device("cpu"))

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[object]:
        """Yield results in the order of the tasks; Lost in the place of one that nobody brought."""
        errands = [self._errands(*tasks[position]) for position in range(len(tasks))]
        if any(errands):
            self._nodes.refresh()
        round_trip = RoundTrip(self._nodes, self._timeout, self._common, [errand for of_task in errands for errand in of_task])
        numbers = itertools.count()
        for position, of_task in enumerate(errands):
            if of_task:
                yield self._result(of_task, [round_trip.answer(next(numbers)) for _ in of_task])
            else:
                method, arguments = tasks[position]
                yield getattr(self._server, method)(*arguments)

    def close(self, now: bool = False) -> None:
        """The nodes stay: they belong to others."""

    def _errands(self, method: str, arguments: tuple[object, ...]) -> list[Errand]:
        """Return what clients are to do for a task; nothing if the server does it itself."""
        if method == "evaluate":
            return self._evaluations(*cast(tuple[Piece, object, bytes, Slice], arguments))
        message, kept, mask = cast(tuple[Message, KeptArrays, bytes], arguments)
        client = unframed(message)[0]["client"]
        if client == SERVER:
            return []
        joined = b"".join(map(bytes, message)) if isinstance(message, tuple) else bytes(message)
        letter: Fields = {"method": method, "message": joined, "kept": receipt_of(kept)}
        return [self._errand(client, letter, mask, len(self._clients.test[client]) if method == "tuned" else 0)]

    def _evaluations(self, block: Piece, _: object, mask: bytes, where: Slice) -> list[Errand]:
        if where.part == "global":
            return []
        letter: Fields = {"method": "evaluate", "message": bytes(block), "kept": b"", "part": where.part}
        evaluated = self._clients.evaluated_on(where.part)
        stretches = [(evaluated[place], own) for place, own in self._batches.by_client(where)]
        return [
            self._errand(client, letter | {"start": own.start, "stop": own.stop}, mask, own.stop - own.start)
            for client, own in stretches
        ]

    def _errand(self, client: int, letter: Fields, mask: bytes, examples: int) -> Errand:
        letter = letter | {"client": client, "mask": digest(mask)}
        return Errand(client, letter, {MASK: {"mask_bits": mask}, STATE: {"kept": b""}}, examples)

    def _result(self, errands: list[Errand], answers: list[Fields | Failed]) -> object:
        if errands[0].letter["method"] == "run":
            return Lost(answers[0].reason) if isinstance(answers[0], Failed) else trained(answers[0])
        return concatenated([self._outcomes(errand, answer) for errand, answer in zip(errands, answers, strict=True)])

    def _outcomes(self, errand: Errand, answer: Fields | Failed) -> Outcomes:
        """Return what a node has measured; of one that brought nothing of use, numbers that are none."""
        values = {} if isinstance(answer, Failed) else measured(answer, errand.examples, self._task.names)
        if not values:
            reason = answer.reason if isinstance(answer, Failed) else "its answer is no evaluation"
            log.warning("client %d: %s; it is left out of the evaluation", errand.client, reason)
            values = {name: np.full(errand.examples, np.nan) for name in self._task.names}
        return Outcomes(values)


def trained(answer: Fields) -> tuple[bytes, KeptArrays, dict[str, float]]:
    """Return a client's answer as a worker gives it. What is no answer is an empty message, which cannot be read."""
    try:
        said = json.loads(text_of(answer, "seconds") or "{}")
        seconds = {phase: float(said[phase]) for phase in OF_CLIENTS if phase in said}
    except (ValueError, TypeError):
        seconds = {}
    sane = all(math.isfinite(value) and value >= 0 for value in seconds.values())
    return bytes_of(answer, "answer"), receipt(bytes_of(answer, "kept")[:16]), seconds if sane else {}


def measured(answer: Fields, examples: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the numbers of an evaluation by name; nothing if they are not one of each metric for each example, in its range.

    They may be NaN or infinite, as those of a network that has diverged.
    """
    try:
        values = load(bytes_of(answer, "outcomes"))
    except (SafetensorError, ValueError, KeyError):
        return {}
    fits = {*values} == {*names} and all(
        array.shape[:1] == (examples,) and array.dtype.kind in "biuf" for array in values.values()
    )
    accuracy = values.get("accuracy", np.zeros(0))
    return values if fits and not ((accuracy < 0) | (accuracy > 1)).any() else {}
