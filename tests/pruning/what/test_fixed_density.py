"""Scopes that bring densities of their own: patterns, thresholds and tickets by hand, and what they refuse before training."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fedprune.errors import ConfigError, Incompatible
from fedprune.pruning.mask import count, ones, regrow, shrink
from fedprune.pruning.what import What
from fedprune.pruning.what.fixed_density import Like, NOfM, Threshold
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import filters, weights
from fedprune.storage.checkpoint import save_ticket, write
from fedprune.types import Mask, Plan, PruneEvent, Scores

ONCE = Plan((PruneEvent(3, 0.5),), 10)


def everything(**shapes: tuple[int, ...]) -> Mask:
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}


def random_scores(mask: Mask, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(alive.shape, generator=generator) for name, alive in mask.items()}


# --- n of m ----------------------------------------------------------------------------------------------------------------


def test_two_of_four_by_hand():
    # Two groups a row. Ties go to the lower index: of 5 5 5 1 the first two.
    scores = {"w": torch.tensor([[1.0, 4, 3, 2, 5, 5, 5, 1], [9, 8, 0, 0, 0, 0, 0, 0]])}
    mask = shrink(everything(w=(2, 8)), scores, 0.5, What(weights, NOfM(2, 4), names=("w",)))
    assert mask["w"].int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0, 0]]


def test_the_inputs_of_a_convolution_are_its_channels_at_one_place_of_the_kernel():
    # One filter of four channels of 1 x 2 kernels: the groups are the columns (1, 3, 2, 0) and (0, 1, 3, 2).
    scores = {"w": torch.tensor([[[[1.0, 0]], [[3, 1]], [[2, 3]], [[0, 2]]]])}
    mask = shrink(everything(w=(1, 4, 1, 2)), scores, 0.5, What(weights, NOfM(2, 4), names=("w",)))
    assert mask["w"].int().flatten(1).tolist() == [[0, 0, 1, 0, 1, 1, 0, 1]]
    assert mask["w"].is_contiguous()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (3, 4)])
@pytest.mark.parametrize("shape", [(5, 16), (6, 8, 3, 3), (4, 24, 5)])
def test_every_group_keeps_exactly_n(n, m, shape):
    mask = everything(w=shape)
    for scores in (random_scores(mask), {"w": torch.zeros(shape)}, {"w": -random_scores(mask, 1)["w"]}):
        kept = shrink(mask, scores, n / m, What(weights, NOfM(n, m), names=("w",)))["w"]
        groups = kept.movedim(1, -1).reshape(-1, m)
        assert (groups.sum(1) == n).all()
        assert count({"w": kept}) * m == kept.numel() * n


def test_a_width_that_m_does_not_divide_is_refused_by_name():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6, 4))
    with pytest.raises(
        Incompatible, match=r"2 of 4 inputs: 0 has 3, 3 has 6, which 4 does not divide: choose what.skip=\[0,3\]"
    ):
        What(weights, NOfM(2, 4)).bind(net)
    assert What(weights, NOfM(2, 4), skip=("0", "3")).bind(net).names == ("1.weight",)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 2)])
def test_n_is_part_of_m(n, m):
    with pytest.raises(ConfigError, match=rf"what.scope.n={n} and what.scope.m={m}: n of every m are kept"):
        NOfM(n, m)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], None),
        ([(0.5, 0.0)], None),
        ([(0.1, 0.0)], "2 of 4 units is a density of 0.5, not 0.1: choose density=0.5"),
        ([(0.7, 0.0), (0.5, 0.0)], "are kept from the first event on: choose how_often=one_shot"),
        ([(0.5, 0.0), (0.5, 0.3)], "none can be exchanged: choose how_often=one_shot"),
    ],
)
def test_n_of_m_keeps_one_density_once(events, message):
    problems = NOfM(2, 4).problems(Plan(tuple(PruneEvent(0, d, s) for d, s in events), 10), {"w": 8})
    assert len(problems) == (message is not None)
    assert all(str(message) in problem for problem in problems)


# --- threshold -------------------------------------------------------------------------------------------------------------


def test_a_threshold_by_hand():
    # sqrt((1 + 4 + 9 + 16 + 0) / 5) = sqrt(6) = 2.449. Divided by n - 1 it would be sqrt(7.5) = 2.739, about the mean
    # (2.0) sqrt(2) = 1.414.
    scores = {"a": torch.tensor([[1.0, 2, 3, 4, 0]]), "b": torch.tensor([[10.0, 20, 30, 40, 0]])}
    for quality, kept in ((0.0, 5), (0.4, 4), (0.8, 3), (1.0, 2), (1.22, 2), (1.23, 1), (1.64, 0)):
        what = What(weights, Threshold(quality), names=("a", "b"))
        mask = shrink(everything(a=(1, 5), b=(1, 5)), scores, 0.123, what)  # the density says nothing
        assert [count({"": alive}) for alive in mask.values()] == [kept, kept]
    what = What(weights, Threshold(1.0, layers={"last": 1.23}), names=("a", "b"))
    assert [int(alive.sum()) for alive in shrink(everything(a=(1, 5), b=(1, 5)), scores, 1.0, what).values()] == [2, 1]


def test_what_reaches_the_threshold_is_kept():
    what = What(weights, Threshold(1.0), names=("w",))
    assert shrink(everything(w=(4,)), {"w": torch.full((4,), 0.3)}, 0.5, what)["w"].tolist() == [True] * 4


def test_the_dead_are_neither_kept_nor_counted():
    # Of 3 and 4: sqrt(12.5) = 3.54. With the two dead it would be sqrt(6.25) = 2.5, and both would stay.
    mask = {"w": torch.tensor([True, True, False, False])}
    what = What(weights, Threshold(1.0), names=("w",))
    assert shrink(mask, {"w": torch.tensor([3.0, 4, 9, 0])}, 0.5, what)["w"].tolist() == [False, True, False, False]
    nothing = shrink({"w": torch.zeros(4, dtype=torch.bool)}, {"w": torch.ones(4)}, 0.5, what)
    assert not nothing["w"].any()


def test_the_deviation_of_magnitudes_is_that_of_weights_with_mean_zero():
    w = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).double()
    w -= w.mean()
    kept = shrink(everything(w=(200, 50)), {"w": w.abs()}, 0.5, What(weights, Threshold(1.3), names=("w",)))["w"]
    assert torch.equal(kept, w.abs() >= 1.3 * w.std(correction=0))


def test_a_minimum_per_layer_is_kept_beyond_the_threshold_and_does_not_move_it():
    scores = {"w": torch.tensor([1.0, 2, 3, 4, 0])}
    for minimum, kept in ((1, [3, 4]), (3, [2, 3, 4])):
        what = What(weights, Threshold(1.0), names=("w",), min_per_layer=minimum)
        mask = shrink(everything(w=(5,)), scores, 0.5, what)["w"]
        assert scores["w"][mask].tolist() == kept


def test_a_threshold_prunes_again_and_again_and_exchanges_nothing():
    plan = Plan((PruneEvent(1, 0.7), PruneEvent(2, 0.5)), 10)
    assert Threshold().problems(plan, {"w": 4}) == []
    (problem,) = Threshold().problems(Plan((PruneEvent(1, 0.5, 0.3),), 10), {"w": 4})
    assert "choose how_often=iterative" in problem
    assert What(weights, Threshold()).emerges == "by threshold"
    assert What(weights, globally).emerges == What(weights, NOfM(2, 4)).emerges == ""


@pytest.mark.parametrize(
    ("quality", "layers", "key"), [(-1.0, {}, "quality=-1.0"), (1.0, {"last": math.nan}, "layers.last=nan")]
)
def test_a_quality_is_a_multiple(quality, layers, key):
    with pytest.raises(ConfigError, match=f"what.scope.{key} is a multiple"):
        Threshold(quality, layers)


# --- like a ticket ---------------------------------------------------------------------------------------------------------


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 4))


def dense() -> Mask:
    return ones(net().state_dict(), ("0.weight", "1.weight"))


def ticket(folder: Path, first: int = 20, second: int = 30) -> str:
    """A ticket with that many weights of 100 and of 40."""
    mask = {"0.weight": torch.arange(100).view(10, 10) < first, "1.weight": torch.arange(40).view(4, 10) < second}
    save_ticket(dict(net().state_dict()), mask, {"name": "earlier"}, folder / "ticket.safetensors")
    return str(folder / "ticket.safetensors")


def test_each_layer_keeps_as_many_as_the_ticket_but_others(tmp_path):
    what = What(weights, Like(ticket(tmp_path))).bind(net())
    mask = shrink(dense(), random_scores(dense()), 50 / 140, what)
    assert [int(alive.sum()) for alive in mask.values()] == [20, 30]
    assert not mask["0.weight"].flatten()[:20].all()


def test_on_the_way_all_layers_are_equally_far_along(tmp_path):
    # Half way to 50 of 140 by powers is sqrt(50 / 140); the layers are then at sqrt(0.2) = 44.7 % and sqrt(0.75) = 86.6 %.
    what = What(weights, Like(ticket(tmp_path))).bind(net())
    half = shrink(dense(), random_scores(dense()), math.sqrt(50 / 140), what)
    assert [int(alive.sum()) for alive in half.values()] == [45, 35]
    whole = regrow(half, random_scores(half), 1.0, what)
    assert [int(alive.sum()) for alive in whole.values()] == [100, 40]


def test_a_layer_that_the_ticket_has_lost_is_lost(tmp_path):
    what = What(weights, Like(ticket(tmp_path, first=0))).bind(net())
    mask = dense()
    assert [int(alive.sum()) for alive in shrink(mask, random_scores(mask), 30 / 140, what).values()] == [0, 30]


def test_structured_units_take_the_fraction_of_entries(tmp_path):
    what = What(filters, Like(ticket(tmp_path))).bind(net())
    mask = dense()
    assert what.alive_units(shrink(mask, random_scores(mask), 5 / 14, what)) == (2 + 3, 14)


def test_the_density_of_a_run_is_the_tickets(tmp_path):
    scope, sizes = Like(ticket(tmp_path)), {"0.weight": 100, "1.weight": 40}
    assert scope.problems(Plan((), 10), sizes) == []
    assert scope.problems(Plan((PruneEvent(0, 0.7), PruneEvent(0, 0.357)), 10), sizes) == []  # 49.98: the nearest is 50
    (problem,) = scope.problems(ONCE, sizes)
    assert "keeps 50 of 140 units: choose density=0.35714286" in problem


def test_a_dense_ticket_is_like_no_pruning(tmp_path):
    scope, sizes = Like(ticket(tmp_path, 100, 40)), {"0.weight": 100, "1.weight": 40}
    assert "choose density=1" in scope.problems(ONCE, sizes)[0]
    What(weights, scope).bind(net())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "is not a ticket of fedprune"),
        (b"PK\x03\x04 a pickle of somebody's", "is not a ticket of fedprune"),
        ({"server": {"w": torch.ones(2)}, "mask": {"w": torch.ones(2, dtype=torch.bool)}}, "is not a ticket of fedprune"),
        ({"params": {"w": torch.ones(2)}, "mask": {"w": torch.ones(2)}}, "is not a ticket of fedprune"),
        ({"params": {"w": torch.ones(2)}, "mask": {"w": torch.zeros(2, dtype=torch.bool)}}, "has nothing alive"),
    ],
)
def test_a_foreign_file_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "other.safetensors"
    if isinstance(content, dict):
        write(content, {}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"what\.scope\.ticket=.*other\.safetensors.*{message}") as caught:
        What(weights, Like(str(path))).bind(net())
    assert not isinstance(caught.value, Incompatible)


def test_no_file_and_another_networks_file_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"what\.scope\.ticket is empty: type the path"):
        What(weights, Like()).bind(net())
    with pytest.raises(
        Incompatible, match=r"of another network: its 0\.weight is 10 x 10, here it is 10 x 9: choose the model"
    ):
        What(weights, Like(ticket(tmp_path))).bind(nn.Sequential(nn.Linear(9, 10), nn.Linear(10, 4)))
    with pytest.raises(Incompatible, match=r"no mask for 2: choose what\.skip=\[2\]"):
        What(weights, Like(ticket(tmp_path))).bind(nn.Sequential(*net(), nn.Linear(4, 4)))
