"""FjORD (Horvath et al. 2021): by hand, and against the algorithm written down in numpy with arrays that are really smaller."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedprune.pruning.mask import apply
from fedprune.randomness import torch_seed
from fedprune.types import Subnet, Update
from helpers.capacities import carrying, cut, merged
from helpers.federation import arrays, federation, inputs
from helpers.in_numpy import Arrays

LEVELS = (0.2, 0.6, 1.0)  # of 5 hidden units: 1, 3, 5
FJORD = (
    *("whose=nested", "whose.by=width", "how_often=never", "federated.weighting=examples"),
    *("local/dropout=ordered", "local.dropout.levels=[0.2,0.6,1.0]"),
)
TRAIN = ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13, 14, 15, 16, 17, 18], [19, 20, 21])
ALL = np.arange(3)


# --- by hand ---------------------------------------------------------------------------------------------------------------


def test_each_slice_is_the_mean_over_those_who_can_carry_it_by_their_examples():
    """Tiers 1/4, 1/2 and 1 of four units, with 1, 2 and 3 examples; they send 6, 12 and 18 everywhere.

    Unit 0 of all: (6 + 2 x 12 + 3 x 18) / 6 = 14; unit 1 of two: (2 x 12 + 3 x 18) / 5 = 15.6; units 2 and 3 of one: 18. Output
    biases are of all: 14.
    """
    experiment = federation(
        *FJORD, "rounds=1", train=([0], [1, 2], [3, 4, 5]), val=([],) * 3, test=([],) * 3,
        model={"_target_": "helpers.federation.mlp", "hidden": 4}, features=1,
    )  # fmt: skip
    loop = carrying(experiment, (0.25, 0.5, 1.0)).loop(experiment.executor())
    state, answers = loop.start(), []
    for client, value in ((0, 6.0), (1, 12.0), (2, 18.0)):
        job = loop._job(state, client)
        params = apply({name: torch.full_like(old, value) for name, old in state.init.items()}, job.subnet.mask)
        answers.append((job, Update(client, Subnet(params, job.subnet.mask), client + 1, metrics={"seen": 1})))
    fold = loop._fold(state)
    for job, update in answers:
        fold.add(job, update)
    found = loop._step(state, fold).server.params
    by_unit = torch.tensor([14.0, 15.6, 18.0, 18.0])
    assert torch.allclose(found["fc1.weight"][:, 0], by_unit) and torch.allclose(found["fc1.bias"], by_unit)
    assert torch.allclose(found["fc2.weight"], by_unit.expand(3, 4))
    assert torch.allclose(found["fc2.bias"], torch.tensor(14.0))


# --- against numpy ---------------------------------------------------------------------------------------------------------


def gradient(w: Arrays, x, target) -> tuple[Arrays, np.ndarray]:
    """(gradient of the mean cross-entropy from these probabilities, softmax of the outputs)."""
    hidden = np.maximum(x @ w["fc1.weight"].T + w["fc1.bias"], 0)
    logits = hidden @ w["fc2.weight"].T + w["fc2.bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    d = (p - target) / len(x)
    back = (d @ w["fc2.weight"]) * (hidden > 0)
    return {"fc2.weight": d.T @ hidden, "fc2.bias": d.sum(0), "fc1.weight": back.T @ x, "fc1.bias": back.sum(0)}, p


def grown(g: Arrays, like: Arrays, hidden: int) -> Arrays:
    """The gradient of the narrower network in the places of the wider one; zero elsewhere."""
    found = {name: np.zeros_like(value) for name, value in like.items()}
    found["fc1.weight"][:hidden], found["fc1.bias"][:hidden] = g["fc1.weight"], g["fc1.bias"]
    found["fc2.weight"][:, :hidden], found["fc2.bias"][:] = g["fc2.weight"], g["fc2.bias"]
    return found


def sgd(w: Arrays, x, y, draws: list[int], distil: bool, lr: float, momentum: float, decay: float) -> Arrays:
    """A full-batch step for each of the widths that were drawn."""
    v, one_hot = {name: np.zeros_like(value) for name, value in w.items()}, np.eye(3)[y]
    for hidden in draws:
        if distil:
            g, taught = gradient(w, x, one_hot)
            narrow, _ = gradient(cut(w, hidden, ALL), x, taught)
            g = {name: g[name] + value for name, value in grown(narrow, w, hidden).items()}
        else:
            g = grown(gradient(cut(w, hidden, ALL), x, one_hot)[0], w, hidden)
        v = {name: momentum * v[name] + g[name] + decay * w[name] for name in w}
        w = {name: w[name] - lr * v[name] for name in w}
    return w


def drawn(clock: int, client: int, own: int, steps: int) -> list[int]:
    """The widths of a client's batches: its stream's draws among those up to its own."""
    widths = [math.ceil(5 * level - 1e-9) for level in LEVELS if math.ceil(5 * level - 1e-9) <= own]
    torch.manual_seed(torch_seed(0, "training", clock, client))
    return [widths[int(torch.randint(len(widths), ()))] for _ in range(steps)]


@pytest.mark.parametrize("option", ["ordered", "ordered_distilled"])
def test_four_rounds_are_those_of_the_algorithm_in_numpy(option, play):
    experiment = federation(
        *FJORD, f"local/dropout={option}", "rounds=4", "local.epochs=5", "local.optimizer.momentum=0.5",
        "local.optimizer.weight_decay=0.01", train=TRAIN, val=([],) * 4, test=([],) * 4,
    )  # fmt: skip
    capacities = (1.0, 0.6, 0.2, 0.6)
    experiment = carrying(experiment, capacities)
    played = play(experiment)
    server, seen = arrays(experiment.net.state_dict()), set()
    for clock, (state, _) in enumerate(played):
        parts = []
        for client, capacity in enumerate(capacities):
            x, y = inputs(experiment, experiment.clients.train[client])
            own = math.ceil(5 * capacity - 1e-9)
            draws = drawn(clock, client, own, 5)
            seen |= {(client, hidden) for hidden in draws}
            part = sgd(cut(server, own, ALL), x, y, draws, option == "ordered_distilled", 0.1, 0.5, 0.01)
            parts.append((part, own, ALL, len(y)))
        server = merged(server, parts)
        for name, value in server.items():
            assert np.allclose(state.server.params[name], value, atol=1e-5), (clock, name)
    assert seen == {(0, 1), (0, 3), (0, 5), (1, 1), (1, 3), (2, 1), (3, 1), (3, 3)}


def test_a_narrow_network_is_better_for_having_been_trained(play):
    """After ordered dropout the leading fifth of a network does better by itself than after ordinary training."""
    losses = {}
    for option in ("ordered", "none"):
        experiment = federation(
            *FJORD[:4], f"local/dropout={option}", "rounds=15", "local.epochs=10", train=TRAIN, val=([],) * 4, test=([],) * 4,
        )  # fmt: skip
        state = play(carrying(experiment, (1.0,) * 4))[-1][0]
        x, y = inputs(experiment, torch.cat(list(experiment.clients.train)))
        _, p = gradient(cut(arrays(state.server.params), 1, ALL), x, np.eye(3)[y])
        losses[option] = -np.log(p[np.arange(len(y)), y]).mean()
    assert losses["ordered"] < losses["none"]
