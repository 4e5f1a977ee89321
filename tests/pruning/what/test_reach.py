"""Shares of operations, weights and parameters that units reach, and counts that are rounded; numbers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedprune.errors import ConfigError, Incompatible
from fedprune.pruning.cost import counted, flops_by_entry, unreachable
from fedprune.pruning.mask import ones
from fedprune.pruning.what import What
from fedprune.pruning.what.fixed_density import NOfM
from fedprune.pruning.what.reach import reached
from fedprune.pruning.what.scope import erk, globally, per_layer
from fedprune.pruning.what.unit import filters, kernels, weights

SHAPE = (1, 4, 4)


def net() -> nn.Module:
    """A convolution of 4 filters on 2x2 places, one of 6 filters on 1 place, and 10 outputs: see the numbers below."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 10))


def bound(of: str, unit=filters, scope=globally, layers=("conv",), least: int = 1, **more) -> What:
    what = What(unit, scope, layers=layers, min_per_layer=least, **more).bind(net())
    return counted(of, what, net(), SHAPE, "filters_global")


def test_operations_of_each_entry():
    """Conv 1: 36 weights, each used at 2x2 = 4 places: 144 multiply-adds. Conv 2: 96 weights at 1 place: 96. Linear: 60.
    Together 300, and 600 operations; of an entry 8, 2 and 2."""
    assert flops_by_entry(net(), SHAPE) == ({"0.weight": 8.0, "2.weight": 2.0, "5.weight": 2.0}, 600.0)


def masked(first: int, second: int):
    """The mask with so many filters of each convolution."""
    mask = ones(net().state_dict(), ("0.weight", "2.weight"))
    mask["0.weight"][first:] = False
    mask["2.weight"][second:] = False
    return mask


def test_a_dead_filter_takes_the_inputs_that_read_it_along():
    """2 of 4 and 3 of 6 filters: 2 x 9 x 4 = 72, 3 x 2 x 4 = 24, 10 x 3 = 30: 126 of 300 multiply-adds. Of parameters, by the
    mask: 18 of 36 and 48 of 96 weights are dead, 66 of 40 + 102 + 70 = 212."""
    assert bound("flops").cost(masked(2, 3)) == pytest.approx(126 / 300)
    assert bound("flops", weights).cost(masked(2, 3)) == pytest.approx((72 + 48 + 60) / 300)  # single weights: what is not zero
    assert bound("weights").cost(masked(2, 3)) == pytest.approx(66 / 132)
    assert bound("params").cost(masked(2, 3)) == pytest.approx((212 - 66) / 212)


def scores(order: list[int]):
    """Scores by which filters go in this order, 0..3 of the first and 4..9 of the second convolution."""
    rank = torch.tensor([float(order.index(number)) + 1 for number in range(10)])
    return {
        "0.weight": rank[:4].view(4, 1, 1, 1).expand(4, 1, 3, 3).clone(),
        "2.weight": rank[4:].view(6, 1, 1, 1).expand(6, 4, 2, 2).clone(),
    }


def test_the_nearest_share_in_the_order_of_the_scores():
    """Filters go 0, 4, 1, 5, 2, 6, ... What is left, in multiply-adds, with a of the first and b of the second:
    36 a + 4 a b + 10 b: (4,6) 300, (3,6) 240, (3,5) 218, (2,5) 162, (2,4) 144, (1,4) 92, (1,3) 78, (1,2) 64, (1,1) 50.
    A target of 0.5 is 150: 144 is nearer than 162. 0.51 is 153, halfway: the larger one. 0.01: what min_per_layer keeps."""
    order = [0, 4, 1, 5, 2, 6, 3, 7, 8, 9]
    what = bound("flops")
    for share, left in ((1.0, 300), (0.81, 240), (0.5, 144), (0.51, 162), (0.52, 162), (0.3, 92), (0.01, 50)):
        assert what.cost(what.select(scores(order), share)) == pytest.approx(left / 300), share


