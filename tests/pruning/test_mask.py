"""Shrink and regrow over tables of seeds and densities, against a sort in plain Python; apply and pack to the bit."""

import math
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fedprune.pruning.mask import apply, count, density, full, ones, pack, places, regrow, shrink, size, unpack
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.top_k import nearest
from fedprune.pruning.what.unit import weights
from fedprune.types import Mask, Scores

SHAPES = {"b.weight": (3, 5), "a.weight": (4, 2, 2), "c.weight": (7,)}  # 38 entries; not in alphabetical order
TOTAL = 38
WHAT = What(weights, globally, names=tuple(SHAPES))
DENSITIES = (0.003, 0.02, 0.1, 0.29, 0.35, 0.5, 0.9, 0.999, 1.0)


def scores_with_ties(seed: int) -> Scores:
    random = np.random.default_rng(seed)
    return {name: torch.from_numpy(random.integers(-3, 4, shape).astype("float32")) for name, shape in SHAPES.items()}


def random_mask(seed: int, alive: float = 0.5) -> Mask:
    random = np.random.default_rng(seed)
    return {name: torch.from_numpy(random.random(shape) < alive) for name, shape in SHAPES.items()}


def everything() -> Mask:
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}


def entries(mask: Mask) -> set[tuple[str, int]]:
    return {(name, int(i)) for name, alive in mask.items() for i in torch.nonzero(alive.flatten())}


def best(scores: Scores, among: set[tuple[str, int]], number: int) -> set[tuple[str, int]]:
    """Sort by score, then name, then flat index: the definition."""
    return set(sorted(among, key=lambda entry: (-float(scores[entry[0]].flatten()[entry[1]]), entry))[:number])


def half_up(density: float, number: int) -> int:
    """The nearest integer to the decimal that was typed, times `number`."""
    return int((Decimal(repr(density)) * number).quantize(Decimal(1), ROUND_HALF_UP))


def test_counts_are_those_of_decimal_arithmetic():
    # Among them the traps 0.29 * 100 = 28.999999999999996, 0.35 * 10 = 3.5 and 0.145 * 100 = 14.499999999999998.
    for number in (1, 2, 7, 10, 38, 64, 100, 250, 266_200, 9_225_610):
        for thousandth in range(1001):
            assert nearest(thousandth / 1000 * number) == half_up(thousandth / 1000, number), (thousandth, number)


@pytest.mark.parametrize(
    ("density", "number", "kept"),
    [(0.29, 100, 29), (0.35, 10, 4), (0.145, 100, 15), (0.25, 10, 3), (0.45, 10, 5), (0.004, 100, 0)],
)
def test_shrink_keeps_the_nearest_integer_halves_up(density, number, kept):
    what = What(weights, globally, names=("w",))
    mask = shrink({"w": torch.ones(number, dtype=torch.bool)}, {"w": torch.arange(number).float()}, density, what)
    assert mask["w"].tolist() == [False] * (number - kept) + [True] * kept


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("density", DENSITIES)
def test_shrink_keeps_the_best_of_the_living_by_score_then_name_then_index(seed, density):
    scores, mask = scores_with_ties(seed), random_mask(seed + 100, alive=0.7)
    assert entries(shrink(mask, scores, density, WHAT)) == best(scores, entries(mask), half_up(density, TOTAL))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("density", DENSITIES)
def test_regrow_keeps_all_the_living_and_adds_the_best_of_the_dead(seed, density):
    scores, mask = scores_with_ties(seed), random_mask(seed + 200, alive=0.3)
    living = entries(mask)
    grown = best(scores, entries(everything()) - living, max(half_up(density, TOTAL) - len(living), 0))
    assert not grown & living
    assert entries(regrow(mask, scores, density, WHAT)) == living | grown


def test_ties_go_to_the_lower_flat_index_of_the_alphabetically_first_name():
    equal = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    # 18 of 38: all 16 of a.weight, then the first two of b.weight, whatever the order of the dict.
    for names in (tuple(SHAPES), tuple(reversed(SHAPES))):
        what = What(weights, globally, names=names)
        kept = shrink({n: everything()[n] for n in names}, {n: equal[n] for n in names}, 18 / 38, what)
        assert entries(kept) == {("a.weight", i) for i in range(16)} | {("b.weight", 0), ("b.weight", 1)}


