"""FLASH: layer densities are discovered and then kept (SPDST), or training goes on (JMWST); by hand and against numpy."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from fedprune.federated.masks import PruneContext, UpdateSummary, Voted
from fedprune.federated.masks.voting import by_layer_density
from fedprune.pruning.criterion import Criterion
from fedprune.pruning.criterion.across_layers import magnitude_rank, random_by_layer_magnitude
from fedprune.pruning.event import Axes
from fedprune.pruning.mask import count
from fedprune.pruning.rewind import Draws, Early, Keep, Rewind
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.randomness import torch_stream
from fedprune.types import Job, Plan, PruneEvent, State, Subnet
from helpers.federation import arrays, assert_same, cohort_of, data_of, played, published
from helpers.in_numpy import PRUNABLE, SIZES, Arrays, averaged, best, best_of_layers, dense, descend, held_mean, masked, seats

PROPOSED = (
    {"a": torch.tensor([[1, 1, 1, 0]]).bool(), "b": torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]]).bool()},
    {"a": torch.tensor([[0, 0, 0, 1]]).bool(), "b": torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).bool()},
)
"""Of layers of 4 and 8 weights at half density: 3 and 3, or 1 and 5. 2 and 4 on average, for 6 seats in all."""
START = {"a": torch.arange(1.0, 5.0)[None], "b": torch.arange(1.0, 9.0)[None]}
DRAWS = Draws(dict, lambda name: torch.Generator().manual_seed(len(name) + ord(name)))


def after_the_vote(positions: str, rewind: Rewind, trained: dict[str, torch.Tensor]) -> State:
    """What an exchange comes to of two clients who propose that, when their weights merged are `trained`."""
    what = What(weights, globally, names=("a", "b"))
    event, subnet = PruneEvent(1, 0.5, 0.25), Subnet(START, PROPOSED[0])
    receipts = [UpdateSummary(Job(k, 1, 1, 0, subnet, event=event, events=1), m, 1.0, 1, True) for k, m in enumerate(PROPOSED)]
    state = State(subnet, init=START, ticket=START, round=2, clock=2, events=1, anchors={0: START})
    terms = PruneContext(Plan((event,), 4), Axes(what, Criterion(magnitude_rank)), rewind, DRAWS)
    return Voted(partial(by_layer_density, positions=positions)).merged(state, trained, receipts, terms)


def test_only_the_densities_of_what_two_clients_propose_outlive_a_discovery():
    """SPDST: where they are is drawn by numbers that are given here; weights and clock are those of the start."""
    after = after_the_vote("random", Early(0), {name: torch.full_like(value, 7.0) for name, value in START.items()})
    for name, number in {"a": 2, "b": 4}.items():
        drawn = torch.rand(START[name].shape, generator=DRAWS.generator(name), dtype=torch.float64)
        places = drawn[0].argsort(descending=True)[:number]
        assert sorted(after.server.mask[name].nonzero()[:, 1].tolist()) == sorted(places.tolist())
        assert torch.equal(after.server.params[name], START[name] * after.server.mask[name])
    assert (after.clock, after.events) == (0, 2)


def test_the_largest_merged_weights_of_what_two_clients_propose_go_on_as_they_are():
    """JMWST: of a all is proposed by somebody, and the largest two are 4 and 3; of b the first five, and 5, 4, 3 and 2 stay of
    them. The 9s have not been proposed. Nothing is taken back, neither weights nor clock."""
    trained = {"a": torch.tensor([[1.0, -2.0, 3.0, -4.0]]), "b": torch.tensor([[1.0, -5.0, 2.0, 3.0, 4.0, 9.0, 9.0, 9.0]])}
    after = after_the_vote("magnitude", Keep(), trained)
    assert after.server.params["a"].tolist() == [[0.0, 0.0, 3.0, -4.0]]
    assert after.server.params["b"].tolist() == [[0.0, -5.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0]]
    assert all(torch.equal(after.server.mask[name], value != 0) for name, value in after.server.params.items())
    assert (after.clock, after.events) == (2, 2)


def test_every_layer_loses_the_same_fraction_and_gains_by_its_mean_weight():
    """A third of what lives goes: one of 3 and two of 6, whatever their size. Ranks are thirds and sixths."""
    params = {"a": torch.tensor([0.1, -0.3, 0.2, 0.0]), "b": torch.tensor([9.0, 4.0, -5.0, 6.0, 8.0, -7.0, 0.0])}
    mask = {"a": torch.tensor([1, 1, 1, 0]).bool(), "b": torch.tensor([1, 1, 1, 1, 1, 1, 0]).bool()}
    ranks = magnitude_rank(params, mask)
    assert torch.allclose(ranks["a"] * 3, torch.tensor([1, 3, 2, 0], dtype=torch.float64))
    assert torch.allclose(ranks["b"] * 6, torch.tensor([6, 1, 2, 3, 5, 4, 0], dtype=torch.float64))
    kept = What(weights, globally, names=("a", "b")).select(ranks, 6 / 11)
    assert kept["a"].tolist() == [False, True, True, False]
    assert kept["b"].tolist() == [True, False, False, True, True, True, False]


def test_equal_weights_rank_by_their_place():
    ranks = magnitude_rank({"a": torch.ones(3)}, {"a": torch.ones(3, dtype=torch.bool)})
    assert torch.allclose(ranks["a"] * 3, torch.tensor([3, 2, 1], dtype=torch.float64))


def test_what_grows_falls_to_layers_in_proportion_to_the_mean_of_their_living():
    """Means of 0.1 and 0.3: a quarter and three quarters of the first place, over 4000 draws to three standard deviations
    (0.02), however many dead there are to choose from."""
    params = {"a": torch.tensor([0.1, -0.1] + [0.0] * 50), "b": torch.tensor([0.3] + [0.0] * 5)}
    mask = {name: w != 0 for name, w in params.items()}
    first = []
    for seed in range(4000):
        streams = {name: torch.Generator().manual_seed(2 * seed + (name == "a")) for name in params}
        scores = random_by_layer_magnitude(params, mask, streams.__getitem__)
        best_of = {name: score.masked_fill(mask[name], -torch.inf).max() for name, score in scores.items()}
        first.append(best_of["a"] > best_of["b"])
    assert abs(np.mean(first) - 0.25) < 0.02


def test_a_layer_without_weight_still_has_something_to_grow():
    mask = {"a": torch.zeros(4, dtype=torch.bool)}
    scores = random_by_layer_magnitude({"a": torch.zeros(4)}, mask, lambda name: torch.Generator())
    assert torch.isfinite(scores["a"]).all() and len(scores["a"].unique()) == 4


def exchanged(w: Arrays, mask: Arrays, left: int, client: int, events: int) -> tuple[Arrays, Arrays]:
    """What a client comes to, its smallest by rank gone, and what it proposes, as many grown by given random numbers."""
    ranks, draws = {}, {}
    for name in PRUNABLE:
        living = np.abs(w[name][mask[name]])
        ranks[name] = np.full(mask[name].shape, -1.0)
        ranks[name][mask[name]] = [(living <= size).mean() for size in living]
    kept = best(ranks, left)
    for name in PRUNABLE:
        stream = torch_stream(0, f"criterion dead {name}", events, client)
        chance = np.abs(w[name][kept[name]]).mean() / (~kept[name]).sum()
        drawn = np.log(torch.rand(w[name].shape, generator=stream, dtype=torch.float64).numpy()) / chance
        draws[name] = np.where(kept[name], -np.inf, drawn)
    grown = best(draws, 18 - left)
    assert not any((grown[name] & kept[name]).any() for name in PRUNABLE)
    return masked(w, kept), {name: kept[name] | grown[name] for name in PRUNABLE}


def test_spdst_is_that_of_numpy_given_its_random_numbers(compose):
    """Density 0.4: 18 of 45, 12 and 6 at first. The discovery lasts until round 3 of 10: exchanges of 0.25 x (1 - 1/3) and
    0.25 x (1 - 2/3) in rounds 1 and 2 leave 15 and 16.5, so 17, before any grow. After each of them all is as at the start but
    the mask, the cohort too, since it follows the clock."""
    left = {1: 15, 2: 17}
    experiment = published(
        compose, "flash_spdst", "rounds=10", "when.stop=0.3", "density=0.4", "federated.cohort=2", "local.lr_decay=1"
    )
    assert [event.round for event in experiment.plan.events] == [0, *left]
    states, data = played(experiment, 6), data_of(experiment)
    init = arrays(states[0].server.params)
    mask = best_of_layers({name: np.abs(init[name]) for name in PRUNABLE}, {"fc1.weight": 12, "fc2.weight": 6})
    w, clock, events, seen = masked(init, mask), 0, 1, [dense(init)]
    for round_, state in enumerate(states[1:]):
        chosen = cohort_of(experiment, clock)
        ends, clock = {k: descend(w, mask, *data[k]) for k in chosen}, clock + 1
        if round_ in left:
            proposals = [exchanged(end, mask, left[round_], k, events)[1] for k, end in ends.items()]
            sums = {name: float(np.mean([p[name].sum() for p in proposals])) for name in PRUNABLE}
            drawn = {
                name: torch.rand(
                    w[name].shape, generator=torch_stream(0, f"rewind {name}", events), dtype=torch.float64
                ).numpy()
                for name in PRUNABLE
            }
            mask = best_of_layers(drawn, seats(sums, SIZES, 18))
            w, clock, events = masked(init, mask), 0, events + 1
        else:
            w = averaged([*ends.values()], [1] * len(ends))  # unweighted
        assert_same(state, w, mask)
        assert (state.clock, state.events, count(state.server.mask)) == (clock, events, 18)
        seen.append(mask)
    assert all((seen[-1][name] == seen[4][name]).all() for name in PRUNABLE)  # frozen
    assert any((seen[3][name] != seen[1][name]).any() for name in PRUNABLE)


def test_jmwst_keeps_the_largest_weights_at_the_mean_densities_and_trains_on(compose):
    experiment = published(compose, "flash_jmwst", "rounds=10", "how_often.every=2", "density=0.4", "local.lr_decay=1")
    left = {2: 18 - 18 * 0.25 * 0.6, 4: 18 - 18 * 0.25 * 0.2}  # t = 2/5 and 4/5: 15.3 and 17.1
    assert [event.round for event in experiment.plan.events] == [0, *left]
    states, data = played(experiment, 6), data_of(experiment)
    w = arrays(states[0].server.params)
    mask = best_of_layers({name: np.abs(w[name]) for name in PRUNABLE}, {"fc1.weight": 12, "fc2.weight": 6})
    w, events = masked(w, mask), 1
    for round_, state in enumerate(states[1:]):
        ends, masks = [descend(w, mask, *part) for part in data.values()], [mask] * 3
        if round_ in left:
            found = [exchanged(end, mask, round(left[round_]), k, events) for k, end in enumerate(ends)]
            ends, masks = [list(part) for part in zip(*found, strict=True)]
        w = held_mean(w, [*zip(ends, masks, (1, 1, 1), strict=True)])
        if round_ in left:
            votes = {name: np.mean([m[name] for m in masks], axis=0) for name in PRUNABLE}
            score = {name: np.where(w[name] != 0, np.abs(w[name]), votes[name] - 1) for name in PRUNABLE}
            score = {name: np.where(votes[name] > 0, score[name], -2.0) for name in PRUNABLE}
            mask = best_of_layers(score, seats({name: float(votes[name].sum()) for name in PRUNABLE}, SIZES, 18))
            w, events = masked(w, mask), events + 1
        assert_same(state, w, mask)
        assert count(state.server.mask) == 18
