"""FedDIP: gradients at the pruned network, steps of all weights; the largest are sent and voted on; by hand and by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedprune.errors import ConfigError
from fedprune.local.module import LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.penalty import incremental, l2
from fedprune.local.train import fit
from fedprune.pruning.mask import count
from fedprune.types import Subnet
from helpers.federation import arrays, assert_same, cohort_of, data_of, played, published
from helpers.in_numpy import PRUNABLE, RATE, best, gradient, held_mean, masked


class Halves(LocalModule):
    """Half the squared distance of the output to the target."""

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return (self.net(inputs) - targets).square().mean() / 2


def test_two_steps_of_error_feedback_by_hand():
    """One output of weights (1, 0), the second dead, at the input (1, 2) with the target 3 and a rate of 0.1. The pruned copy
    puts out 1: the gradient is -2 (1, 2), and the weights go to (1.2, 0.4). The copy now puts out 1.2, not 1.2 + 0.8:
    -1.8 (1, 2), so (1.38, 0.76). Without feedback the second stays 0."""
    net = nn.Linear(2, 1, bias=False)
    module = Halves(net, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    sent = Subnet({"weight": torch.tensor([[1.0, 0.0]])}, {"weight": torch.tensor([[True, False]])})
    batches = [(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))] * 2
    for feedback, expected in ((True, [1.38, 0.76]), (False, [1.38, 0.0])):
        found = fit(module, sent, batches, Recipe(error_feedback=feedback)).params["weight"]
        assert found[0].tolist() == pytest.approx(expected)
    assert sent.params["weight"].tolist() == [[1.0, 0.0]]


def test_the_penalty_rises_in_equal_steps_from_nothing():
    """4 steps in 8 rounds up to 0.2: 0, 0, 0.05, 0.05, 0.1, 0.1, 0.15, 0.15, and 0.2 if there were more of them."""
    rising = incremental(l2, 0.2, steps=4, rounds=8)
    strengths = [rising.at(clock).strength for clock in range(10)]
    assert strengths == pytest.approx([0, 0, 0.05, 0.05, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2])
    for wrong in ({"steps": 0, "rounds": 8}, {"steps": 4, "rounds": 0}):
        with pytest.raises(ConfigError, match="must be at least 1"):
            incremental(l2, 0.2, **wrong)


def test_six_rounds_along_the_curve_are_those_of_numpy(compose):
    """From 0.6 to 0.2 in six events, one in every round: 0.2 + 0.4 (1 - k / 5)^3, so 27, 18.2, 12.9, 10.2, 9.1 and 9 of 45."""
    counts = [27, 18, 13, 10, 9, 9]
    overrides = ("rounds=6", "density=0.2", "how_often.begin=0.6", "federated.cohort=2", "local.lr_decay=1.0", "local.epochs=8")
    experiment = published(compose, "feddip", *overrides, "local.penalty.strength=0.3", "local.penalty.steps=3")
    assert [(e.round, round(45 * e.density)) for e in experiment.plan.events] == [*enumerate(counts)]
    states, data = played(experiment, 6), data_of(experiment)
    w = arrays(states[0].server.params)
    mask = best({name: np.abs(w[name]) for name in PRUNABLE}, 27)  # the first event is the server's
    w, revived = masked(w, mask), 0
    for clock, state in enumerate(states[1:]):
        strength = 0.3 * (clock * 3 // 6) / 3
        parts, masks, sizes = [], [], []
        for x, y in (data[k] for k in cohort_of(experiment, clock)):
            own, proposal = w, mask
            for _ in range(8):
                pruned = masked(own, mask)
                g = gradient(pruned, x, y)
                g = {name: g[name] + (strength * pruned[name] if name in PRUNABLE else 0) for name in g}
                own = {name: own[name] - RATE * g[name] for name in own}
            if clock > 0:
                proposal = best({name: np.abs(own[name]) for name in PRUNABLE}, counts[clock])
            parts, masks, sizes = [*parts, masked(own, proposal)], [*masks, proposal], [*sizes, len(y)]
        w = held_mean(w, [*zip(parts, masks, sizes, strict=True)])
        votes = {name: sum(n * m[name] for n, m in zip(sizes, masks, strict=True)) / sum(sizes) for name in PRUNABLE}
        if clock > 0:
            new = best({n: np.where(votes[n] > 0, np.abs(w[n]), votes[n] - 2) for n in PRUNABLE}, counts[clock])
            revived += sum(int((new[name] & ~mask[name]).sum()) for name in PRUNABLE)
            mask = new
        w = masked(w, mask)
        assert_same(state, w, mask)
        assert count(state.server.mask) == counts[clock]
    assert revived > 0


def test_a_round_without_an_event_leaves_the_dead_as_they_were(compose):
    experiment = published(compose, "feddip", "rounds=6", "density=0.2", "how_often.every=3", "how_often.begin=0.6")
    states = played(experiment, 3)
    masks = [arrays(state.server.mask) for state in states[1:]]
    assert all((mask[name] == masks[0][name]).all() for mask in masks for name in PRUNABLE)
    assert not any(states[3].server.params[name].numpy()[~masks[0][name]].any() for name in PRUNABLE)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("whose=shared",), "choose whose=voted with whose.at=end"),
        (("whose.at=start",), "choose whose=voted with whose.at=end"),
        (("how_often.begin=0.05",), "how_often.begin=0.05 is below density=0.1"),
        (("how_often.begin=0",), "how_often.begin=0 is a density"),
    ],
)
def test_what_would_come_to_nothing_is_refused(overrides, problem, compose):
    with pytest.raises(ConfigError) as error:
        published(compose, "feddip", *overrides)
    assert problem in str(error.value)
