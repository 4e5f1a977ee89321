"""Units and scopes: which layers, which pool, how many of each; numbers by hand or by torch.nn.utils.prune."""

import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils import prune

from fedprune.config.instantiate import make
from fedprune.errors import ConfigError, Incompatible, RunError
from fedprune.pruning.mask import count, density, ones, regrow, shrink
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import erk, globally, per_layer
from fedprune.pruning.what.unit import filters, weights
from fedprune.storage.checkpoint import save_ticket
from fedprune.types import Mask, Scores

CONF = Path(__file__).parents[3] / "conf" / "what"


def mlp(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(i, o) for i, o in pairwise(sizes)))


def convs() -> nn.Sequential:
    """Two convolutions of 4 and 40 filters, then a linear layer."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 40, 3), nn.Flatten(), nn.Linear(40, 10))


def wide() -> nn.Sequential:
    """Two convolutions and three linear layers; widths inside are multiples of 8."""
    convolutions = (nn.Conv2d(1, 8, 3), nn.Conv2d(8, 40, 3), nn.Flatten())
    return nn.Sequential(*convolutions, nn.Linear(40, 48), nn.Linear(48, 40), nn.Linear(40, 10))


def dense(net: nn.Module, what: What) -> Mask:
    return ones(net.state_dict(), what.names)


def random_scores(mask: Mask, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(alive.shape, generator=generator) for name, alive in mask.items()}


def magnitudes(net: nn.Module, names: tuple[str, ...]) -> Scores:
    return {name: net.state_dict()[name].abs() for name in names}


def counts(mask: Mask) -> list[int]:
    return [int(alive.sum()) for alive in mask.values()]


def living_units(what: What, mask: Mask) -> list[int]:
    return [int((what.unit(alive.float()) > 0).sum()) for alive in mask.values()]


# --- scopes ----------------------------------------------------------------------------------------------------------------


def test_one_pool_compares_layers_and_a_pool_per_layer_does_not():
    low, high = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[5.0, 6.0, 7.0, 8.0]])
    scores = {"low": low, "high": high}
    mask = {name: torch.ones(1, 4, dtype=torch.bool) for name in scores}
    for scope, expected in ((globally, [0, 4]), (per_layer, [2, 2])):
        assert counts(shrink(mask, scores, 0.5, What(weights, scope, names=("low", "high")))) == expected


def test_the_lottery_ticket_ladder_of_lenet_300_100():
    # After k steps of 20 % (output layer 10 %): 235200 x 0.8^k, 30000 x 0.8^k and 1000 x 0.9^k weights, each to the nearest
    # integer; of 266,200 that is what figure 5 of Frankle & Carbin 2019 is labelled with.
    labels = {3: 51.3, 7: 21.1, 9: 13.5, 15: 3.6, 18: 1.9}
    net = mlp(784, 300, 100, 10)
    what = make(OmegaConf.load(CONF / "weights_per_layer.yaml")).bind(net)
    mask = dense(net, what)
    for k in range(1, 19):
        mask = shrink(mask, random_scores(mask, k), 0.8**k, what)
        assert counts(mask) == [round(235_200 * 0.8**k), round(30_000 * 0.8**k), round(1_000 * 0.9**k)]
        if k in labels:
            assert round(100 * density(mask), 1) == labels[k]


def test_rates_are_of_the_named_layers():
    # At density 0.64 = 0.8^2, half the rate leaves 0.9^2 = 0.81 and rate 0 leaves all: of 100, 64, 81 and 100.
    net = mlp(10, 10, 10, 10)
    for rates, expected in (
        ({"first": 0.5}, [81, 64, 64]),
        ({"last": 0.5}, [64, 64, 81]),
        ({"1": 0.5, "last": 0.0}, [64, 81, 100]),
        ({"1.weight": 0.5}, [64, 81, 64]),
        ({}, [64, 64, 64]),
    ):
        what = What(weights, partial(per_layer, rates=rates)).bind(net)
        assert counts(shrink(dense(net, what), random_scores(dense(net, what)), 0.64, what)) == expected


@pytest.mark.parametrize(
    "scope",
    [
        partial(per_layer, rates={"fc9": 0.5}),
        partial(per_layer, rates={"last": 5.0}),  # five times 20 % leaves nothing after one step
        partial(per_layer, rates={"last": -0.5}),
        partial(per_layer, rates={"last": 0.5}, step=0.0),
        partial(per_layer, rates={"last": 0.5}, step=1.0),
    ],
    ids=["unknown layer", "too fast", "negative", "no step", "all in a step"],
)
def test_rates_that_do_not_fit_are_refused_when_the_network_is_known_and_not_when_it_is_pruned(scope):
    with pytest.raises(ConfigError):
        What(weights, scope).bind(mlp(3, 3, 3))


def test_erk_densities_by_hand():
    # (2, 2): (2 + 2) / 4 = 1. (10, 10): 20 / 100 = 0.2. One unit of scale keeps 4 x 1 + 100 x 0.2 = 24 weights.
    #  12 of 104: scale 12 / 24 = 0.5, so densities 0.5 and 0.1.
    #  54 of 104: scale 2.25 would give the small layer more than it has; it stays dense, the other gets 54 - 4.
    shapes = {"small": (2, 2), "large": (10, 10)}
    what = What(weights, erk, names=tuple(shapes))
    mask = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for total, expected in ((12, [2, 10]), (54, [4, 50]), (103, [4, 99]), (104, [4, 100])):
        assert counts(shrink(mask, random_scores(mask), total / 104, what)) == expected


def test_erk_counts_the_kernel():
    # (8, 4, 3, 3): (8 + 4 + 3 + 3) / 288; (8, 10): (8 + 10) / 80: both 18 weights per unit of scale. 36 of 368: 18 each.
    shapes = {"conv": (8, 4, 3, 3), "linear": (8, 10)}
    mask = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    what = What(weights, erk, names=tuple(shapes))
    assert counts(shrink(mask, random_scores(mask), 36 / 368, what)) == [18, 18]


def test_erk_keeps_exactly_as_many_weights_in_all_as_the_density_says():
    net = mlp(17, 13, 11, 7)
    what = What(weights, erk).bind(net)
    mask = dense(net, what)
    for percent in range(1, 101):
        # 17 x 13 + 13 x 11 + 11 x 7 = 441; the nearest integer, halves up, in whole numbers
        assert count(shrink(mask, random_scores(mask), percent / 100, what)) == (441 * percent + 50) // 100


def test_erk_gives_every_layer_its_share_to_the_nearest_weight_or_so():
    # The shares by another road: bisection for the scale at which min(size, scale x (in + out)) adds up to the total.
    sizes, both = np.array([17 * 13, 13 * 11, 11 * 7, 7 * 2]), np.array([17 + 13, 13 + 11, 11 + 7, 7 + 2])
    net = mlp(17, 13, 11, 7, 2)
    what = What(weights, erk).bind(net)
    mask = dense(net, what)
    for total in range(1, sizes.sum(), 7):
        low, high = 0.0, 1000.0
        for _ in range(60):
            scale = (low + high) / 2
            low, high = (low, scale) if np.minimum(sizes, scale * both).sum() > total else (scale, high)
        shares = np.minimum(sizes, scale * both)
        kept = counts(shrink(mask, random_scores(mask), total / sizes.sum(), what))
        assert sum(kept) == total
        assert abs(kept - shares).max() < 1


def test_erk_masks_nest_and_stay_exact_over_two_events_and_an_exchange():
    # Shares by largest remainder can fall in a layer while the whole rises (the Alabama paradox). Here, of 210 weights, 36 come
    # to (4, 7, 11, 14) and 37 to (3, 8, 12, 14): the first layer must not be asked for a weight that is dead, nor to drop one.
    shapes = {"l0": (3, 2), "l1": (8, 3), "l2": (8, 9), "l3": (9, 12)}
    what = What(weights, erk, names=tuple(shapes))
    mask = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    larger = shrink(mask, random_scores(mask, 1), 37 / 210, what)
    smaller = shrink(larger, random_scores(mask, 2), 36 / 210, what)
    again = regrow(smaller, random_scores(mask, 3), 37 / 210, what)
    assert (count(larger), count(smaller), count(again)) == (37, 36, 37)


@pytest.mark.parametrize("percent", [10, 30, 50, 90])
def test_erk_of_filters_keeps_exactly_as_many_filters_as_the_density_says(percent):
    net = convs()
    what = What(filters, erk, layers=("conv",)).bind(net)
    kept = shrink(dense(net, what), random_scores(dense(net, what)), percent / 100, what)
    assert what.alive_units(kept) == (round(44 * percent / 100), 44)


@pytest.mark.parametrize("scope", [globally, per_layer, erk])
@pytest.mark.parametrize("unit", [weights, filters])
def test_density_1_keeps_everything_and_masks_nest_in_every_scope(scope, unit):
    net = convs()
    what = What(unit, scope).bind(net)
    mask = dense(net, what)
    assert density(shrink(mask, random_scores(mask), 1.0, what)) == 1.0
    for step, d in enumerate((0.7, 0.3, 0.1)):
        smaller = shrink(mask, random_scores(mask, step), d, what)
        assert all(bool((smaller[name] <= mask[name]).all()) for name in mask)
        assert count(smaller) < count(mask)
        mask = smaller


# --- filters ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [globally, per_layer])
@pytest.mark.parametrize("reduce", ["mean", "sum", "l2"])
def test_filters_live_or_die_as_a_whole(reduce, scope):
    net = convs()
    what = What(partial(filters, reduce=reduce), scope, layers=("conv",)).bind(net)
    half = shrink(dense(net, what), random_scores(dense(net, what)), 0.5, what)
    less = shrink(half, random_scores(half, 1), 0.25, what)
    more = regrow(less, random_scores(half, 2), 0.5, what)
    for mask, alive in ((half, 22), (less, 11), (more, 22)):
        rows = torch.cat([alive.flatten(1).float().mean(1) for alive in mask.values()])
        assert set(rows.tolist()) <= {0.0, 1.0}
        assert what.alive_units(mask) == (alive, 44)
    assert all(bool((less[name] <= more[name]).all()) for name in less)


@pytest.mark.parametrize(("reduce", "kept"), [("mean", "a"), ("sum", "b"), ("l2", "c")])
def test_mean_sum_and_l2_are_three_different_criteria(reduce, kept):
    # One filter each:       mean   sum   l2
    #   a = (3, 3)           3      6     4.24
    #   b = (2, 2, 2, 2)     2      8     4
    #   c = (0, 0, 5)        1.67   5     5
    scores = {"a": torch.tensor([[3.0, 3]]), "b": torch.tensor([[2.0, 2, 2, 2]]), "c": torch.tensor([[0.0, 0, 5]])}
    mask = {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}
    what = What(partial(filters, reduce=reduce), globally, names=tuple(scores))
    assert [name for name, alive in shrink(mask, scores, 1 / 3, what).items() if alive.any()] == [kept]


@pytest.mark.parametrize(("reduce", "norm"), [("sum", 1), ("l2", 2)])
def test_filters_per_layer_are_structured_pruning_of_torch(reduce, norm):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 12, 3)
    what = What(partial(filters, reduce=reduce), per_layer, names=("weight",))
    mask = shrink(dense(layer, what), magnitudes(layer, what.names), 0.25, what)
    prune.ln_structured(layer, "weight", amount=9, n=norm, dim=0)
    assert torch.equal(mask["weight"], layer.weight_mask.bool())


@pytest.mark.parametrize("reduce", ["mean", "sum", "l2"])
def test_a_filter_with_a_forbidden_entry_is_never_kept(reduce):
    scores = torch.tensor([[1.0, -math.inf], [-math.inf, 1.0], [0.5, 0.5]])
    what = What(partial(filters, reduce=reduce), globally, names=("w",))
    kept = shrink({"w": torch.ones(3, 2, dtype=torch.bool)}, {"w": scores}, 1.0, what)["w"]
    assert kept.tolist() == [[False, False], [False, False], [True, True]]


# --- layers ----------------------------------------------------------------------------------------------------------------


def test_weights_of_conv_and_linear_layers_are_prunable_biases_and_normalisation_are_not():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.GroupNorm(1, 2), nn.Linear(2, 2)))
    assert What(weights, globally).bind(net).names == ("0.weight", "2.1.weight")
    assert What(weights, globally, layers=("conv",)).bind(net).names == ("0.weight",)
    assert What(weights, globally, layers=("linear",)).bind(net).names == ("2.1.weight",)


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (("first",), ("1.weight", "2.weight")),
        (("last",), ("0.weight", "1.weight")),
        (("first", "last"), ("1.weight",)),
        (("1",), ("0.weight", "2.weight")),
        (("2.weight", "last"), ("0.weight", "1.weight")),
        ((), ("0.weight", "1.weight", "2.weight")),
    ],
)
def test_skipped_layers_are_not_prunable(skip, left):
    assert What(weights, globally, skip=skip).bind(mlp(2, 2, 2, 2)).names == left


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (
            What(weights, globally, layers=("conv",)),
            Incompatible,
            "no conv layer to prune.*what=weights_global",
        ),
        (What(weights, globally, layers=("dense",)), ConfigError, "what.layers=.*dense.*the kinds of layer are conv, linear"),
        (What(weights, globally, skip=("fc7",)), ConfigError, "no layer 'fc7'.*first, last, 0, 1"),
        (What(weights, globally, skip=("0", "1")), Incompatible, "leaves nothing to prune"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_with_a_way_out(what, error, message):
    with pytest.raises(error, match=message) as caught:
        what.bind(mlp(2, 2, 2))
    assert type(caught.value) is error


# --- safeguards ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [globally, per_layer, erk])
@pytest.mark.parametrize(("unit", "minimum"), [(weights, 6), (filters, 2)])
def test_min_per_layer_outlives_any_event_in_every_scope(scope, unit, minimum):
    # 4 and 40 filters, 36 and 1440 weights, the first layer lowest by far: neither one pool nor a tenth of the layer
    # would leave it its minimum.
    net = convs()
    what = What(unit, scope, layers=("conv",), min_per_layer=minimum).bind(net)
    mask = dense(net, what)
    scores = {"0.weight": torch.arange(36.0).view(4, 1, 3, 3) / 1e6, "1.weight": 1 + random_scores(mask)["1.weight"]}
    for d in (0.5, 0.1):
        mask = shrink(mask, scores, d, what)
        assert min(living_units(what, mask)) >= minimum
    assert bool(mask["0.weight"].flatten()[-2:].all())  # the best of the layer, not any


def test_without_min_per_layer_one_pool_may_empty_a_layer():
    scores = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([[3.0, 4.0]])}
    mask = {name: torch.ones(1, 2, dtype=torch.bool) for name in scores}
    for minimum, expected in ((0, [0, 2]), (1, [1, 1])):
        what = What(weights, globally, names=("a", "b"), min_per_layer=minimum)
        assert counts(shrink(mask, scores, 0.5, what)) == expected


def test_min_per_layer_does_not_raise_the_dead():
    mask = {"a": torch.tensor([[False, False]]), "b": torch.tensor([[True, True]])}
    what = What(weights, globally, names=("a", "b"), min_per_layer=1)
    assert counts(shrink(mask, random_scores(mask), 0.5, what)) == [0, 2]


@pytest.mark.parametrize("unit", [weights, filters])
def test_a_score_that_is_not_a_number_is_refused_with_the_layers_name(unit):
    net = mlp(3, 3, 3)
    what = What(unit, globally).bind(net)
    scores = random_scores(dense(net, what))
    scores["1.weight"][2, 1] = math.nan
    with pytest.raises(RunError, match=r"the criterion gave NaN for layer 1$"):
        shrink(dense(net, what), scores, 0.5, what)


def test_units_are_weights_or_filters():
    net, by_weights, by_filters = convs(), What(weights, globally), What(filters, globally, layers=("conv",))
    params = net.state_dict()
    assert by_weights.bind(net).units(params) == {"0.weight": 36, "1.weight": 1440, "3.weight": 400}
    assert by_filters.bind(net).units(params) == {"0.weight": 4, "1.weight": 40}


def test_alive_units_counts_filters_that_live():
    mask = {"w": torch.tensor([[True, True], [False, False], [True, True]])}
    assert What(filters, globally, names=("w",)).alive_units(mask) == (2, 3)
    assert What(weights, globally, names=("w",)).alive_units(mask) == (4, 6)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_yaml_prunes_to_its_density_and_never_empties_a_layer_that_it_protects(file, tmp_path):
    net = wide()
    config = OmegaConf.load(file)
    if "ticket" in config.scope:
        mask = {name: torch.rand(alive.shape) < 0.2 for name, alive in dense(net, What(weights, globally).bind(net)).items()}
        save_ticket(dict(net.state_dict()), mask, {}, tmp_path / "ticket.safetensors")
        config.scope.ticket = str(tmp_path / "ticket.safetensors")
    what = make(config).bind(net)
    mask = shrink(dense(net, what), random_scores(dense(net, what)), 0.2, what)
    alive, units = what.alive_units(mask)
    if file.stem in ("weights_2of4", "weights_4of8"):
        assert alive == units / 2
    elif file.stem == "weights_threshold":
        assert alive == pytest.approx((1 - 3**-0.5) * units, rel=0.05)  # uniform on [0, 1): the mean square is 1/3
    else:
        assert 0.18 * units < alive < 0.26 * units  # the output layer at half the rate keeps 0.2^0.47 = 47 %
    assert min(living_units(what, mask)) >= what.min_per_layer


def test_a_layer_whose_name_reads_as_a_number_is_found_by_it_or_asked_for_in_quotes():
    """The command line makes 0.1 of 0.10: the eleventh layer of a Sequential in a Sequential, and not the second."""
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), *(nn.ReLU() for _ in range(9)), nn.Linear(2, 2)))
    assert What(weights, globally, skip=[0.10]).bind(net).names == ("0.0.weight",)
    net[0][1] = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"what: 0.1 is 0.1 or 0.10: type it in quotes, as '0.10'"):
        What(weights, globally, skip=[0.10]).bind(net)
    assert What(weights, globally, skip=["0.10"]).bind(net).names == ("0.0.weight", "0.1.weight")
