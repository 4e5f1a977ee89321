"""Sub-FedAvg (Un) (Vahidian et al. 2021): by hand, and against the algorithm written down in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedprune.federated.client.prune_event import Looks, OnClient
from fedprune.federated.sampling import cohort
from fedprune.pruning.event import Axes
from fedprune.pruning.gate import Moving
from fedprune.pruning.rewind import Keep
from fedprune.types import Job, PruneEvent, Subnet
from helpers.federation import arrays, assert_personal, assert_same, federation, inputs
from helpers.in_numpy import accuracy, held_mean, largest, train

SUBFEDAVG = (
    *("what=weights_per_layer", "what.scope.rates.last=1.0", "criterion=magnitude", "how_often=stepwise"),
    *("when=once_moving", "when.start=0.0", "when.stop=1.0", "whose=personal", "whose.at=end", "rewind=none"),
)


# --- by hand ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "accurate", "pruned"),
    [
        # After the first epoch w = [[4, 3], [2, 1]], after the last [[1, 3], [2, 4]]. Half of the weights may stay: first 4 and
        # 3,
        # then 3 and 4 elsewhere: the two masks differ in the places (0, 0) and (1, 1), 2 of the 4 living, a shift of 0.5.
        (0.4, 0.5, True),
        (0.5, 0.5, False),  # not more than it
        (0.4, 0.7, False),  # what is left is right in 60 %
        (0.4, 0.6, True),
    ],
)
def test_a_client_prunes_while_its_mask_moves_and_only_if_what_is_left_is_accurate(shift, accurate, pruned):
    experiment = federation(*SUBFEDAVG, "density=0.5", "how_often.rate=0.5", "rounds=3", model={
        "_target_": "helpers.federation.mlp", "hidden": 0}, features=2, classes=2)  # fmt: skip
    first, last = {"fc2.weight": torch.tensor([[4.0, 3.0], [2.0, 1.0]])}, {"fc2.weight": torch.tensor([[1.0, 3.0], [2.0, 4.0]])}
    alive = {"fc2.weight": torch.ones(2, 2, dtype=torch.bool)}
    asked = []

    def right(subnet):
        asked.append(subnet.params["fc2.weight"].tolist())
        return {"val_accuracy": 0.6}

    def measure(names, subnet, about):
        return {"params": subnet.params}

    on_client = OnClient(
        Axes(experiment.axes.what, experiment.axes.criterion), Keep(), Moving(shift, accurate), "end", lambda n: {}
    )
    job = Job(0, 1, 1, 0, Subnet(last, alive), event=PruneEvent(1, 0.5))
    found = on_client(job, Subnet(last, alive), Looks(measure, right, first))
    assert asked == [[[0.0, 3.0], [0.0, 4.0]]]  # the pruned network, not the one before
    if not pruned:
        assert found is None
        return
    assert found is not None and not found.replaced
    assert found.subnet.mask["fc2.weight"].tolist() == [[False, True], [False, True]]
    assert found.subnet.params["fc2.weight"].tolist() == [[0.0, 3.0], [0.0, 4.0]]


# --- against numpy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [3, 2])
@pytest.mark.parametrize(("shift", "gate"), [(0.0, 0.0), (0.015, 0.5)])
def test_it_is_the_algorithm_of_the_paper_written_down_in_numpy(shift, gate, members, play):
    rate, rounds, final, epochs, lr = 0.1, 7, 0.7, 5, 0.5
    experiment = federation(
        *(*SUBFEDAVG, f"when.shift={shift}", f"when.accuracy={gate}", f"how_often.rate={rate}", f"density={final}"),
        *(f"rounds={rounds}", f"local.epochs={epochs}", f"local.optimizer.lr={lr}", "local.optimizer.momentum=0.5"),
        model={"_target_": "helpers.federation.mlp", "hidden": 16}, cohort=members,
    )  # fmt: skip
    played = play(experiment)

    init = arrays(experiment.loop(experiment.executor()).start().init)
    names = ("fc1.weight", "fc2.weight")
    densities = [0.9, 0.81, 0.729, 0.7]
    server, masks, events, refused = dict(init), {}, {}, 0
    for round, (state, _) in enumerate(played):
        updates = []
        for k in cohort(0, round, 3, members):
            mask = masks.get(k, {name: np.ones(init[name].shape, bool) for name in names})
            w = {name: value * mask.get(name, 1.0) for name, value in server.items()}
            data = inputs(experiment, experiment.clients.train[k])
            early, w = train(w, mask, *data, 1, lr, momentum=0.5), train(w, mask, *data, epochs, lr, momentum=0.5)
            if round >= 1 and events.get(k, 0) < len(densities):
                density = densities[events.get(k, 0)]
                kept = {name: math.floor(density * mask[name].size + 0.5) for name in names}
                one, two = ({name: largest(v[name], mask[name], kept[name]) for name in names} for v in (early, w))
                differ = sum((one[name] ^ two[name]).sum() for name in names) / sum(m.sum() for m in mask.values())
                smaller = {name: value * two.get(name, 1.0) for name, value in w.items()}
                if differ > shift and accuracy(smaller, *inputs(experiment, experiment.clients.val[k])) >= gate:
                    mask, w = two, smaller  # and no rewinding
                    masks[k], events[k] = mask, events.get(k, 0) + 1
                else:
                    refused += 1
            updates.append((w, mask, 1.0))
        server = held_mean(server, updates)
        assert_same(state, server, {})
        assert_personal(state, masks, events)
    assert sum(events.values()) >= (5 if gate == 0 else 2)
    assert refused >= 1
