"""Ballots: how proposals become one mask, by hand."""

from __future__ import annotations

import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.federated.masks.voting import by_layer_density, by_magnitude, by_votes, votes
from fedprune.pruning.mask import count
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.types import PruneEvent


def seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(len(name))


def bits(*alive: int) -> torch.Tensor:
    return torch.tensor(alive, dtype=torch.bool)


WHAT = What(weights, globally, names=("w",))
MERGED = {"w": torch.tensor([0.1, -5.0, 2.0, 9.0])}
VOTES = {"w": torch.tensor([1.0, 0.25, 0.75, 0.0], dtype=torch.float64)}


def chosen(ballot, density: float, cast: dict = VOTES, merged: dict = MERGED, **options) -> list[int]:
    mask = ballot(cast, merged, PruneEvent(1, density), WHAT, seeded, **options)
    return mask["w"].nonzero().flatten().tolist()


def test_votes_are_the_fraction_of_the_weight_that_holds_an_entry():
    # Clients of weight 1 and 3: both hold entry 0 (4/4), the first alone entry 1 (1/4), the second alone entry 2 (3/4).
    found = votes([({"w": bits(1, 1, 0, 0)}, 1.0), ({"w": bits(1, 0, 1, 0)}, 3.0)])
    assert found["w"].tolist() == VOTES["w"].tolist()


def test_the_union_is_pruned_by_the_magnitude_of_the_merged_network():
    # Held by somebody: 0, 1, 2, of magnitudes 0.1, 5, 2. Entry 3, of 9, is held by nobody.
    assert chosen(by_magnitude, 0.25) == [1]
    assert chosen(by_magnitude, 0.5) == [1, 2]
    assert chosen(by_magnitude, 0.75) == [0, 1, 2]
    assert chosen(by_magnitude, 1.0) == [0, 1, 2, 3]  # the density is exact, so it comes in when there are too few others


def test_entries_with_too_few_votes_come_in_after_all_others_in_the_order_of_their_votes():
    # More than half of the votes: 0 and 2. Then 1 with a quarter, then 3 with none.
    assert chosen(by_magnitude, 0.25, least=0.5) == [2]
    assert chosen(by_magnitude, 0.5, least=0.5) == [0, 2]
    assert chosen(by_magnitude, 0.75, least=0.5) == [0, 1, 2]
    assert chosen(by_magnitude, 0.25, least=0.75) == [0]  # three quarters are not more than three quarters


@pytest.mark.parametrize("least", [-0.1, 1.0])
def test_a_threshold_that_is_no_fraction_of_the_votes_is_refused(least):
    with pytest.raises(ConfigError, match=f"whose.ballot.least={least}"):
        chosen(by_magnitude, 0.5, least=least)


def test_the_most_votes_win_and_magnitude_settles_ties():
    # 2 has all votes; 0 and 1 half of them each, of magnitudes 0.1 and 5; 3 none, whatever its 9.
    cast = {"w": torch.tensor([0.5, 0.5, 1.0, 0.0], dtype=torch.float64)}
    assert [chosen(by_votes, density, cast) for density in (0.25, 0.5, 0.75)] == [[2], [1, 2], [0, 1, 2]]
    assert chosen(by_votes, 0.5, cast, {"w": torch.zeros(4)}) == [0, 2]  # and of nothing at all, the lower index


LAYERS = What(weights, globally, names=("a", "b"))
CAST = {"a": torch.tensor([1, 1, 0.5, 0.5]).double(), "b": torch.tensor([0.5] * 4 + [0.0] * 4).double()}
BOTH = {"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.arange(8.0)}


def test_layers_get_seats_by_what_clients_hold_of_them():
    # Held on average: 3 of a, 2 of b. A quarter of 12 is 3 seats. Sainte-Lague: a's are worth 3 / 0.5, 3 / 1.5, 3 / 2.5 = 6, 2,
    # 1.2, b's 4, 1.33, 0.8: the three best are 6, 4, 2, so 2 for a and 1 for b; the largest that somebody holds: 4 and 3 of a,
    # and
    # of b the 3 (its 4 to 7 nobody holds).
    mask = by_layer_density(CAST, BOTH, PruneEvent(1, 0.25), LAYERS, seeded)
    assert mask["a"].tolist() == [False, False, True, True]
    assert mask["b"].tolist() == [False, False, False, True, False, False, False, False]


def test_a_layer_gets_no_more_seats_than_it_has_places():
    # 9 of 12 seats: a's four places are worth 6, 2, 1.2, 0.86, and b takes all the others: 4 + 5.
    mask = by_layer_density(CAST, BOTH, PruneEvent(1, 0.75), LAYERS, seeded)
    assert (count({"a": mask["a"]}), count({"b": mask["b"]})) == (4, 5)


def test_positions_may_be_drawn_at_random_in_the_same_numbers():
    one, two = (
        by_layer_density(CAST, BOTH, PruneEvent(1, 0.25), LAYERS, generator, positions="random")
        for generator in (seeded, lambda name: torch.Generator().manual_seed(7))
    )
    assert [count({"a": m["a"]}) for m in (one, two)] == [2, 2]
    assert [count({"b": m["b"]}) for m in (one, two)] == [1, 1]
    assert any(not torch.equal(one[name], two[name]) for name in one)
    again = by_layer_density(CAST, BOTH, PruneEvent(1, 0.25), LAYERS, seeded, positions="random")
    assert all(torch.equal(one[name], again[name]) for name in one)


def test_unknown_positions_are_refused():
    with pytest.raises(ConfigError, match="whose.ballot.positions=best: choose magnitude or random"):
        by_layer_density(CAST, BOTH, PruneEvent(1, 0.25), LAYERS, seeded, positions="best")


def test_what_is_dead_and_may_not_come_in_has_no_seat_however_seats_are_drawn():
    # Of b only 0 and 1 may come in. A half of 12 is 6 seats: the four of a, and those two, wherever chance falls.
    cast = {"a": CAST["a"], "b": torch.tensor([0.5, 0.5] + [-1.0] * 6).double()}
    for positions in ("random", "magnitude"):
        mask = by_layer_density(cast, BOTH, PruneEvent(1, 0.5), LAYERS, seeded, positions=positions)
        assert mask["a"].all() and mask["b"].tolist() == [True, True] + [False] * 6
