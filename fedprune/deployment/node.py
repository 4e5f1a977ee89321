"""A node's end: it says who it is, and does its client's tasks on its own data.

A node performs tasks of its own client alone. What the client keeps (its state, its mask) is in the node's memory, and what
leaves the node is what crosses the wire in a simulation: an update, and the outcomes of an evaluation, one number per example.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.numpy import save

from fedprune import __version__
from fedprune.data.batches import Batches, Slice
from fedprune.deployment.local_data import LocalData, read
from fedprune.deployment.memory import MASK, STATE, Memory, state_of_bytes, state_to_bytes
from fedprune.deployment.post import Fields, bundled, bytes_of, number_of, text_of, unbundled
from fedprune.errors import ConfigError, RunError
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from fedprune.federated.client.round import Client
from fedprune.federated.client.state_arrays import KeptArrays
from fedprune.local.outcomes import Outcomes
from fedprune.pruning.mask import pack
from fedprune.wire.frame import Message, unframed
from fedprune.wire.message import Wire, answered_under

LOCAL, CLIENT = "data.local", "client"
"""The keys of a node's configuration: its file of data, and the number of its client, which the file may say."""


@dataclass(frozen=True)
class Node:
    """A node, from what it was started with (`--node-config`)."""

    path: Path
    data: LocalData
    client: int

    @classmethod
    def started_with(cls, settings: Mapping[str, object]) -> Node:
        """Return the node. Raises ConfigError and DataError, with what to start it with."""
        if LOCAL not in settings:
            key = f'{LOCAL}="/FOLDER/client_0.safetensors"'
            raise ConfigError([f"this node has no data: start its SuperNode with --node-config '{key}'"])
        path = Path(str(settings[LOCAL])).expanduser()
        data = read(path)
        said = settings.get(CLIENT, data.client)
        if said is None or (data.client is not None and said != data.client):
            whose = "the server's" if data.client is None else f"that of client {data.client}"
            raise ConfigError([f"{LOCAL}={path} is {whose}, and this node was started as client {said}: give it its own file"])
        return cls(path, data, int(str(said)))

    def greeting(self) -> Fields:
        """Return what the node says of itself: all that the server learns before the first round."""
        about = {"fedprune": __version__, "torch": torch.__version__, "agreed": self.data.agreed}
        return {"client": self.client, "about": json.dumps(about), "sizes": json.dumps(self.data.sizes)}


def answered(fields: Fields, memory: Memory, settings: Mapping[str, object]) -> Fields:
    """Return a node's answer to a bundle of letters: `error` says why there is no other. Nothing is raised."""
    try:
        node, client = Node.started_with(settings), None
        if text_of(fields, "method") == "hello":
            return node.greeting()
        answers: list[Fields] = []
        for letter in unbundled(fields):
            missing = _missing(letter, memory)
            if not missing:
                client = client or AtWork(node, _experiment(letter, node))
            wants: Fields = {"wants": missing}
            answers.append(wants if missing or client is None else _attempted(client, letter, memory))
        return bundled(answers)
    except Exception as error:  # whatever it is: one node's trouble is not to be that of the others
        return _failure(error)


def _failure(error: Exception) -> Fields:
    return {"error": f"{type(error).__name__}: {error}"}


def _missing(letter: Fields, memory: Memory) -> str:
    """Return the kind of what a letter names and the memory has not; "" if it has all. A mask that is sent is held."""
    memory.keep(MASK, bytes_of(letter, "mask_bits"))
    named = ((MASK, "mask"), (STATE, "kept"))
    return next((kind for kind, field in named if memory.recall(kind, bytes_of(letter, field)) is None), "")


def _attempted(client: AtWork, letter: Fields, memory: Memory) -> Fields:
    try:
        return client.perform(letter, memory)
    except Exception as error:
        return _failure(error)


class AtWork:
    """A node's client, built for the run that its letters are of."""

    def __init__(self, node: Node, experiment: Experiment):
        torch.set_num_threads(1)  # as in every worker: the number of threads changes the order of sums
        self._node, self._experiment = node, experiment
        self._client: Client = experiment.worker()()

    def perform(self, letter: Fields, memory: Memory) -> Fields:
        """Return the answer to one letter. Raises RunError for what is not for this client."""
        number, method, message = self._node.client, text_of(letter, "method"), bytes_of(letter, "message")
        if number_of(letter, "client") != number:
            raise RunError(f"this node is client {number}, and was sent a task of client {number_of(letter, 'client')}")
        mask = memory.recall(MASK, bytes_of(letter, "mask")) or b""
        kept = state_of_bytes(memory.recall(STATE, bytes_of(letter, "kept")) or b"")
        if method == "evaluate":
            return _outcomes(self._client.evaluate(message, {}, mask, _own_slice(letter, self._node, self._experiment)))
        if unframed(message)[0].get("client") != number:
            raise RunError(f"this node is client {number}, and the message is not for it")
        if method == "tuned":
            return _outcomes(self._client.tuned(message, kept, mask))
        if method != "run":
            raise RunError(f"{method!r} is no task of a client")
        return _run(self._client, self._experiment.wire, memory, message, kept, mask)


def _run(client: Client, wire: Wire, memory: Memory, message: Message, kept: KeptArrays, mask: bytes) -> Fields:
    """Return the update, and the digest of what the client keeps of it."""
    answer, state, seconds = client.run(message, kept, mask)
    joined = b"".join(map(bytes, answer)) if isinstance(answer, tuple) else bytes(answer)
    if unframed(joined)[0].get("pruned"):  # the client has another mask now, which the server sees in its update
        update = wire.decode_update(joined, answered_under(wire.decode_job(message, mask)))
        if update.subnet is not None:
            memory.keep(MASK, pack(update.subnet.mask))
    return {"answer": joined, "kept": memory.keep(STATE, state_to_bytes(state)), "seconds": json.dumps(seconds)}


def _experiment(fields: Fields, node: Node) -> Experiment:
    """Build the run's composition around this node's own data."""
    config = OmegaConf.create(json.loads(text_of(fields, "config")))
    config.data.local, config.partition.own = str(node.path), node.client
    return build(config, json.loads(text_of(fields, "names")))


def _own_slice(fields: Fields, node: Node, experiment: Experiment) -> Slice:
    """Return the stretch that is to be evaluated. Raises RunError if not all of it is the node's own."""
    where = Slice(text_of(fields, "part"), number_of(fields, "start"), number_of(fields, "stop"))
    clients = experiment.clients
    if where.part not in clients.parts:
        raise RunError(f"{where.part!r} is no part of a client's data")
    batches = Batches(experiment.dataset, clients, torch.device("cpu"))
    owners = {clients.evaluated_on(where.part)[place] for place, _ in batches.by_client(where)}
    if owners != {node.client}:
        raise RunError(f"this node is client {node.client}, and was asked for examples of clients {sorted(owners)}")
    return where


def _outcomes(outcomes: Outcomes) -> Fields:
    return {"outcomes": save(dict(outcomes.values))}