@pytest.mark.parametrize("seed", range(5))
def test_masks_nest_over_a_falling_density_with_new_scores_at_every_step(seed):
    mask = everything()
    for step, d in enumerate((0.8, 0.5, 0.5, 0.29, 0.1, 0.03, 0.01)):
        smaller = shrink(mask, scores_with_ties(100 * seed + step), d, WHAT)
        assert entries(smaller) <= entries(mask)
        assert count(smaller) == half_up(d, TOTAL)
        mask = smaller


def test_global_shrink_is_global_unstructured_pruning_of_torch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 4))
    what = What(weights, globally).bind(net)
    params = {name: value.detach().clone() for name, value in net.state_dict().items()}
    mask = shrink(ones(params, what.names), {name: params[name].abs() for name in what.names}, 0.3, what)
    # 91 weights, 27.3 to keep: 27, so torch prunes 64.
    prune.global_unstructured([(layer, "weight") for layer in net], prune.L1Unstructured, amount=64)
    assert all(torch.equal(mask[f"{i}.weight"], layer.weight_mask.bool()) for i, layer in enumerate(net))


def test_a_score_of_minus_infinity_is_a_veto_against_growing():
    scores, mask = scores_with_ties(0), random_mask(1, alive=0.3)
    forbidden = random_mask(2, alive=0.5)
    vetoed = {name: score.masked_fill(forbidden[name], -math.inf) for name, score in scores.items()}
    grown = entries(regrow(mask, vetoed, 1.0, WHAT))
    assert grown == entries(mask) | (entries(everything()) - entries(forbidden))


def test_where_every_score_is_minus_infinity_nothing_is_kept_and_nothing_grows():
    never = {name: torch.full(shape, -math.inf) for name, shape in SHAPES.items()}
    mask = random_mask(3)
    assert count(shrink(mask, never, 0.5, WHAT)) == 0
    assert entries(regrow(mask, never, 1.0, WHAT)) == entries(mask)


def test_scores_of_the_dead_do_not_matter_to_shrink_nor_those_of_the_living_to_regrow():
    mask, scores = random_mask(4), scores_with_ties(4)
    for wild in (math.inf, -math.inf, math.nan, 1e30):
        dead_wild = {name: scores[name].masked_fill(~mask[name], wild) for name in mask}
        living_wild = {name: scores[name].masked_fill(mask[name], wild) for name in mask}
        assert entries(shrink(mask, dead_wild, 0.2, WHAT)) == entries(shrink(mask, scores, 0.2, WHAT))
        assert entries(regrow(mask, living_wild, 0.8, WHAT)) == entries(regrow(mask, scores, 0.8, WHAT))


@pytest.mark.parametrize("seed", range(4))
def test_an_exchange_ends_at_the_exact_density(seed):
    start = shrink(everything(), scores_with_ties(seed), 0.5, WHAT)
    smaller = shrink(start, scores_with_ties(seed + 10), 0.5 * (1 - 0.3), WHAT)
    after = regrow(smaller, scores_with_ties(seed + 20), 0.5, WHAT)
    assert (count(start), count(smaller), count(after)) == (19, 13, 19)  # 38 x 0.5 = 19, 38 x 0.35 = 13.3


def test_shrink_and_regrow_leave_what_they_are_given_as_it_was():
    mask, scores = random_mask(5), scores_with_ties(5)
    before = pack(mask), {name: score.clone() for name, score in scores.items()}
    for after in (shrink(mask, scores, 1.0, WHAT), regrow(mask, scores, 0.0, WHAT)):
        assert all(after[name].data_ptr() != mask[name].data_ptr() for name in mask)
    assert pack(mask) == before[0]
    assert all(torch.equal(scores[name], before[1][name]) for name in scores)


def test_apply_gives_positive_zeros_to_the_bit_whatever_was_there():
    values = torch.tensor([-1.0, -0.0, math.nan, math.inf, -math.inf, -0.0, 2.0])
    alive = torch.tensor([False, False, False, False, False, True, True])
    made = apply({"w": values, "bias": torch.tensor([-0.0])}, {"w": alive})
    negative_zero = -(2**31)
    assert made["w"].view(torch.int32)[:6].tolist() == [0, 0, 0, 0, 0, negative_zero]
    assert made["w"][6] == 2.0
    assert made["bias"].view(torch.int32).tolist() == [negative_zero]