def test_every_share_of_single_weights_is_reached():
    """Each of the 132 weights of the convolutions is a unit; 0.5 of 192 weights is 96, of 300 multiply-adds within one's 4."""
    values = {name: torch.rand(shape, generator=torch.Generator().manual_seed(1)) for name, shape in _shapes().items()}
    for of, step in (("weights", 1 / 132), ("params", 1 / 212), ("flops", 4 / 300)):
        what = bound(of, weights, least=0)
        assert abs(what.cost(what.select(values, 0.5)) - 0.5) <= step / 2 + 1e-9, of


def _shapes():
    return {"0.weight": (4, 1, 3, 3), "2.weight": (6, 4, 2, 2)}


def test_layers_keep_the_same_fraction_where_the_scope_says_so():
    """Half of each layer is (2, 3): 126 of 300; the target 0.42 is met exactly."""
    what = bound("flops", scope=per_layer)
    kept = what.alive_by_layer(what.select(scores([0, 4, 1, 5, 2, 6, 3, 7, 8, 9]), 0.42))
    assert kept == {"0.weight": 2, "2.weight": 3}


def test_bisection_looks_at_few_selections():
    seen = []

    def select(part):
        seen.append(part)
        return part

    assert reached(select, 0.3004, lambda part: part, 1000) == 0.3 and len(seen) < 15


def test_a_share_that_cannot_be_reached_names_the_nearest():
    """One filter of each: 36 + 4 + 10 = 50 of 300."""
    what = bound("flops")
    (problem,) = unreachable(what, net(), 0.1)
    assert "with a unit of each layer, leaves 0.1667, more than density=0.1: type density=0.1667" in problem
    (problem,) = unreachable(bound("flops", round_to=4), net(), 0.1)
    assert "with what.round_to=4, leaves" in problem
    assert unreachable(what, net(), 0.1667) == [] and unreachable(bound("units"), net(), 0.001) == []


def test_what_has_no_meaning_is_refused():
    with pytest.raises(ConfigError, match="density_of=flop: choose one of units, weights, params, flops"):
        bound("flop")
    for scope, more in ((erk, {}), (NOfM(2, 4), {"skip": ("first",)})):
        with pytest.raises(Incompatible, match="type density_of=units, or choose what=weights_global"):
            bound("flops", weights, scope, **more)


# --- round_to --------------------------------------------------------------------------------------------------------------


