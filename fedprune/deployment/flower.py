"""Flower's two ends: the ServerApp, in which a run goes on, and the ClientApp of every node. No other module imports Flower.

A letter is a ConfigRecord in a Message. Each letter to a node is answered by a process of its own; what the node keeps lies in
Flower's state of the node (Context.state), which stays on the device as long as its SuperNode lives.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from fedprune.deployment.memory import Memory
from fedprune.deployment.node import answered
from fedprune.deployment.post import Failed, Fields
from fedprune.deployment.serve import Order, serve
from fedprune.errors import ConfigError

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

try:
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
except ImportError as missing:
    raise ConfigError(["executor=flower needs Flower, which is not installed: pip install 'fedprune[flower]'"]) from missing

LETTER, MEMORY = "fedprune", "fedprune memory"
"""The names of our records in a message, and in a node's state."""

KIND = "query"
"""The type of our messages: Flower has train, evaluate and query, and a letter says itself what it is about."""


class GridPost:
    """The post over Flower's Grid. ttl: seconds after which Flower forgets a letter and its answer."""

    def __init__(self, grid: Grid, ttl: float):
        self._grid, self._ttl = grid, ttl

    def nodes(self) -> set[int]:
        return {*self._grid.get_node_ids()}

    def send(self, letters: Iterable[tuple[int, Fields]]) -> list[str]:
        messages = [
            Message(RecordDict({LETTER: ConfigRecord(dict(fields))}), node, KIND, ttl=self._ttl) for node, fields in letters
        ]
        names = [*self._grid.push_messages(messages)]
        return [name or "" for name in names] if len(names) == len(messages) else [""] * len(messages)

    def receive(self, names: Iterable[str]) -> Mapping[str, Fields | Failed]:
        wanted = [*names]
        answers = self._grid.pull_messages(wanted) if wanted else ()
        return {answer.metadata.reply_to_message_id: _content(answer) for answer in answers}


def _content(answer: Message) -> Fields | Failed:
    if answer.has_error():
        return Failed(f"its node failed: {answer.error.reason or answer.error.code}")
    record = answer.content.config_records.get(LETTER)
    return Failed("its node sent something else than an answer") if record is None else _fields(record)


def _fields(record: ConfigRecord) -> Fields:
    """Return the plain fields of a record; lists, which no letter has, are left out."""
    return {name: value for name, value in record.items() if isinstance(value, bytes | str | int | float)}


client_app = ClientApp()


@client_app.query()  # type: ignore[untyped-decorator]  # Flower's decorators have no types
def answer(message: Message, context: Context) -> Message:
    """Answer a letter at a node."""
    record = context.state.config_records.get(MEMORY) or ConfigRecord()
    memory = _fields(record)
    fields = answered(_fields(message.content.config_records[LETTER]), Memory(memory), context.node_config)
    context.state[MEMORY] = ConfigRecord(dict(memory))
    return Message(RecordDict({LETTER: ConfigRecord(dict(fields))}), reply_to=message)


server_app = ServerApp()


@server_app.main()  # type: ignore[untyped-decorator]  # Flower's decorators have no types
def main(grid: Grid, context: Context) -> None:
    """Do the run that was ordered. Raises SystemExit if it fails, by which Flower knows."""
    order = Order.of(context.run_config)
    serve(order, GridPost(grid, order.ttl))
