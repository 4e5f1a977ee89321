"""A federation whose nodes are in this process gives the bits of executor=serial, and each node has its own examples alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fedprune.deployment import nodes as rooms
from fedprune.deployment.local_data import SERVER_FILE, read, split
from fedprune.deployment.nodes import Nodes
from fedprune.deployment.post import Failed
from fedprune.errors import Incompatible, RunError
from fedprune.execution import employed
from fedprune.experiment.build import build
from helpers.composed import TINY, assemble
from helpers.nodes_here import NodesHere, nodes_of

CLIENTS = 3
ROOM = Path(rooms.__file__).parent
BASE = (*TINY, f"federated.clients={CLIENTS}", "federated.cohort=2", "rounds=4", "eval_every=2", "federated.tuned=1")
LTH = ("when=after_training", "how_often=iterative", "rewind=init", "density=0.5", "rounds=2", "how_often.rate=0.5")
LOTTERY = (
    *("criterion=magnitude", "what=weights_per_layer", "when=once_accurate", "how_often=stepwise", "whose=personal"),
    *(
        "rewind=init",
        "whose.at=start",
        "when.accuracy=0.0",
        "when.start=0.0",
        "when.stop=1.0",
        "density=0.25",
        "rounds=5",
        "how_often.rate=0.5",
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("federation")
    experiment = build(*assemble(*BASE))
    split(experiment.dataset, experiment.clients, into)
    return into


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> rooms.Office:
    monkeypatch.setattr(rooms, "PAUSE", 0.0)
    monkeypatch.setattr(rooms.OFFICE, "nodes", None)
    monkeypatch.setattr(rooms.OFFICE, "names", {})
    return rooms.OFFICE


def digest(state) -> str:
    hashed = hashlib.sha256()
    for tensors in (state.ticket, state.server.params, state.server.mask):
        for name in sorted(tensors):
            hashed.update(name.encode() + tensors[name].numpy().tobytes())
    for client in sorted(state.personal):
        hashed.update(bytes(state.personal[client].mask))
    return hashed.hexdigest()


def trained(config, names):
    experiment, metrics = build(config, names), {}
    with employed(experiment.executor()) as executor:
        loop = experiment.loop(executor)
        state = loop.start()
        for _ in range(experiment.plan.rounds):
            state, metrics = loop.round(state)
    return state, metrics


def federated(post: NodesHere, office: rooms.Office, folder: Path, *overrides: str, timeout: float = 60.0):
    office.nodes = Nodes(post, CLIENTS, read(folder / SERVER_FILE).agreed, patience=1.0)
    config, office.names = assemble(*overrides, "executor=flower", f"executor.timeout={timeout}")
    for group in ("data", "partition"):
        OmegaConf.update(config, group, OmegaConf.load(ROOM / "conf" / group / "federation.yaml"), merge=False)
    config.data.local, config.partition.sizes = str(folder / SERVER_FILE), office.nodes.gather()
    return trained(config, office.names)


def running(node, letter):
    return letter.get("0/method") == "run" and (node is None or node == 101)


@pytest.mark.parametrize(
    "method",
    [(), LTH, LOTTERY, ("federated.optimizer_state=kept", "local.optimizer.momentum=0.9")],
    ids=["dense", "lth_fedavg", "lotteryfl", "optimizer kept"],
)
def test_the_bits_are_those_of_serial(method, folder, office):
    serial, expected = trained(*assemble(*BASE, *method))
    post = NodesHere(nodes_of(folder, CLIENTS))
    state, metrics = federated(post, office, folder, *BASE, *method)
    assert digest(state) == digest(serial)
    timed = {name for name in expected if name.startswith("time/")}
    assert {name: metrics[name] for name in expected if name not in timed} == pytest.approx(
        {name: expected[name] for name in expected if name not in timed}, rel=1e-6
    )


def test_what_a_client_keeps_stays_at_its_node(folder, office):
    method = ("federated.optimizer_state=kept", "local.optimizer.momentum=0.9")
    post = NodesHere(nodes_of(folder, CLIENTS))
    state, _ = federated(post, office, folder, *BASE, *method)
    assert state.kept and all(not kept.optimizer and len(kept.mask) == 16 for kept in state.kept.values())
    assert sum(any(name.startswith("state/") for name in memory) for memory in post.memories.values()) == len(state.kept)


def test_a_mask_that_the_node_has_made_is_not_sent(folder, office):
    post = NodesHere(nodes_of(folder, CLIENTS))
    state, _ = federated(post, office, folder, *BASE, *LOTTERY)
    assert state.personal and not any("0/mask_bits" in letter for _, letter in post.letters)


def test_a_node_that_has_lost_its_mask_is_sent_it(folder, office):
    serial, _ = trained(*assemble(*BASE, *LOTTERY))
    post = NodesHere(nodes_of(folder, CLIENTS))
    kept = post.send

    def forgetful(letters):
        post.memories.clear()
        return kept(letters)

    post.send = forgetful
    state, _ = federated(post, office, folder, *BASE, *LOTTERY)
    assert digest(state) == digest(serial) and any("0/mask_bits" in letter for _, letter in post.letters)


def test_a_node_that_leaves_is_a_client_that_does_not_answer(folder, office, caplog):
    post = NodesHere(nodes_of(folder, CLIENTS))

    def leaves(node, letter, answer):
        if letter.get("0/method") == "run" and node == 100:
            post.settings.pop(100, None)
            return Failed("gone")
        return answer

    post.twist = leaves
    _, metrics = federated(post, office, folder, *BASE, "rounds=6")
    assert "client 0: its node 100 has left" in caplog.text and "left out of the round" in caplog.text
    assert metrics["client/accuracy_mean"] >= 0  # of those who are there


def test_one_that_is_late_too_and_if_nobody_answers_the_run_ends(folder, office):
    post = NodesHere(
        nodes_of(folder, CLIENTS), lambda node, letter, answer: None if letter.get("0/method") == "run" else answer
    )
    with pytest.raises(RunError, match=r"nobody brought an answer: it has not answered within executor\.timeout=0\.05 seconds"):
        federated(post, office, folder, *BASE, timeout=0.05)


def test_an_answer_that_is_none_goes_by_the_rule_for_broken_updates(folder, office):
    def nonsense(node, letter, answer):
        return answer | {"0/answer": b"nonsense"} if running(node, letter) else answer

    with pytest.raises(RunError, match=r"client 1 in round \d: its update cannot be read"):
        federated(NodesHere(nodes_of(folder, CLIENTS), nonsense), office, folder, *BASE)


def test_a_node_that_poses_as_another_client_is_found(folder, office):
    post = NodesHere(nodes_of(folder, CLIENTS))
    answers = {}

    def another(node, letter, answer):
        if letter.get("0/method") == "run":
            answers[node] = answer
            return next(iter(answers.values()))
        return answer

    post.twist = another
    with pytest.raises(RunError, match="it says that it is of client"):
        federated(post, office, folder, *BASE)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ((*LOTTERY, "whose.uncommon=own"), "choose whose.uncommon=server"),
        (("federated.control=scaffold", "federated.weighting=uniform"), "choose federated.control=none, or whose=personal"),
    ],
)
def test_what_the_server_would_have_to_read_is_refused(overrides, why, folder, office):
    post = NodesHere(nodes_of(folder, CLIENTS))
    with pytest.raises(Incompatible, match=why):
        federated(post, office, folder, *BASE, *overrides)


def test_each_file_has_its_own_examples_alone(folder):
    experiment = build(*assemble(*BASE))
    for client in range(CLIENTS):
        data = read(folder / f"client_{client}.safetensors")
        assert data.client == client and data.sizes == tuple(
            len(part[client]) for part in (experiment.clients.train, experiment.clients.val, experiment.clients.test)
        )
        assert torch.equal(data.dataset.x[: data.sizes[0]], experiment.dataset.x[experiment.clients.train[client]])
    assert torch.equal(read(folder / SERVER_FILE).dataset.test_x, experiment.dataset.test_x)
