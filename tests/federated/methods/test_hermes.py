"""Li et al. 2021 (Hermes): by hand, and against the algorithm written down in numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.federated.client.private_values import common_entries
from fedprune.federated.masks import PersonalMask
from fedprune.federated.sampling import cohort
from fedprune.pruning.mask import pack, unpack
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import ClientState, Personal, Subnet
from helpers.federation import arrays, federation, inputs
from helpers.in_numpy import accuracy, train

HERMES = (
    *("what=neurons_per_layer", "criterion=filter_norm", "how_often=stepwise", "when=once_accurate", "when.start=0.0"),
    *("when.stop=1.0", "whose=personal", "whose.uncommon=own", "rewind=none", "federated/aggregate=intersection"),
    "federated.weighting=examples",
)
LINEAR = {"_target_": "helpers.federation.mlp", "hidden": 0}


# --- by hand ---------------------------------------------------------------------------------------------------------------


def test_only_what_all_hold_is_averaged_and_the_rest_stays_with_each_client(play):
    """One linear layer of two rows, which are the units. Steps are next to nothing (lr = 1e-9), so only the algorithm acts."""
    # The server has the rows (10, 20) and (30, 40). Client 0 has the first alone, client 1 both, and has trained (1, 1)
    # and (5, 6). The first row alone is common. So client 0 trains (10, 20), and client 1 (10, 20) and its own (5, 6).
    # What all participants have, the first row, is averaged; the server's second row stays (30, 40).
    # Client 2 has never trained: it has nothing of its own, and takes the server's two rows.
    experiment = federation(
        *(*HERMES, "what.skip=[]", "when.accuracy=1.0", "density=0.5", "how_often.rate=0.5", "rounds=3"),
        "local.optimizer.lr=1e-9",
        model=LINEAR, features=2, classes=2,
    )  # fmt: skip
    loop = experiment.loop(experiment.executor())
    start = loop.start()
    both, first = start.server.mask, {"fc2.weight": torch.tensor([[True, True], [False, False]])}
    weights = {0: torch.tensor([[3.0, 3.0], [0, 0]]), 1: torch.tensor([[1.0, 1.0], [5, 6]])}
    own = {client: ClientState(weights={"fc2.weight": weight}) for client, weight in weights.items()}
    now = {"fc2.weight": torch.tensor([[10.0, 20.0], [30.0, 40.0]]), "fc2.bias": torch.zeros(2)}
    personal = {0: Personal(pack(first), 1, 0)}
    state = replace(start, server=Subnet(now, both), round=1, clock=1, personal=personal, kept=own)
    assert common_entries(state)["fc2.weight"].tolist() == first["fc2.weight"].tolist()
    after, metrics = loop.round(state)
    assert torch.allclose(after.server.params["fc2.weight"], torch.tensor([[10.0, 20.0], [30.0, 40.0]]), atol=1e-4)
    trained = {client: kept.weights["fc2.weight"] for client, kept in after.kept.items()}
    assert torch.allclose(trained[0], torch.tensor([[10.0, 20.0], [0.0, 0.0]]), atol=1e-4)
    assert torch.allclose(trained[1], torch.tensor([[10.0, 20.0], [5.0, 6.0]]), atol=1e-4)
    assert torch.allclose(trained[2], torch.tensor([[10.0, 20.0], [30.0, 40.0]]), atol=1e-4)
    # Values that go down, 4 bytes each: 2, 2 and 4 weights, and two biases for each. In front 2 bytes; the mask of
    # the common entries, 4 bits in 1 byte, to client 1 alone (client 0 has it already, client 2 is sent everything).
    blocks = (2 + 4 * 4) + (2 + 1 + 4 * 4) + (2 + 4 * 6)
    headers = metrics["wire/down_bytes"] - blocks - 3 * (8 + 4 + 4)
    assert 0 < headers < 3 * 120


def test_each_client_is_evaluated_on_the_common_part_and_its_own(play):
    experiment = federation(*HERMES, "when.accuracy=0.0", "density=0.4", "how_often.rate=0.4", "rounds=4")
    state, metrics = play(experiment)[-1]
    shared, right = arrays(common_entries(state)), []
    shapes = {name: alive.shape for name, alive in state.server.mask.items()}
    for client in range(3):
        mask, own = arrays(unpack(state.personal[client].mask, shapes)), arrays(state.kept[client].weights)
        server = arrays(state.server.params)
        w = server | {name: np.where(shared[name], server[name], own[name]) * mask[name] for name in mask}
        right.append(accuracy(w, *inputs(experiment, experiment.clients.test[client])))
    assert metrics["client/accuracy_mean"] == pytest.approx(np.mean(right))


# --- against numpy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gate", "members"), [(0.0, 3), (0.0, 2), (0.8, 3), (0.5, 2)])
def test_it_is_the_algorithm_of_the_paper_written_down_in_numpy(gate, members, play, differences, tmp_path):
    rate, rounds, final, epochs = 0.25, 8, 0.4, 3
    experiment = federation(
        *(*HERMES, "what.skip=[last]", f"when.accuracy={gate}", f"how_often.rate={rate}", f"density={final}"),
        *(f"rounds={rounds}", f"local.epochs={epochs}", "local.optimizer.momentum=0.5"),
        "local.optimizer.lr=0.5", model={"_target_": "helpers.federation.mlp", "hidden": 24}, cohort=members,
        train=[range(0, 30, 3), range(1, 20, 3), range(2, 36, 3)],  # a class for each, so that they come to hold other rows
    )  # fmt: skip
    played = play(experiment)

    init = arrays(experiment.loop(experiment.executor()).start().init)
    name, densities = "fc1.weight", [0.75, 0.5625, 0.421875, 0.4]
    server, masks, own, events = dict(init), {}, {}, {}
    whole = np.ones(init[name].shape, bool)
    for round, (state, _) in enumerate(played):
        updates = []
        shared = np.logical_and.reduce([whole, *masks.values()])
        for k in cohort(0, round, 3, members):
            mask = masks.get(k, whole)
            w = dict(server)
            if k in own:
                w[name] = np.where(shared, server[name], own[k])
            w[name] = w[name] * mask
            right = accuracy(w, *inputs(experiment, experiment.clients.val[k]))
            if round >= 1 and events.get(k, 0) < len(densities) and right >= gate:
                norms = np.where(mask.any(1), np.abs(w[name]).sum(1), -1)
                rows = np.argsort(-norms, kind="stable")[: math.floor(densities[events.get(k, 0)] * 24 + 0.5)]
                mask = np.zeros_like(mask)
                mask[rows] = True
                w[name], masks[k], events[k] = w[name] * mask, mask, events.get(k, 0) + 1
            x, y = inputs(experiment, experiment.clients.train[k])
            w = train(w, {name: mask}, x, y, epochs, 0.5, momentum=0.5)
            own[k] = w[name]
            updates.append((w, mask, len(y)))
        total = sum(n for *_, n in updates)
        mean = {key: sum(n * w[key] for w, _, n in updates) / total for key in server}
        all_hold = np.logical_and.reduce([mask for _, mask, _ in updates])
        server = mean | {name: np.where(all_hold, mean[name], server[name])}
        for key, value in state.server.params.items():
            assert np.allclose(value.numpy(), server[key], atol=1e-5), (round, key)
        assert {k: own_.events for k, own_ in state.personal.items()} == events
        for k, weights in own.items():
            assert np.allclose(state.kept[k].weights[name].numpy(), weights, atol=1e-5), (round, k)
            found = unpack(state.personal[k].mask, {name: torch.Size(whole.shape)})[name].numpy() if k in masks else whole
            assert np.array_equal(found, masks.get(k, whole)), (round, k)
    assert sum(events.values()) >= 3
    if gate or members == 2:  # otherwise all prune the same network at the same time
        assert len({mask.tobytes() for mask in masks.values()}) > 1

    save_state(played[3][0], tmp_path / "state.safetensors")
    rest = play(experiment, state=load_state(tmp_path / "state.safetensors"))
    assert differences(rest[-1][0], played[-1][0]) == []


def test_it_is_either_the_servers_value_or_the_clients_own():
    with pytest.raises(ConfigError, match="whose.uncommon=nobody: choose server or own"):
        PersonalMask(uncommon="nobody")
