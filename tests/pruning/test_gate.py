"""What gates wait for: thresholds on either side, and the distance of two masks by hand and by brute force."""

import pytest
import torch

from fedprune.pruning.evidence import OUTCOMES, OUTCOMES_OF_CLIENTS, needs
from fedprune.pruning.gate import Accurate, Bound, MovingReached, Reached, Settled, shift
from fedprune.types import Mask


def test_accurate_opens_at_its_threshold_and_above():
    assert [Accurate(0.5)(val_accuracy=value) for value in (0.0, 0.499, 0.5, 0.501, 1.0)] == [False, False, True, True, True]


def test_settled_opens_at_its_threshold_and_below():
    assert [Settled(0.1)(mask_shift=value) for value in (0.0, 0.099, 0.1, 0.101, 1.0)] == [True, True, True, False, False]


def test_conditions_say_what_they_wait_for_and_ask_for_known_outcomes():
    assert (str(Accurate(0.8)), str(Settled(0.05))) == ("val accuracy >= 0.8", "mask shift <= 0.05")
    assert (needs(Accurate(0.8)), needs(Settled(0.1))) == (OUTCOMES[:1], OUTCOMES[1:2])
    gates = (Reached(Bound(at_most=0.2)), MovingReached(0.1, Bound(at_least=0.7)))
    assert [str(gate) for gate in gates] == ["val metric <= 0.2", "mask shift > 0.1 and val metric when pruned >= 0.7"]
    assert {name for gate in gates for name in needs(gate)} <= {*OUTCOMES_OF_CLIENTS}


def test_a_gate_on_the_tasks_metric_opens_on_the_good_side_of_its_bound():
    values = (0.1, 0.2, 0.3, float("nan"))  # not a number: a client without validation examples
    assert [Reached(Bound(at_most=0.2))(val_metric=value) for value in values] == [True, True, False, False]
    assert [Reached(Bound(at_least=0.2))(val_metric=value) for value in values] == [False, True, True, False]
    moving = MovingReached(0.1, Bound(at_most=0.2))
    assert [moving(mask_shift=shift, pruned_metric=0.2) for shift in (0.1, 0.11)] == [False, True]
    assert not moving(mask_shift=0.5, pruned_metric=0.21)


def mask(*bits: list[int]) -> Mask:
    return {name: torch.tensor(layer).bool() for name, layer in zip("ab", bits, strict=True)}


def test_the_distance_of_two_masks_by_hand():
    # 8 living; both masks keep 4 of them. They differ in a[1], a[2] and in b[0], b[3]: 4 of 8.
    living = mask([1, 1, 1, 1, 0], [1, 1, 1, 1])
    before, after = mask([1, 1, 0, 0, 0], [1, 1, 0, 0]), mask([1, 0, 1, 0, 0], [0, 1, 0, 1])
    assert shift(before, after, living) == 0.5
    assert shift(before, before, living) == 0.0
    # Nothing in common, of half of the living each: as far apart as masks can be.
    assert shift(before, mask([0, 0, 1, 1, 0], [0, 0, 1, 1]), living) == 1.0
    # Two entries of 8 exchanged for each other.
    assert shift(before, mask([1, 0, 1, 0, 0], [1, 1, 0, 0]), living) == 0.25


def test_of_nothing_alive_nothing_can_shift():
    assert shift(mask([0], [0]), mask([0], [0]), mask([0], [0])) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_the_distance_is_a_metric_counted_entry_by_entry_and_bounded(seed):
    generator = torch.Generator().manual_seed(seed)
    living = {"w": torch.rand(40, generator=generator) < 0.7}
    places = living["w"].nonzero().flatten()
    kept = len(places) // 4

    def chosen() -> Mask:
        some = places[torch.randperm(len(places), generator=generator)[:kept]]
        return {"w": torch.zeros(40).bool().index_fill(0, some, True)}

    one, two, three = chosen(), chosen(), chosen()
    counted = sum(a != b for a, b in zip(one["w"].tolist(), two["w"].tolist(), strict=True)) / len(places)
    assert shift(one, two, living) == pytest.approx(counted)
    assert shift(one, two, living) == shift(two, one, living) <= 2 * kept / len(places)
    assert shift(one, three, living) <= shift(one, two, living) + shift(two, three, living)