def convolutions(*widths: int, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    pairs = zip((3, *widths), widths, strict=False)
    layers = [layer for i, o in pairs for layer in (nn.Conv2d(i, o, 3, padding=1, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def test_what_is_left_is_a_multiple():
    """Of 64, 20 and 6 filters half are 32, 10 and 3: 32 is a multiple of 8, 10 goes down to 8, and of 6 all stay, as no 8 are
    there. At 0.2 they are 13 (to 8), 4 and 1; 4 would go down to none, so 8 stay."""
    what = What(filters, per_layer, layers=("conv",), min_per_layer=1, round_to=8).bind(convolutions(64, 20, 6))
    sizes = {name: tensor.abs() for name, tensor in convolutions(64, 20, 6).state_dict().items()}
    for density, kept in ((0.5, [32, 8, 6]), (0.2, [8, 8, 6]), (1.0, [64, 20, 6])):
        assert list(what.alive_by_layer(what.select(sizes, density)).values()) == kept


def test_a_dead_filter_that_carries_constants_counts_in_the_multiple():
    """With biases, the first two layers are read under zero padding, and the third, of 24, by a pool. Half of 64 are 32, with
    the carrier 33, so 32 of which 31 live. Half of 20 are 10, with it 11, so 8 of which 7 live. Half of 24 are 12: 8."""
    what = What(filters, per_layer, layers=("conv",), min_per_layer=1, round_to=8).bind(convolutions(64, 20, 24, bias=True))
    sizes = {name: tensor.abs() for name, tensor in convolutions(64, 20, 24).state_dict().items()}
    assert what.carry == {"0.weight", "2.weight"}
    assert list(what.alive_by_layer(what.select(sizes, 0.5)).values()) == [31, 7, 8]
    assert list(what.alive_by_layer(what.select(sizes, 1.0)).values()) == [64, 20, 24]


@pytest.mark.parametrize("to", [7.5, 0, "8"])
def test_a_number_that_is_none_is_named(to):
    with pytest.raises(ConfigError, match="type a whole number from 1, such as what.round_to=8"):
        What(filters, globally, round_to=to)


@pytest.mark.parametrize(("ratio", "to"), [(0.5, 8), (0.3, 8), (0.3, 4), (0.45, 16)])
def test_the_same_filters_are_left_as_by_torch_pruning(ratio, to):
    tp = pytest.importorskip("torch_pruning")
    theirs, ours = convolutions(64, 40, 32), convolutions(64, 40, 32)
    tp.pruner.MagnitudePruner(
        theirs,
        torch.zeros(1, 3, 8, 8),
        importance=tp.importance.GroupMagnitudeImportance(p=1, group_reduction="first", normalizer=None),
        pruning_ratio=ratio,
        ignored_layers=[theirs[-1]],
        round_to=to,
    ).step()
    what = What(filters, per_layer, layers=("conv",), min_per_layer=1, round_to=to).bind(ours)
    mask = what.select({name: tensor.abs() for name, tensor in ours.state_dict().items()}, 1 - ratio)
    alive = mask["0.weight"][:, 0, 0, 0]
    assert torch.equal(theirs[0].weight, ours[0].weight[alive])
    assert [theirs[n].out_channels for n in (0, 2, 4)] == list(what.alive_by_layer(mask).values())


def test_rounding_joins_a_share_of_operations():
    """Whole blocks of 2 filters: (4,6) 300, (4,4) 248, (2,4) 144, (2,2) 108 of 300 multiply-adds."""
    what = bound("flops", round_to=2)
    mask = what.select(scores([4, 5, 0, 1, 6, 7, 2, 3, 8, 9]), 0.5)
    assert list(what.alive_by_layer(mask).values()) == [2, 4] and what.cost(mask) == pytest.approx(144 / 300)


@pytest.mark.parametrize(("unit", "to"), [(weights, 8), (kernels, 8)])
def test_only_whole_outputs_or_inputs_are_rounded(unit, to):
    with pytest.raises(ConfigError, match="type what.round_to=1, or choose an option of filters, neurons or channels"):
        What(unit, globally, round_to=to)


# --- runs ------------------------------------------------------------------------------------------------------------------

ONCE = ("when=before_training", "how_often=one_shot", "rounds=1")


def test_a_run_reaches_its_share_and_logs_it(tiny, play):
    options = ("model=cnn_fedavg", "what=filters_global", "density_of=flops", "density=0.3")
    metrics = play(tiny(*options, *ONCE))[-1][1]
    assert abs(metrics["density/flops"] - 0.3) < 0.01 and metrics["density/units"] != pytest.approx(0.3, abs=0.01)


def test_what_counts_units_is_refused_when_the_run_is_built(tiny):
    dynamic = ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "rounds=3")
    for more, said in (
        (dynamic, "how_often=dynamic exchanges"),
        ((*ONCE, "whose=voted_densities"), "whose=voted_densities counts"),
        ((*ONCE, "density_of=params", "density=0.00001"), "type density=0.0033"),
        ((*ONCE, "what=weights_2of4"), "what=weights_2of4 has densities of its own"),
    ):
        with pytest.raises((Incompatible, ConfigError), match=said):
            tiny("model=cnn_fedavg", "density_of=flops", *more)
    tiny("model=cnn_fedavg", *ONCE, "density_of=params", "density=0.0033")
