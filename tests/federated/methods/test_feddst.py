"""FedDST: clients drop and grow at the end of a round, the server prunes the union by magnitude; by hand and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedprune.federated.masks import PruneContext, UpdateSummary, Voted
from fedprune.federated.masks.voting import by_magnitude
from fedprune.federated.server.accumulator import merged
from fedprune.federated.server.aggregate import OverlapMean
from fedprune.pruning.criterion import Criterion, magnitude
from fedprune.pruning.criterion import gradient as by_gradient
from fedprune.pruning.event import Axes, prune
from fedprune.pruning.mask import count
from fedprune.pruning.rewind import Draws, Keep
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.types import Job, Plan, PruneEvent, State, Subnet
from helpers.federation import arrays, assert_same, cohort_of, data_of, played, published
from helpers.in_numpy import PRUNABLE, SIZES, Arrays, best_of_layers, descend, erk, gradient, held_mean, masked


def test_one_readjustment_of_two_clients_by_hand():
    """Six weights, three alive; a third of them is exchanged. Client A has one example, client B three.

    A, at (4, 0.5, 2, 0, 0, 0): the second is the smallest; of the dead the fourth has the largest gradient (the living have
    larger ones, and stay as they are). It proposes the first, third and fourth. B, at (1, 0.1, -2, 0, 0, 0): likewise, but it
    grows the fifth. Means by examples: (4 + 3 x 1) / 4 = 1.75 and (2 - 3 x 2) / 4 = -1; what is grown is 0. Of the union of
    four the two that are not 0 stay, and of the grown ones that of B, which has three quarters of the votes.
    """
    axes = Axes(What(weights, globally, names=("a",)), Criterion(magnitude, by_gradient))
    event, sent = PruneEvent(1, 0.5, 1 / 3), {"a": torch.tensor([[True, True, True, False, False, False]])}
    seen = {
        0: (1, [4.0, 0.5, 2.0, 0.0, 0.0, 0.0], [9.0, 0.0, 9.0, 3.0, -1.0, 2.0], [0, 2, 3]),
        1: (3, [1.0, 0.1, -2.0, 0.0, 0.0, 0.0], [7.0, 0.2, 7.0, 1.0, -5.0, 1.0], [0, 2, 4]),
    }
    updates, receipts = [], []
    for client, (examples, w, g, proposed) in seen.items():
        evidence = {"params": {"a": torch.tensor([w])}, "grads": {"a": torch.tensor([g])}}
        trained = Subnet(evidence["params"], sent)
        pruned = prune(trained, event, axes, lambda names, *_: {name: evidence[name] for name in names})  # noqa: B023
        assert pruned.mask["a"].nonzero()[:, 1].tolist() == proposed
        updates.append((pruned, float(examples)))
        receipts.append(UpdateSummary(Job(client, 1, 1, 0, trained, event=event, events=1), pruned.mask, examples, 1, True))
    state = State(Subnet({"a": torch.zeros(1, 6)}, sent), init={}, ticket={}, round=2, clock=2, events=1)
    terms = PruneContext(Plan((event,), 4), axes, Keep(), Draws(dict, lambda name: torch.Generator()))
    mean = merged(OverlapMean(), state.server.params, updates)
    after = Voted(by_magnitude).merged(state, mean, receipts, terms)
    assert after.server.params["a"].tolist() == [[1.75, 0.0, -1.0, 0.0, 0.0, 0.0]]
    assert after.server.mask["a"].tolist() == [[True, False, True, False, True, False]]
    assert after.events == 2


def exchanged(w: Arrays, mask: Arrays, g: Arrays, left: dict[str, int], total: dict[str, int]) -> tuple[Arrays, Arrays]:
    """The best |w| of the living; then the best |g| of the dead, which start from 0."""
    kept = best_of_layers({name: np.where(mask[name], np.abs(w[name]), -1.0) for name in PRUNABLE}, left)
    dead = {name: np.where(kept[name], -1.0, np.abs(g[name])) for name in PRUNABLE}
    grown = best_of_layers(dead, {name: total[name] - left[name] for name in PRUNABLE})
    assert not any((grown[name] & kept[name]).any() for name in PRUNABLE)
    return masked(w, kept), {name: kept[name] | grown[name] for name in PRUNABLE}


@pytest.mark.parametrize("cohort", [2, 3])
def test_seven_rounds_with_two_readjustments_are_those_of_numpy(cohort, compose):
    """Events after 0, 2 and 4 of 12 rounds, up to half of them: the fraction falls as 0.3 (1 + cos(pi r / 6)) / 2, 0.225 and
    0.075 of 18 living weights, so that 14 (13.95) and 17 (16.65) are left before any grows."""
    overrides = ("rounds=12", "density=0.4", "how_often.every=2", "how_often.swap=0.3", "where.examples=null")
    experiment = published(compose, "feddst", *overrides, f"federated.cohort={cohort}")
    left = {2: 14, 4: 17}
    assert [event.round for event in experiment.plan.events] == [0, *left]
    states, data = played(experiment, 7), data_of(experiment)
    total = erk(SIZES, 18)
    w = arrays(states[0].server.params)
    mask = best_of_layers({name: np.abs(w[name]) for name in PRUNABLE}, total)
    w, changed = masked(w, mask), 0
    for clock, state in enumerate(states[1:]):
        parts, masks, sizes = [], [], []
        for x, y in (data[k] for k in cohort_of(experiment, clock)):
            own, proposal = descend(w, mask, x, y), mask
            if clock in left:
                own, proposal = exchanged(own, mask, gradient(own, x, y), erk(SIZES, left[clock]), total)
            parts, masks, sizes = [*parts, own], [*masks, proposal], [*sizes, len(y)]
        w = held_mean(w, [*zip(parts, masks, sizes, strict=True)])
        if clock in left:
            votes = {name: sum(n * m[name] for n, m in zip(sizes, masks, strict=True)) / sum(sizes) for name in PRUNABLE}
            assert all(((votes[name] > 0).sum() >= total[name]) for name in PRUNABLE)
            score = {name: np.where(w[name] != 0, np.abs(w[name]), votes[name] - 1) for name in PRUNABLE}
            new = best_of_layers({name: np.where(votes[name] > 0, score[name], -2.0) for name in PRUNABLE}, total)
            changed += sum(int((new[name] & ~mask[name]).sum()) for name in PRUNABLE)
            w, mask = masked(w, new), new
        assert_same(state, w, mask)
        assert count(state.server.mask) == 18
    assert changed > 0
