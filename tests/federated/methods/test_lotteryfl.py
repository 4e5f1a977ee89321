"""Li et al. 2021 (LotteryFL): by hand, and against the algorithm written down in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedprune.federated.sampling import cohort
from fedprune.types import Subnet
from helpers.federation import arrays, assert_personal, assert_same, federation, inputs, masks_of
from helpers.in_numpy import accuracy, held_mean, largest, train

LOTTERYFL = (
    *("what=weights_per_layer", "what.scope.rates.last=1.0", "criterion=magnitude", "how_often=stepwise"),
    *("when=once_accurate", "when.start=0.0", "when.stop=1.0", "whose=personal", "rewind=init"),
)


# --- by hand ---------------------------------------------------------------------------------------------------------------


def test_a_round_of_two_clients_by_hand(play):
    """One linear layer of 2 x 2 weights, clients who learn next to nothing (lr = 1e-9), so that only the algorithm acts."""
    # The server comes with w = [[4, -3], [2, 1]] after round 1 began from w_init = [[1, 1], [1, 1]] (biases 0).
    # The gate (validation accuracy >= 0.5) asks about w: logits for the features (a, b) are (4a - 3b, 2a + b).
    #   client 0 validates on (1, 0) of class 0: 4 > 2, right: accuracy 1. It keeps half of its weights, the largest: 4 and -3,
    #     and goes back to the start: [[1, 1], [0, 0]].
    #   client 1 validates on (0, 1) of class 0: -3 < 1, wrong: accuracy 0. It keeps all, and w.
    # Mean over who holds an entry, uniform: [[(1 + 4)/2, (1 - 3)/2], [2, 1]] = [[2.5, -1], [2, 1]].
    experiment = federation(
        *(*LOTTERYFL, "density=0.5", "how_often.rate=0.5", "rounds=3", "local.optimizer.lr=1e-9"),
        model={"_target_": "helpers.federation.mlp", "hidden": 0},
        train=[[0], [1]], val=[[0], [1]], test=[[0], [1]], features=2, classes=2, number=30,
    )  # fmt: skip
    images = torch.tensor([[4, 0], [0, 4]], dtype=torch.uint8).view(2, 1, 1, 2)
    experiment.dataset.x[:2], experiment.dataset.y[:2] = images, 0
    loop = experiment.loop(experiment.executor())
    init = {"fc2.weight": torch.ones(2, 2), "fc2.bias": torch.zeros(2)}
    now = {"fc2.weight": torch.tensor([[4.0, -3.0], [2.0, 1.0]]), "fc2.bias": torch.zeros(2)}
    start = loop.start()
    state = type(start)(Subnet(now, start.server.mask), init=init, ticket=init, round=1, clock=1, anchors={0: init})
    on_client = loop.exchange.executor._client_round.event
    on_client.__dict__["start"] = init  # what the run would have started from
    after, _ = loop.round(state)
    assert torch.allclose(after.server.params["fc2.weight"], torch.tensor([[2.5, -1.0], [2.0, 1.0]]), atol=1e-6)
    assert masks_of(after)[0]["fc2.weight"].tolist() == [[True, True], [False, False]]
    assert after.personal.keys() == {0}
    assert (after.personal[0].events, after.personal[0].pruned) == (1, 1)
    # In the next round client 0 is sent its own part, is done with the plan's only event and stays as it is; client 1 is asked
    # about [[2.5, -1], [2, 1]]: -1 < 1 still, so its gate stays shut.
    again, _ = loop.round(after)
    assert again.personal == after.personal
    assert torch.allclose(again.server.params["fc2.weight"], torch.tensor([[2.5, -1.0], [2.0, 1.0]]), atol=1e-6)


# --- against numpy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [3, 2])
@pytest.mark.parametrize("gate", [0.0, 0.6])
def test_it_is_the_algorithm_of_the_paper_written_down_in_numpy(gate, members, play):
    rate, rounds, final, epochs = 0.2, 7, 0.4, 3
    experiment = federation(
        *(*LOTTERYFL, f"when.accuracy={gate}", f"how_often.rate={rate}", f"density={final}", f"rounds={rounds}"),
        *(f"local.epochs={epochs}", "local.optimizer.momentum=0.5"),
        cohort=members,
    )
    played = play(experiment)

    init = arrays(experiment.loop(experiment.executor()).start().init)
    names = ("fc1.weight", "fc2.weight")
    densities = [*(rate_ for k in range(1, 9) if (rate_ := (1 - rate) ** k) > final), final]
    server, masks, events = dict(init), {}, {}
    clients, pruned = experiment.clients, 0
    for round, (state, metrics) in enumerate(played):
        updates, sent = [], []
        for k in cohort(0, round, 3, members):
            mask = masks.get(k, {name: np.ones(init[name].shape, bool) for name in names})
            w = {name: value * mask.get(name, 1.0) for name, value in server.items()}
            sent.append(np.mean(np.concatenate([m.ravel() for m in mask.values()])))
            open_ = accuracy(w, *inputs(experiment, clients.val[k])) >= gate
            if round >= 1 and events.get(k, 0) < len(densities) and open_:
                density = densities[events.get(k, 0)]
                mask = {name: largest(w[name], mask[name], math.floor(density * mask[name].size + 0.5)) for name in names}
                w = {name: value * mask.get(name, 1.0) for name, value in init.items()}  # biases, too, go back
                masks[k], events[k], pruned = mask, events.get(k, 0) + 1, pruned + 1
            updates.append((train(w, mask, *inputs(experiment, clients.train[k]), epochs, momentum=0.5), mask, 1.0))
        server = held_mean(server, updates)
        assert_same(state, server, {})
        assert_personal(state, masks, events)
        assert metrics["density/weights"] == pytest.approx(np.mean(sent))
    assert pruned >= (6 if gate == 0 else 2)
    assert gate == 0 or pruned < 3 * len(densities)  # the gate has kept somebody waiting


def test_what_no_client_holds_any_more_keeps_the_servers_value(play):
    """Both clients learn alike, so they drop the same entries, and nobody sends those again."""
    experiment = federation(
        *(*LOTTERYFL, "when.accuracy=0.0", "density=0.5", "how_often.rate=0.5", "rounds=3"),
        train=[range(12), range(12)], val=[range(12, 15)] * 2, test=[range(15, 18)] * 2,
    )  # fmt: skip
    (first, _), (second, _), (third, _) = play(experiment)
    for name, alive in masks_of(second)[0].items():
        assert torch.equal(alive, masks_of(second)[1][name])
        dead = ~alive
        assert dead.sum() > 0
        assert torch.equal(third.server.params[name][dead], first.server.params[name][dead])
        assert not torch.equal(third.server.params[name][alive], first.server.params[name][alive])
