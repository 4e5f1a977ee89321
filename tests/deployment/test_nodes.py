"""What a node says of itself is checked, and whoever is refused is named, with what to type."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
from safetensors.numpy import save

from fedprune import __version__
from fedprune.deployment import nodes as rooms
from fedprune.deployment.executor import measured, trained
from fedprune.deployment.launch import write_app
from fedprune.deployment.memory import MASK, Memory, digest, receipt, receipt_of
from fedprune.deployment.node import answered
from fedprune.deployment.nodes import Nodes
from fedprune.deployment.post import Failed, bundled, unbundled
from fedprune.deployment.round_trip import Errand, RoundTrip
from fedprune.deployment.serve import Order, of_the_parties
from fedprune.errors import ConfigError, RunError

AGREED = {"classes": 10, "shape": [1, 8, 8]}


def hello(client=0, sizes=(8, 1, 1), version=__version__, **agreed):
    about = {"fedprune": version, "torch": "2", "agreed": AGREED | agreed}
    return {"client": client, "about": json.dumps(about), "sizes": json.dumps(sizes)}


class Says:
    """A post whose nodes say what they are given, by node."""

    def __init__(self, answers):
        self.answers = answers

    def nodes(self):
        return {*self.answers}

    def send(self, letters):
        return [str(node) for node, _ in letters]

    def receive(self, names):
        return {name: self.answers[int(name)] for name in names}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (hello(version="0.0.9"), rf"node 7 is refused: it has fedprune 0\.0\.9, .*pip install fedprune=={__version__} there"),
        (hello(client=2), r"node 7 is refused: it says that it is client 2, of 0 to 1: type federated\.clients=3 or more"),
        (hello(classes=62), "client 0 has classes 62, and the server 10: write its file of the same data set"),
        (hello(shape=[3, 32, 32]), r"client 0 has shape \[3, 32, 32\], and the server \[1, 8, 8\]"),
        (hello(sizes=(0, 1, 1)), "client 0 has nothing to train on"),
        (hello(sizes=("8", 1, 1)), "or does not say whole numbers"),
        (hello() | {"about": "["}, "it has fedprune None"),
        ({"error": "DataError: data.local=x is not a file"}, "node 7 is refused: DataError: data.local=x"),
        (Failed("its node failed: no module fedprune"), "node 7 is refused: its node failed: no module fedprune"),
        (hello(client=1), "it says that it is client 1, as node 1 does: give it another file of data"),
    ],
)
def test_a_node_that_cannot_be_a_client_is_refused_by_name(said, why, monkeypatch):
    monkeypatch.setattr(rooms, "PAUSE", 0.0)
    nodes = Nodes(Says({1: hello(client=1), 7: said}), 2, AGREED, patience=0.05)
    with pytest.raises(RunError, match=why) as caught:
        nodes.gather()
    assert "1 of federated.clients=2 clients are there; missing: 0" in str(caught.value)


def test_all_clients_give_the_sizes_in_their_order():
    nodes = Nodes(Says({5: hello(client=1, sizes=(3, 0, 1)), 7: hello()}), 2, AGREED)
    assert nodes.gather() == [(8, 1, 1), (3, 0, 1)]
    assert nodes.node_of == {0: 7, 1: 5}


def test_a_client_comes_back_as_another_node_if_it_has_the_same_examples():
    post = Says({5: hello(client=1), 7: hello()})
    nodes = Nodes(post, 2, AGREED)
    nodes.gather()
    post.answers = {5: hello(client=1), 9: hello(sizes=(9, 1, 1))}
    nodes.refresh()
    assert nodes.node_of == {1: 5} and "had (8, 1, 1) at the start: give it the same file" in nodes.refused[9]
    post.answers = {5: hello(client=1), 9: hello(), 11: hello()}
    nodes.refresh()
    assert nodes.node_of == {0: 11, 1: 5}


def test_without_a_server_app_the_executor_says_what_to_type(monkeypatch):
    monkeypatch.setattr(rooms.OFFICE, "nodes", None)
    with pytest.raises(ConfigError, match="type python -m fedprune.deployment run"):
        rooms.OFFICE.open()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "this node has no data: start its SuperNode with --node-config"),
        ({"data.local": "nowhere"}, "data.local=nowhere is"),
    ],
)
def test_a_node_says_what_it_lacks(settings, why):
    assert why in str(answered({"method": "hello"}, Memory({}), settings)["error"])


def test_a_memory_holds_the_last_two_of_a_kind():
    fields: dict = {}
    memory = Memory(fields)
    names = [memory.keep(MASK, content) for content in (b"a", b"b", b"b", b"c")]
    assert [memory.recall(MASK, name) for name in names] == [None, b"b", b"b", b"c"] and len(fields) == 2
    assert memory.recall(MASK, b"") == b"" and memory.keep(MASK, b"") == b""
    assert receipt_of(receipt(digest(b"c"))) == names[-1] and receipt_of(receipt(b"")) == b""


def test_a_bundle_gives_back_its_letters_and_an_error_stands_for_each():
    letters = [{"a": 1, "b": b"x"}, {"a": 2}]
    assert unbundled(bundled(letters, {"c": "all"})) == [{"c": "all"} | letter for letter in letters]
    assert unbundled({"error": "no"}, 2) == [{"error": "no"}] * 2
    assert unbundled(bundled(letters), 3) == [bundled(letters)] * 3


def test_an_answer_of_other_types_is_none():
    message, kept, seconds = trained({"answer": 3, "seconds": "[]", "kept": b"k" * 40})
    assert (message, receipt_of(kept), seconds) == (b"", b"k" * 16, {})
    assert trained({"answer": b"m", "seconds": '{"train": 2.0, "other": 5}'}) == (b"m", {}, {"train": 2.0})
    assert trained({"answer": b"m", "seconds": '{"train": -1}'})[2] == {}
    assert measured({"outcomes": b"nonsense"}, 3, ("loss",)) == {}
    loss, accuracy, names = np.array([0.5, np.nan, np.inf]), np.array([0.0, 1.0, 1.0]), ("loss", "accuracy")
    assert {*measured({"outcomes": save({"loss": loss, "accuracy": accuracy})}, 3, names)} == {*names}
    for lie in ({"loss": loss}, {"loss": loss, "accuracy": accuracy + 0.5}, {"loss": loss, "accuracy": accuracy, "more": loss}):
        assert measured({"outcomes": save(lie)}, 3, names) == {}


def test_a_node_that_leaves_in_the_middle_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("fedprune.deployment.round_trip.LOOK", 0.0)
    post = Says({7: hello()})
    nodes = Nodes(post, 1, AGREED)
    nodes.gather()
    trip = RoundTrip(nodes, 60.0, {}, [Errand(0, {"method": "run"}, {})])
    post.answers, post.receive = {}, lambda names: {}
    assert trip.answer(0) == Failed("its node has left")


def test_an_order_is_read_as_it_was_written(tmp_path):
    order = Order(("+experiment=lth_fedavg", 'name="a b"'), "server.safetensors", "/results", 5.0)
    write_app(order, tmp_path)

    app = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert Order.of(app["config"]) == order
    assert app["components"] == {"serverapp": "ours:server_app", "clientapp": "ours:client_app"}


def test_overrides_about_the_data_of_parties_are_known():
    typed = ("data=digits", "partition.val=0.1", "executor=serial", "executor.timeout=5", "local.epochs=2", "+experiment=x")
    assert [of_the_parties(word) for word in typed] == [True, True, True, False, False, False]