def test_apply_neither_alters_nor_aliases_its_input():
    params = {"w": torch.ones(4), "counter": torch.tensor([7, 8])}
    for alive in (torch.tensor([True, False, True, False]), torch.ones(4, dtype=torch.bool)):
        made = apply(params, {"w": alive})
        made["w"].fill_(5.0)
        assert params["w"].tolist() == [1, 1, 1, 1]
        assert made["counter"].dtype == torch.int64


def test_density_counts_entries_over_all_layers():
    mask = {"a": torch.tensor([True, False]), "b": torch.tensor([[True, True, False], [False, False, True]])}
    assert (count(mask), size(mask), density(mask)) == (4, 8, 0.5)
    assert density({}) == 1.0  # nothing to prune


def test_ones_covers_the_named_tensors_only():
    params = {"w": torch.zeros(2, 3), "bias": torch.zeros(3)}
    mask = ones(params, ("w",))
    assert mask.keys() == {"w"}
    assert mask["w"].dtype == torch.bool
    assert mask["w"].shape == (2, 3)
    assert bool(mask["w"].all())


@pytest.mark.parametrize("shapes", [[(8,)], [(1,)], [(3,), (2, 3)], [(5, 5), (2, 1, 3), (1, 1)], [(16, 4)], [()], []])
def test_unpack_inverts_pack_for_any_number_of_entries(shapes):
    random = np.random.default_rng(len(shapes))
    for _ in range(10):
        mask = {f"layer{i}": torch.from_numpy(np.array(random.random(shape) < 0.5)) for i, shape in enumerate(shapes)}
        bits = pack(mask)
        assert len(bits) == math.ceil(size(mask) / 8)
        back = unpack(bits, {name: alive.shape for name, alive in mask.items()})
        assert back.keys() == mask.keys()
        assert all(torch.equal(back[name], mask[name]) and back[name].dtype == torch.bool for name in mask)


def test_pack_goes_through_names_and_rows_in_order_and_pads_with_zeros():
    mask = {"b": torch.tensor([[True, False], [False, True]]), "a": torch.tensor([True, True, False, False, True])}
    assert pack(mask) == bytes([0b1001_1100, 0b1000_0000])


@pytest.mark.parametrize("length", [0, 1, 3, 100])
def test_bits_of_the_wrong_length_are_refused(length):
    with pytest.raises(ValueError, match=f"takes 2 bytes, not {length}"):
        unpack(bytes(length), {"w": torch.Size((3, 3))})


def test_what_is_done_to_an_unpacked_dict_does_not_reach_the_next_one():
    bits, shapes = pack({"w": torch.tensor([True, False, True])}), {"w": torch.Size((3,))}
    unpack(bits, shapes).clear()
    assert unpack(bits, shapes)["w"].tolist() == [True, False, True]


def test_the_same_bits_under_other_names_and_shapes_are_another_mask():
    bits = bytes([0b1010_0000])
    assert unpack(bits, {"w": torch.Size((4,))})["w"].tolist() == [True, False, True, False]
    assert unpack(bits, {"w": torch.Size((2, 2))})["w"].tolist() == [[True, False], [True, False]]
    split = unpack(bits, {"v": torch.Size((1,)), "w": torch.Size((3,))})
    assert (split["v"].tolist(), split["w"].tolist()) == ([True], [False, True, False])


@pytest.mark.parametrize("seed", range(4))
def test_places_index_the_living_in_order_also_of_a_mask_like_one_that_was_seen_before(seed):
    for share in (0.0, 0.3, 1.0):
        for alive in random_mask(seed, share).values():
            values = np.arange(alive.numel())
            assert values[places(alive)].tolist() == torch.nonzero(alive.flatten()).flatten().tolist()


def test_a_mask_is_full_if_nothing_is_dead_in_any_layer():
    assert full(everything())
    assert full({})
    for name in SHAPES:
        mask = everything()
        mask[name].view(-1)[-1] = False
        assert not full(mask)
