"""Li et al. 2021 (Hermes): by hand, and against the algorithm written down in numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.federated.client.private_values import by_all, by_cohort
from fedprune.federated.masks import PersonalMask
from fedprune.federated.sampling import cohort
from fedprune.pruning.mask import pack, unpack
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import ClientState, Personal, ServerState, Subnet
from helpers.federation import arrays, federation, inputs
from helpers.in_numpy import accuracy, train

HERMES = (
    *("what=neurons_per_layer", "criterion=filter_norm", "how_often=stepwise", "when=once_accurate", "when.start=0.0"),
    *("when.stop=1.0", "whose=personal", "whose.uncommon=own", "rewind=none", "federated/aggregate=intersection"),
    "federated.weighting=examples",
)
LINEAR = {"_target_": "helpers.federation.mlp", "hidden": 0}
ROWS = (*HERMES, "what.skip=[]", "when.accuracy=1.0", "density=0.5", "how_often.rate=0.5", "local.optimizer.lr=1e-9")
"""One linear layer, whose rows are the units. Steps are next to nothing, and the gate is closed: only the algorithm acts."""


# --- by hand ---------------------------------------------------------------------------------------------------------------


def test_only_what_all_hold_is_averaged_and_the_rest_stays_with_each_client():
    # The server has the rows (10, 20) and (30, 40). Client 0 has the first alone, client 1 both, and has trained (1, 1)
    # and (5, 6). The first row alone is common. So client 0 trains (10, 20), and client 1 (10, 20) and its own (5, 6).
    # What all participants have, the first row, is averaged; the server's second row stays (30, 40).
    # Client 2 has never trained: it has nothing of its own, and takes the server's two rows.
    experiment = federation(*ROWS, "whose.common=all", "rounds=3", model=LINEAR, features=2, classes=2)
    loop = experiment.loop(experiment.executor())
    start = loop.start()
    both, first = start.server.mask, {"fc2.weight": torch.tensor([[True, True], [False, False]])}
    weights = {0: torch.tensor([[3.0, 3.0], [0, 0]]), 1: torch.tensor([[1.0, 1.0], [5, 6]])}
    own = {client: ClientState(weights={"fc2.weight": weight}) for client, weight in weights.items()}
    now = {"fc2.weight": torch.tensor([[10.0, 20.0], [30.0, 40.0]]), "fc2.bias": torch.zeros(2)}
    personal = {0: Personal(pack(first), 1, 0)}
    state = replace(start, server=Subnet(now, both), round=1, clock=1, personal=personal, kept=own)
    assert by_all(state)(0)["fc2.weight"].tolist() == first["fc2.weight"].tolist()
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


def rows(*alive: int) -> dict[str, torch.Tensor]:
    """The mask of these rows."""
    return {"fc2.weight": torch.tensor([[row in alive] * 2 for row in range(2)])}


def test_of_a_cohort_each_client_goes_on_with_what_its_last_cohort_had_in_common(monkeypatch):
    """Client 0 has row 0, client 1 both rows, client 2 row 1. No row is common to all three, and each cohort of two has one."""
    # The server has (10, 20) and (30, 40). Client 0 has trained (3, 3), and its last cohort had row 0 in common. Client 1 has
    # (1, 1) and (5, 6), client 2 (7, 8), and neither shared anything with its last cohort.
    drawn = [(1, 2), (0, 1), (1, 2)]
    monkeypatch.setattr("fedprune.federated.loop.cohort", lambda seed, clock, *_: drawn[clock - 1])
    experiment = federation(*ROWS, "federated.weighting=uniform", "rounds=4", model=LINEAR, features=2, classes=2, cohort=2)
    loop = experiment.loop(experiment.executor())
    start = loop.start()
    masks = {0: rows(0), 1: rows(0, 1), 2: rows(1)}
    values = {0: [[3.0, 3.0], [0, 0]], 1: [[1.0, 1.0], [5, 6]], 2: [[0.0, 0.0], [7, 8]]}
    state = replace(
        start,
        server=Subnet({"fc2.weight": torch.tensor([[10.0, 20.0], [30.0, 40.0]]), "fc2.bias": torch.zeros(2)}, rows(0, 1)),
        server_state=ServerState(common={0: pack(rows(0)), 1: pack(rows()), 2: pack(rows())}),
        round=1, clock=1,
        personal={client: Personal(pack(mask), 1, 0) for client, mask in masks.items()},
        kept={client: ClientState(weights={"fc2.weight": torch.tensor(own)}) for client, own in values.items()},
    )  # fmt: skip

    def assert_round(server, own, bytes_of_blocks):
        nonlocal state
        state, metrics = loop.round(state)
        assert torch.allclose(state.server.params["fc2.weight"], torch.tensor(server), atol=1e-4)
        for client, weights in own.items():
            assert torch.allclose(state.kept[client].weights["fc2.weight"], torch.tensor(weights), atol=1e-4), client
        headers = metrics["wire/down_bytes"] - bytes_of_blocks - 2 * (8 + 4 + 4)
        assert 0 < headers < 2 * 120

    # Clients 1 and 2: nothing comes of the weights, and they go on with their own. Both have row 1, whose mean is
    # ((5, 6) + (7, 8)) / 2 = (6, 7). That client 1 has row 0, too, is not in the server's, which keeps (10, 20).
    # Down go two biases to each, of 4 bytes, behind 2 bytes and the mask of what is common, 4 bits in 1 byte.
    assert_round([[10.0, 20], [6, 7]], {1: [[1.0, 1], [5, 6]], 2: [[0.0, 0], [7, 8]]}, 2 * (2 + 1 + 8))
    # Clients 0 and 1: client 0 gets row 0, which its last cohort had in common, (10, 20); it does without its (3, 3), which is
    # in a mean already. Client 1 gets row 1, (6, 7), and goes on with its own row 0, (1, 1), which is in no mean. Both have row
    # 0: ((10, 20) + (1, 1)) / 2 = (5.5, 10.5). To client 0 go 2 values under the mask that it has, to client 1 2 values and the
    # mask.
    assert_round([[5.5, 10.5], [6, 7]], {0: [[10.0, 20], [0, 0]], 1: [[1.0, 1], [6, 7]]}, (2 + 16) + (2 + 1 + 16))
    # Clients 1 and 2: client 1 gets row 0, (5.5, 10.5), and goes on with its row 1, (6, 7); client 2, two rounds later, gets
    # row 1 as the server has it now, (6, 7). Under the mask that client 2 has, as all that is alive in it is common.
    assert_round([[5.5, 10.5], [6, 7]], {1: [[5.5, 10.5], [6, 7]], 2: [[0.0, 0], [6, 7]]}, (2 + 1 + 16) + (2 + 16))
    remembered = {client: by_cohort(state, client)["fc2.weight"][:, 0].tolist() for client in range(3)}
    assert remembered == {0: [True, False], 1: [False, True], 2: [False, True]}


@pytest.mark.parametrize(("common", "members"), [("all", 3), ("all", 2), ("cohort", 2)])
def test_each_client_is_evaluated_on_the_common_part_and_its_own(common, members, play):
    words = ("when.accuracy=0.0", "density=0.4", "how_often.rate=0.4", "rounds=4", f"whose.common={common}")
    experiment = federation(*HERMES, *words, cohort=members)
    state, metrics = play(experiment)[-1]
    right = []
    shapes = {name: alive.shape for name, alive in state.server.mask.items()}
    for client in range(3):
        shared = arrays(by_all(state)(client) if common == "all" else by_cohort(state, client))
        mask, own = arrays(unpack(state.personal[client].mask, shapes)), arrays(state.kept[client].weights)
        server = arrays(state.server.params)
        w = server | {name: np.where(shared[name], server[name], own[name]) * mask[name] for name in mask}
        right.append(accuracy(w, *inputs(experiment, experiment.clients.test[client])))
    assert metrics["client/accuracy_mean"] == pytest.approx(np.mean(right))


# --- against numpy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("common", ["cohort", "all"])
@pytest.mark.parametrize(("gate", "members"), [(0.0, 3), (0.0, 2), (0.8, 3), (0.5, 2)])
def test_it_is_the_algorithm_of_the_paper_written_down_in_numpy(gate, members, common, play, differences, tmp_path):
    rate, rounds, final, epochs = 0.25, 8, 0.4, 3
    experiment = federation(
        *(*HERMES, "what.skip=[last]", f"when.accuracy={gate}", f"how_often.rate={rate}", f"density={final}"),
        *(f"rounds={rounds}", f"local.epochs={epochs}", "local.optimizer.momentum=0.5", f"whose.common={common}"),
        "local.optimizer.lr=0.5", model={"_target_": "helpers.federation.mlp", "hidden": 24}, cohort=members,
        train=[range(0, 30, 3), range(1, 20, 3), range(2, 36, 3)],  # a class for each, so that they come to hold other rows
    )  # fmt: skip
    played = play(experiment)

    init = arrays(experiment.loop(experiment.executor()).start().init)
    name, densities = "fc1.weight", [0.75, 0.5625, 0.421875, 0.4]
    server, masks, own, events, last = dict(init), {}, {}, {}, {}
    whole, differing = np.ones(init[name].shape, bool), 0
    for round, (state, _) in enumerate(played):
        updates = []
        by_everybody = np.logical_and.reduce([whole, *masks.values()])
        for k in cohort(0, round, 3, members):
            mask = masks.get(k, whole)
            w = dict(server)
            if k in own:
                differing += not np.array_equal(by_everybody, last[k])
                w[name] = np.where(by_everybody if common == "all" else last[k], server[name], own[k])
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
        last |= dict.fromkeys(cohort(0, round, 3, members), all_hold)
        for key, value in state.server.params.items():
            assert np.allclose(value.numpy(), server[key], atol=1e-5), (round, key)
        assert {k: own_.events for k, own_ in state.personal.items()} == events
        for k, weights in own.items():
            assert np.allclose(state.kept[k].weights[name].numpy(), weights, atol=1e-5), (round, k)
            found = unpack(state.personal[k].mask, {name: torch.Size(whole.shape)})[name].numpy() if k in masks else whole
            assert np.array_equal(found, masks.get(k, whole)), (round, k)
    assert sum(events.values()) >= 3
    assert members == 3 or differing  # the two rules are two
    if gate or (members == 2 and common == "all"):  # otherwise all prune networks of the same values
        assert len({mask.tobytes() for mask in masks.values()}) > 1

    save_state(played[3][0], tmp_path / "state.safetensors")
    rest = play(experiment, state=load_state(tmp_path / "state.safetensors"))
    assert differences(rest[-1][0], played[-1][0]) == []


def test_it_is_either_the_servers_value_or_the_clients_own():
    with pytest.raises(ConfigError, match="whose.uncommon=nobody: choose server or own"):
        PersonalMask(uncommon="nobody")
    with pytest.raises(ConfigError, match="whose.common=nobody: choose cohort or all"):
        PersonalMask(uncommon="own", common="nobody")
    with pytest.raises(ConfigError, match="whose.common=all is about clients that keep values of their own"):
        PersonalMask(common="all")
