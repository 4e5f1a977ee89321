"""Units: which entries live together, and what their entries' scores make of them; numbers by hand."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fedprune.errors import ConfigError, Incompatible
from fedprune.pruning.mask import count, ones, regrow, shrink
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import erk, globally, per_layer
from fedprune.pruning.what.top_k import nearest
from fedprune.pruning.what.unit import Unit, blocks, channels, filters, filters_or_weights, kernels, neurons, spread, weights

# Two filters of two channels of 1 x 2 kernels: [[[1, 2], [3, 4]], [[5, 6], [-7, 8]]] as a matrix of 2 x 4.
CONV = torch.tensor([[[[1.0, 2]], [[3, 4]]], [[[5, 6]], [[-7, 8]]]])
LINEAR = torch.tensor([[1.0, 2, 3, 4], [5, 6, -7, 8]])
INF = math.inf


@pytest.mark.parametrize(
    ("unit", "scores", "expected"),
    [
        (filters, CONV, [10, 12]),
        (channels, CONV, [14, 8]),
        (kernels, CONV, [3, 7, 11, 1]),
        (partial(blocks, h=2, w=2), CONV, [14, 8]),
        (partial(blocks, h=1, w=2), CONV, [3, 7, 11, 1]),
        (partial(blocks, h=2, w=1), CONV, [6, 8, -4, 12]),
        (partial(blocks, h=2, w=4), CONV, [22]),
        (filters, LINEAR, [10, 12]),
        (neurons, LINEAR, [10, 12]),
        (channels, LINEAR, [6, 8, -4, 12]),
        (partial(blocks, h=1, w=2), LINEAR, [3, 7, 11, 1]),
    ],
)
def test_sums_by_hand(unit, scores, expected):
    assert unit(scores, reduce="sum", of="signed").flatten().tolist() == expected


def test_a_weight_is_a_unit_and_so_is_a_linear_layers_kernel():
    assert torch.equal(weights(CONV), CONV)
    assert torch.equal(kernels(LINEAR, reduce="sum", of="absolute"), LINEAR)


def test_units_of_two_kinds_are_filters_of_convolutions_and_weights_of_linear_layers():
    assert filters_or_weights(CONV, reduce="sum").flatten().tolist() == [10, 12]
    assert torch.equal(filters_or_weights(LINEAR, reduce="sum"), LINEAR)


@pytest.mark.parametrize(
    ("reduce", "of", "expected"),
    [
        ("sum", "signed", [10, 12]),
        ("sum", "absolute", [10, 26]),
        ("mean", "signed", [2.5, 3]),
        ("mean", "absolute", [2.5, 6.5]),
        ("l2", "signed", [math.sqrt(1 + 4 + 9 + 16), math.sqrt(25 + 36 + 49 + 64)]),
        ("l2", "absolute", [math.sqrt(30), math.sqrt(174)]),
    ],
)
@pytest.mark.parametrize("unit", [filters, neurons])
def test_the_two_words_of_a_reduction_by_hand(unit, reduce, of, expected):
    assert unit(LINEAR, reduce=reduce, of=of).flatten().tolist() == pytest.approx(expected, rel=1e-7)


def test_signed_and_absolute_keep_different_units():
    scores = torch.tensor([[3.0, -3, 3, -3], [1, 1, 1, 1]])
    for of, kept in (("signed", [False, True]), ("absolute", [True, False])):
        what = What(partial(filters, reduce="sum", of=of), globally, names=("w",))
        mask = shrink({"w": torch.ones(2, 4, dtype=torch.bool)}, {"w": scores}, 0.5, what)
        assert mask["w"].all(1).tolist() == kept


ALL: dict[str, Unit] = {
    "filters": filters,
    "channels": channels,
    "kernels": kernels,
    "blocks": partial(blocks, h=2, w=3),
    "neurons": neurons,
}


def stack(name: str) -> nn.Sequential:
    if name == "neurons":
        return nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 6), nn.Linear(6, 4))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 4))


def random_scores(mask: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(alive.shape, generator=generator) for name, alive in mask.items()}


@pytest.mark.parametrize("reduce", ["sum", "mean", "l2"])
@pytest.mark.parametrize("of", ["signed", "absolute"])
@pytest.mark.parametrize("name", ALL)
def test_dead_entries_kill_their_unit_and_protected_ones_protect_it(name, reduce, of):
    shape = (4, 6) if name == "neurons" else (4, 2, 1, 3)
    unit = partial(ALL[name], reduce=reduce, of=of)
    for value in (INF, -INF):
        scores = torch.ones(shape)
        scores.view(-1)[7] = value
        grid = unit(scores)
        touched = unit(torch.zeros(shape).masked_fill(scores == value, 1.0))
        assert torch.equal(grid == value, touched != 0)
        assert grid[touched == 0].isfinite().all()
    scores.view(-1)[8] = INF
    assert not unit(scores).isnan().any()
    assert (unit(torch.full(shape, -INF)) == -INF).all()


@pytest.mark.parametrize("scope", [globally, per_layer, erk])
@pytest.mark.parametrize("name", ALL)
def test_units_live_or_die_as_a_whole_in_exact_numbers_and_masks_nest_unless_they_grow(name, scope):
    what = What(ALL[name], scope).bind(stack(name))
    params = stack(name).state_dict()
    sizes = what.units(params)
    half = ones(params, what.names)
    for step, d in enumerate((1.0, 0.7, 0.35, 0.3, 0.1)):
        mask = shrink(half, random_scores(half, step), d, what)
        more = regrow(mask, random_scores(half, 9), min(1.0, 2 * d), what)
        for kept, density in ((mask, d), (more, min(1.0, 2 * d))):
            total = sum(sizes.values())
            number = sum(nearest(density * n) for n in sizes.values()) if scope is per_layer else nearest(density * total)
            assert what.alive_units(kept) == (number, total)
            for layer in kept:
                share = what.unit(kept[layer].float())  # the mean: the fraction of the unit that is alive
                assert set(share.flatten().tolist()) <= {0.0, 1.0}
                assert torch.equal(spread(share > 0, kept[layer].shape), kept[layer])
                assert kept[layer].is_contiguous()
        assert all(not (mask[layer] & ~half[layer]).any() and not (mask[layer] & ~more[layer]).any() for layer in mask)
        half = mask
    assert count(half) > 0


def test_spread_is_the_inverse_of_a_tile_by_hand():
    grid = torch.tensor([[1, 2]])
    assert spread(grid, torch.Size((2, 4))).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert spread(grid, torch.Size((2, 2, 1, 2))).flatten(1).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert spread(torch.tensor([[[[1]], [[2]]]]), torch.Size((2, 2, 1, 2))).flatten(1).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


@pytest.mark.parametrize(
    ("what", "error", "messages"),
    [
        (
            What(partial(blocks, h=4, w=4), globally),
            Incompatible,
            ["layer 0: blocks of 4 x 4 do not fit into its 4 x 27 matrix: choose", "layer 1: blocks of 4 x 4 do not fit"],
        ),
        (What(partial(blocks, h=0, w=4), globally), ConfigError, ["what.unit.h=0 and what.unit.w=4 are a block's rows"]),
        (What(neurons, globally), Incompatible, ["layer 0: neurons are of linear layers: choose what.layers=[linear]"]),
        (What(partial(filters, reduce="max"), globally), ConfigError, ["what.unit.reduce=max: choose one of mean, sum, l2"]),
        (What(partial(kernels, of="squared"), globally), ConfigError, ["what.unit.of=squared: choose one of signed, absolute"]),
    ],
)
def test_a_unit_that_does_not_fit_is_refused_with_the_layers_name_and_a_way_out(what, error, messages):
    with pytest.raises(error) as caught:
        what.bind(stack("blocks"))
    assert type(caught.value) is error
    assert all(message in str(caught.value) for message in messages)
