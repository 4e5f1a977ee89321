"""FedTiny: one block of layers at a time, and only the largest gradients of the dead travel; by hand and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.federated.client.evidence import largest
from fedprune.pruning.criterion import Criterion, magnitude
from fedprune.pruning.criterion import gradient as by_gradient
from fedprune.pruning.event import Axes, block, prune
from fedprune.pruning.mask import count
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import per_layer
from fedprune.pruning.what.unit import weights
from fedprune.types import PruneEvent, Subnet, Update
from fedprune.wire.codec import Layout, auto, bitmap
from fedprune.wire.frame import length
from fedprune.wire.message import Wire
from helpers.federation import arrays, assert_same, cohort_of, data_of, played, published
from helpers.in_numpy import PRUNABLE, SIZES, Arrays, averaged, best_of_layers, descend, erk, gradient, masked


def test_blocks_go_from_the_output_to_the_input():
    names = ("conv1", "conv2", "fc1", "fc2", "fc3")
    assert [block(names, i, 2) for i in range(2)] == [("fc3", "fc2", "fc1"), ("conv2", "conv1")]
    assert [block(names, i, 5) for i in range(5)] == [(name,) for name in names[::-1]]


def test_one_event_in_the_block_of_the_output_by_hand():
    """Two layers of four weights, two of each alive; half of the output's living is exchanged. Of two equal clients one sends
    0.5 for its last weight, the other -0.4 for the one before: means of 0.25 and -0.2, so the last grows. Layer a stays."""
    w = {"a": torch.tensor([5.0, 0.1, 0.0, 0.0]), "b": torch.tensor([2.0, -1.0, 0.0, 0.0])}
    mask = {name: value != 0 for name, value in w.items()}
    sent = [
        largest({"b": torch.tensor([0.0, 0.3, 0.2, 0.5])}, {"b": torch.tensor([True, False, False, False])}, 1.0),
        largest({"b": torch.tensor([9.0, 0.3, -0.4, 0.1])}, {"b": torch.tensor([True, False, False, False])}, 1.0),
    ]
    assert [part["b"].tolist() for part in sent] == [[0, 0, 0, 0.5], [0, 0, pytest.approx(-0.4), 0]]
    means = {"a": torch.tensor([0.0, 0.0, 9.0, 9.0]), "b": (sent[0]["b"] + sent[1]["b"]) / 2}
    axes = Axes(What(weights, per_layer, names=("a", "b")), Criterion(magnitude, by_gradient))
    evidence = {"params": w, "grads": means}
    found = prune(Subnet(w, mask), PruneEvent(1, 0.5, 0.5, (0, 2)), axes, lambda names, *_: {n: evidence[n] for n in names})
    assert found.mask["a"].tolist() == [True, True, False, False]
    assert found.mask["b"].tolist() == [True, False, False, True]
    assert found.params["b"].tolist() == [2.0, 0.0, 0.0, 0.0]


def test_of_each_layer_as_many_gradients_are_sent_as_a_fraction_of_its_living():
    """0.5 of 4 is two, 0.5 of 1 is one (half up); ties go to the lower index; the living are never among them."""
    values = {"a": torch.tensor([7.0, 7.0, 7.0, 7.0, 1.0, -3.0, 2.0]), "b": torch.tensor([9.0, 2.0, -2.0])}
    mask = {"a": torch.tensor([True] * 4 + [False] * 3), "b": torch.tensor([True, False, False])}
    found = largest(values, mask, 0.5)
    assert found["a"].tolist() == [0, 0, 0, 0, 0, -3, 2]
    assert found["b"].tolist() == [0, 2, 0]


@pytest.mark.parametrize("codec", [auto, bitmap])
def test_what_is_sent_of_the_dead_is_its_places_and_values(codec):
    """160 entries of which 120 are dead: 3 gradients take 20 bytes for the places and 12 for the values, and not 480. As gaps
    the places take 12, and 4 for that length: way, number and alphabet, 3; 18 counts; 3 symbols; 8 bits that follow."""
    alive = {"a": (torch.arange(160) < 40).view(16, 10)}
    values = {"a": torch.zeros(16, 10)}
    values["a"][9, 1], values["a"][9, 3], values["a"][15, 9] = 0.5, -0.25, 3.0
    wire = Wire(codec, Layout.of(values, ("a",)))
    messages = {which: wire.encode_update(Update(1, None, 8, {"grads": values}, which), alive) for which in ("top", "dead")}
    update = wire.decode_update(messages["top"], alive)
    assert torch.equal(update.evidence["grads"]["a"], values["a"]) and update.about == "top"
    block, places = {"auto": (480, 16), "bitmap": (500, 20)}[codec.__name__]
    assert length(messages["dead"]) - length(messages["top"]) == block - (places + 12) + 1  # "dead" is a letter longer


def exchanged(
    w: Arrays, mask: Arrays, data: list, left: dict[str, int], total: dict[str, int], top: float
) -> tuple[Arrays, Arrays]:
    kept = best_of_layers({name: np.where(mask[name], np.abs(w[name]), -1.0) for name in PRUNABLE}, left)
    smaller, sent = masked(w, kept), []
    for x, y in data:
        g = gradient(smaller, x, y)
        number = {name: int(np.floor(top * kept[name].sum() + 0.5 + 1e-9)) for name in PRUNABLE}
        chosen = best_of_layers({name: np.where(kept[name], -1.0, np.abs(g[name])) for name in PRUNABLE}, number)
        sent.append({name: np.where(chosen[name], g[name], 0.0) for name in PRUNABLE})
    g = averaged(sent, [len(y) for _, y in data])
    grown = best_of_layers(
        {name: np.where(kept[name], -1.0, np.abs(g[name])) for name in PRUNABLE},
        {name: total[name] - left[name] for name in PRUNABLE},
    )
    assert not any((grown[name] & kept[name]).any() for name in PRUNABLE)
    return smaller, {name: kept[name] | grown[name] for name in PRUNABLE}


def test_nine_rounds_with_three_blocks_in_turn_are_those_of_numpy(compose):
    """18 of 45 live, 10 and 8. Events after 2, 4 and 6 of 8 rounds in a window of all of them: in the output, the first layer,
    the output. Of 18 (1 - 0.4) = 10.8, so 11, Erdos-Renyi leaves 6 and 5: the block that takes part goes down to that."""
    overrides = (
        "rounds=8",
        "when.stop=1.0",
        "density=0.4",
        "how_often.every=2",
        "how_often.swap=0.4",
        "how_often.decay=constant",
    )
    experiment = published(
        compose, "fedtiny", "criterion=rigl", *overrides, "how_often.blocks=2", "where.top=0.5", "federated.cohort=2"
    )
    assert [(e.round, e.block) for e in experiment.plan.events] == [(0, None), (2, (0, 2)), (4, (1, 2)), (6, (0, 2))]
    states, data = played(experiment, 8), data_of(experiment)
    total, low = erk(SIZES, 18), erk(SIZES, 11)
    assert (total, low) == ({"fc1.weight": 10, "fc2.weight": 8}, {"fc1.weight": 6, "fc2.weight": 5})
    w = arrays(states[0].server.params)
    mask = best_of_layers({name: np.abs(w[name]) for name in PRUNABLE}, total)
    w, changed = masked(w, mask), []
    for clock, state in enumerate(states[1:]):
        chosen = [data[k] for k in cohort_of(experiment, clock)]
        if clock in (2, 4, 6):
            layer = {2: "fc2.weight", 4: "fc1.weight", 6: "fc2.weight"}[clock]
            w, new = exchanged(w, mask, chosen, total | {layer: low[layer]}, total, 0.5)
            changed.append([name for name in PRUNABLE if (new[name] != mask[name]).any()])
            mask = new
        w = averaged([descend(w, mask, *part) for part in chosen], [len(y) for _, y in chosen])
        assert_same(state, w, mask)
        assert count(state.server.mask) == 18
    assert ["fc2.weight"] in changed and all(len(layers) <= 1 for layers in changed)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("how_often.blocks=3",), "how_often.blocks=3 is more than the 2 layers"),
        (("how_often.blocks=2", "what=weights_global"), "choose what=weights_erk"),
        (("how_often.blocks=0",), "how_often.blocks=0 must be at least 1"),
        (("how_often.blocks=2", "where.top=0"), "where.top=0 is a fraction"),
    ],
)
def test_what_cannot_be_is_refused(overrides, problem, compose):
    with pytest.raises(ConfigError) as error:
        published(compose, "fedtiny", "criterion=rigl", *overrides)
    assert problem in str(error.value)
