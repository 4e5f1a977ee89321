"""HeteroFL (Diao et al. 2021): by hand, and against the algorithm written down in numpy with arrays that are really smaller."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedprune.federated.sampling import cohort
from fedprune.pruning.mask import apply, count
from fedprune.types import Subnet, Update
from fedprune.wire.frame import length
from helpers.capacities import carrying, cut, merged
from helpers.federation import arrays, federation, inputs
from helpers.in_numpy import Arrays

HETEROFL = ("whose=nested", "whose.by=width", "whose.labels=own", "how_often=never", "local/dropout=scaled")


# --- by hand ---------------------------------------------------------------------------------------------------------------


def test_an_entry_is_the_plain_mean_over_those_who_have_its_units_and_its_label():
    """Two hidden units, labels 0, 1, 2. Client 0 carries all and has labels 0 and 1, client 1 half and labels 1 alone. The
    server has 9 everywhere, client 0 sends 2, client 1 sends 4 (and has four times the examples, which do not count).

    fc1: unit 0 of both (2 + 4) / 2 = 3; unit 1 of client 0: 2. fc2 by label and unit: label 0 of client 0: 2, 2; label 1, unit
    0 of both: 3, unit 1 of client 0: 2; label 2 of nobody: 9, 9. Biases of the labels: 2, 3, 9.
    """
    experiment = federation(
        *HETEROFL, "rounds=1", train=([0, 1, 3, 4], [1, 4, 7, 10]), val=([], []), test=([], []),
        model={"_target_": "helpers.federation.mlp", "hidden": 2}, features=1,
    )  # fmt: skip
    loop = carrying(experiment, (1.0, 0.5)).loop(experiment.executor())
    state = loop.start()
    state = type(state)(
        Subnet({name: torch.full_like(value, 9.0) for name, value in state.init.items()}, state.server.mask), {}, {}
    )
    answers = []
    for client, value, examples in ((0, 2.0, 10), (1, 4.0, 40)):
        job = loop._job(state, client)
        params = apply({name: torch.full_like(old, value) for name, old in state.server.params.items()}, job.subnet.mask)
        answers.append((job, Update(client, Subnet(params, job.subnet.mask), examples, metrics={"seen": 1})))
    fold = loop._fold(state)
    for job, update in answers:
        fold.add(job, update)
    found = loop._step(state, fold).server.params
    assert found["fc1.weight"].tolist() == [[3.0], [2.0]]
    assert found["fc1.bias"].tolist() == [3.0, 2.0]
    assert found["fc2.weight"].tolist() == [[2.0, 2.0], [3.0, 2.0], [9.0, 9.0]]
    assert found["fc2.bias"].tolist() == [2.0, 3.0, 9.0]


# --- against numpy ---------------------------------------------------------------------------------------------------------


def sgd(w: Arrays, x, y, steps: int, rate: float, labels, classes: int, lr: float, momentum: float) -> Arrays:
    """Full-batch steps on the mean cross-entropy over all `classes` logits, of which those of no `labels` are zero; hidden
    units, before their ReLU, are divided by `rate`."""
    v = {name: np.zeros_like(value) for name, value in w.items()}
    for _ in range(steps):
        before = (x @ w["fc1.weight"].T + w["fc1.bias"]) / rate
        hidden = np.maximum(before, 0)
        logits = np.zeros((len(x), classes))
        logits[:, labels] = hidden @ w["fc2.weight"].T + w["fc2.bias"]
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        p = p[:, labels] / len(y)
        back = (p @ w["fc2.weight"]) * (before > 0) / rate
        g = {"fc2.weight": p.T @ hidden, "fc2.bias": p.sum(0), "fc1.weight": back.T @ x, "fc1.bias": back.sum(0)}
        v = {name: momentum * v[name] + g[name] for name in w}
        w = {name: w[name] - lr * v[name] for name in w}
    return w


def test_four_rounds_are_those_of_the_algorithm_in_numpy(play):
    train = ([0, 1, 3, 4, 6], [1, 2, 4, 5, 8], [2, 5, 8, 11], [0, 2, 6, 9])
    experiment = federation(
        *HETEROFL, "rounds=4", "local.epochs=3", "local.optimizer.momentum=0.9",
        train=train, val=([],) * 4, test=([],) * 4, cohort=3,
    )  # fmt: skip
    capacities = (1.0, 0.5, 0.25, 0.5)  # of 5 hidden units: 5, 3, 2, 3
    experiment = carrying(experiment, capacities)
    played = play(experiment)
    server = arrays(experiment.net.state_dict())
    for clock, (state, metrics) in enumerate(played):
        parts = []
        for client in cohort(0, clock, 4, 3):
            x, y = inputs(experiment, experiment.clients.train[client])
            wide, labels = math.ceil(5 * capacities[client]), np.unique(y)
            part = sgd(cut(server, wide, labels), x, y, 3, wide / 5, labels, 3, 0.1, 0.9)
            parts.append((part, wide, labels, 1.0))
        server = merged(server, parts)
        for name, value in server.items():
            assert np.allclose(state.server.params[name], value, atol=1e-5), (clock, name)
        assert all(alive.all() for alive in state.server.mask.values())
        # six features: what a client has of the weights, of 5 x 6 + 3 x 5 = 45
        densities = [(6 * wide + wide * len(labels)) / 45 for _, wide, labels, _ in parts]
        assert metrics["density/weights"] == pytest.approx(np.mean(densities))


def test_the_control_without_scaler_and_with_all_labels_learns_something_else(play):
    train = ([0, 1, 3, 4, 6], [1, 2, 4, 5, 8])
    found = []
    for changes in ((), ("local/dropout=none",), ("whose.labels=all",)):
        experiment = federation(*HETEROFL, "rounds=1", *changes, train=train, val=([], []), test=([], []))
        found.append(play(carrying(experiment, (0.5, 0.5)))[-1][0].server.params["fc1.weight"])
    assert not torch.allclose(found[0], found[1], atol=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_a_client_is_sent_no_outputs_of_labels_that_it_has_not(play):
    """Of 5 units, capacity 1/2 has 3; labels 1 and 2: fc1 3 x 6 + 3, fc2 2 x 3 + 2."""
    experiment = federation(*HETEROFL, "rounds=1", train=([0, 3], [1, 2, 4, 5]), val=([], []), test=([], []))
    loop = carrying(experiment, (1.0, 0.5)).loop(experiment.executor())
    job = loop._job(loop.start(), 1)
    assert count(job.subnet.mask) == 3 * 6 + 3 + 2 * 3 + 2
    assert job.kept_mask and not job.subnet.params["fc2.weight"][0].any() and job.subnet.params["fc2.bias"].shape == (3,)
    message = loop.exchange.wire.encode_job(job, loop.exchange.wire.subnet_block(job.subnet, job.subnet.mask))
    header = loop.exchange.wire.encode_job(job, b"")
    assert length(message) == length(header) + 2 + 4 * count(job.subnet.mask)  # codec, flag, values
    assert loop.exchange.wire.decode_job(message, job.kept_mask).subnet.params["fc2.bias"][0] == 0
