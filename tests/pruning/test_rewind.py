"""What the survivors restart from, to the bit, and by which clock."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fedprune.config.instantiate import make
from fedprune.errors import ConfigError
from fedprune.pruning.mask import apply
from fedprune.pruning.rewind import Draws, Early, Keep, LearningRate, RandomReinit, Replaced, constant, reinit, shuffle
from fedprune.types import Mask, Params

CONF = Path(__file__).parents[2] / "conf" / "rewind"

START, LATER, FRESH = (
    {"w": torch.full((3,), value), "bn.running_mean": torch.full((2,), value), "steps": torch.tensor(int(value))}
    for value in (0.0, 2.0, 5.0)
)
ANCHORS = {0: START, 2: LATER}
MASK = {"w": torch.tensor([True, False, True])}


def draws(fresh: Params | None = None, seed: int = 0, began: Mask | None = None) -> Draws:
    """Streams by name and seed; without `fresh`, nothing new may be drawn."""

    def drawn() -> Params:
        assert fresh is not None, "nothing new may be drawn"
        return fresh

    return Draws(drawn, lambda name: torch.Generator().manual_seed(seed + sum(map(ord, name))), began or {})


def test_no_rewind_trains_on_from_where_it_is():
    assert Keep()(MASK, ANCHORS, draws()) == (None, None)


@pytest.mark.parametrize(("round", "params"), [(0, START), (2, LATER)])
def test_early_goes_back_to_the_remembered_parameters_and_buffers_and_their_clock(round, params):
    rewound, clock = Early(round)(MASK, ANCHORS, draws())
    assert rewound is params
    assert clock == round


@pytest.mark.parametrize("round", [0, 3])
def test_learning_rate_rewinding_goes_back_by_the_clock_alone_and_needs_nothing_remembered(round):
    assert LearningRate(round)(MASK, {}, draws()) == (None, round)


def test_random_reinit_draws_anew_and_starts_the_clock_again():
    assert RandomReinit()(MASK, ANCHORS, draws(FRESH)) == (FRESH, 0)


def test_the_anchor_is_the_clock_that_must_be_remembered():
    rewinds = (Keep(), Early(0), Early(3), LearningRate(3), RandomReinit(), Replaced(shuffle, False))
    assert [rewind.anchor for rewind in rewinds] == [None, 0, 3, None, None, 0]


@pytest.mark.parametrize("rewind", [Early, LearningRate])
def test_a_negative_round_is_refused(rewind):
    with pytest.raises(ConfigError, match=r"rewind\.round=-1 must not be negative"):
        rewind(-1)


# --- other values for the survivors: Zhou et al. 2019 ----------------------------------------------------------------------

# Two layers of six weights; the bias and the buffer are not prunable.
INIT = {
    "a": torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]]),
    "b": torch.tensor([0.5, -0.5, 0.5, -0.5, 1.5, -1.5]),
    "bias": torch.tensor([7.0]),
    "bn.running_mean": torch.tensor([8.0, 9.0]),
}
OTHER = {
    "a": torch.tensor([[-0.1, 0.2, 0.3], [0.4, -0.5, 0.6]]),
    "b": torch.tensor([0.7, 0.8, -0.9, -1.0, 1.1, 1.2]),
    "bias": torch.tensor([-7.0]),
    "bn.running_mean": torch.tensor([0.0, 0.0]),
}
ALIVE = {"a": torch.tensor([[1, 1, 0], [1, 0, 1]]).bool(), "b": torch.tensor([0, 1, 1, 1, 1, 0]).bool()}


def replaced(
    values, keep_signs: bool, init: Params = INIT, mask: Mask = ALIVE, seed: int = 0, began: Mask | None = None
) -> Params:
    params, clock = Replaced(values, keep_signs)(mask, {0: init}, draws(OTHER, seed, began))
    assert clock == 0
    return apply(params, mask)


EVERY = [(values, keep_signs) for values in (reinit, shuffle, constant) for keep_signs in (False, True)]


@pytest.mark.parametrize(("values", "keep_signs"), EVERY)
def test_what_cannot_be_pruned_goes_back_to_the_start_and_nothing_that_was_remembered_is_written_to(values, keep_signs):
    init = {name: tensor.clone() for name, tensor in INIT.items()}
    found = replaced(values, keep_signs, init)
    assert list(found) == list(INIT)
    for name in ("bias", "bn.running_mean"):
        assert torch.equal(found[name], INIT[name])
    assert all(torch.equal(init[name], INIT[name]) for name in INIT)
    assert all(found[name].dtype == INIT[name].dtype and found[name].shape == INIT[name].shape for name in INIT)


@pytest.mark.parametrize("values", [reinit, shuffle, constant])
@pytest.mark.parametrize("seed", range(5))
def test_with_their_signs_kept_survivors_have_those_of_the_start(values, seed):
    found = replaced(values, True, seed=seed)
    for name, alive in ALIVE.items():
        assert torch.equal(found[name][alive].sign(), INIT[name][alive].sign())


def test_a_new_initialisation_under_the_old_signs_by_hand():
    # Alive in a: +1, -2, -4, -6; new there: -0.1, 0.2, 0.4, 0.6. Magnitudes of the new, signs of the old.
    found = replaced(reinit, True)
    assert found["a"].tolist() == torch.tensor([[0.1, -0.2, 0.0], [-0.4, 0.0, -0.6]]).tolist()
    # Alive in b: -0.5, +0.5, -0.5, +1.5; new there: 0.8, -0.9, -1.0, 1.1.
    assert found["b"].tolist() == torch.tensor([0.0, -0.8, 0.9, -1.0, 1.1, 0.0]).tolist()
    assert all(
        torch.equal(tensor, apply(OTHER, ALIVE)[name]) for name, tensor in replaced(reinit, False).items() if name in "ab"
    )


@pytest.mark.parametrize("seed", range(10))
def test_a_shuffle_moves_the_initial_values_of_a_layers_survivors_among_its_survivors(seed):
    found = replaced(shuffle, False, seed=seed)
    assert sorted(found["a"][ALIVE["a"]].tolist()) == [-6.0, -4.0, -2.0, 1.0]  # 3 and 5 are dead
    assert sorted(found["b"][ALIVE["b"]].tolist()) == [-0.5, -0.5, 0.5, 1.5]
    kept = replaced(shuffle, True, seed=seed)
    assert sorted(kept["a"][ALIVE["a"]].abs().tolist()) == [1.0, 2.0, 4.0, 6.0]
    # The same shuffle, with signs or without: only signs are different.
    assert torch.equal(kept["a"].abs(), found["a"].abs())


def test_a_shuffle_can_bring_any_survivor_to_any_place():
    # 4 survivors: a value is equally often at each of their places; 400 draws, 100 each, 8.7 the standard deviation of a count.
    at = [replaced(shuffle, False, seed=seed)["a"].tolist() for seed in range(400)]
    first = [[row for rows in found for row in rows].index(-6.0) for found in at]
    counts = [first.count(place) for place in (0, 1, 3, 5)]
    assert sum(counts) == 400
    assert all(60 < count < 140 for count in counts), counts


def test_constants_are_the_standard_deviation_of_the_layers_initial_values():
    # a: mean -0.5; deviations 1.5, -1.5, 3.5, -3.5, 5.5, -5.5; squares 2 (2.25 + 12.25 + 30.25) = 89.5; / 6 = 14.91667.
    # b: mean 0; squares 4 x 0.25 + 2 x 2.25 = 5.5; / 6 = 0.916667.
    kept = replaced(constant, True)
    assert kept["a"].flatten().tolist() == pytest.approx([3.8622101, -3.8622101, 0, -3.8622101, 0, -3.8622101])
    assert kept["b"].tolist() == pytest.approx([0, -0.9574271, 0.9574271, -0.9574271, 0.9574271, 0])
    assert kept["a"][0, 0].item() == pytest.approx(np.std(INIT["a"].numpy()))
    signs = torch.stack([replaced(constant, False, seed=seed)["a"].sign()[ALIVE["a"]] for seed in range(100)])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean(0).abs().max() < 0.4  # each of 100 fair signs: 0.1 the standard deviation of the mean
    assert torch.equal(replaced(constant, False)["a"].abs(), kept["a"].abs())


def test_what_was_dead_in_a_ticket_is_no_part_of_the_standard_deviation():
    init = INIT | {"b": torch.tensor([0.0, -1.0, 3.0, 0.0, 0.0, 0.0])}  # of -1 and 3: mean 1, squares 4 and 4, so 2
    mask = ALIVE | {"b": torch.tensor([0, 1, 1, 0, 0, 0]).bool()}
    assert replaced(constant, True, init, mask, began=mask)["b"].tolist() == [0.0, -2.0, 2.0, 0.0, 0.0, 0.0]
    # A living 0 counts: of 0, -1 and 4 the mean is 1 and the squares are 1, 4 and 9, so sqrt(14 / 3).
    init |= {"b": torch.tensor([0.0, -1.0, 4.0, 0.0, 0.0, 0.0])}
    lived = {"b": torch.tensor([1, 1, 1, 0, 0, 0]).bool()}
    spread = replaced(constant, True, init, mask, began=lived)["b"].tolist()
    assert spread == pytest.approx([0, -math.sqrt(14 / 3), math.sqrt(14 / 3), 0, 0, 0])
    empty = INIT | {"b": torch.zeros(6)}
    assert replaced(constant, True, empty, ALIVE | {"b": torch.zeros(6).bool()})["b"].tolist() == [0.0] * 6


@pytest.mark.parametrize("values", [shuffle, constant])
def test_each_layer_and_seed_has_a_stream_of_its_own(values):
    init = {"a": torch.arange(1.0, 51), "b": torch.arange(1.0, 51)}
    mask = {"a": torch.ones(50).bool(), "b": torch.ones(50).bool()}

    def drawn(seed: int) -> Params:
        start = draws({"a": torch.zeros(50), "b": torch.zeros(50)}, seed)
        params, _ = Replaced(values, False)(mask, {0: init}, start)
        assert params is not None
        return params

    assert all(torch.equal(drawn(0)[name], drawn(0)[name]) for name in mask)
    assert not torch.equal(drawn(0)["a"], drawn(5)["a"])
    assert not torch.equal(drawn(0)["a"], drawn(0)["b"])


def same(rewind: object, other: object) -> bool:
    """A partial is no value: it is compared by what it calls."""
    if not isinstance(rewind, Replaced) or not isinstance(other, Replaced):
        return rewind == other
    called = [r.values.func if isinstance(r.values, functools.partial) else r.values for r in (rewind, other)]
    return called[0] is called[1] and rewind.keep_signs == other.keep_signs


YAMLS = {
    "none": Keep(),
    "init": Early(0),
    "early": Early(2),
    "learning_rate": LearningRate(0),
    "random_reinit": RandomReinit(),
    "reinit_keep_signs": Replaced(reinit, True),
    "shuffle": Replaced(shuffle, False),
    "shuffle_keep_signs": Replaced(shuffle, True),
    "constant": Replaced(constant, False),
    "constant_keep_signs": Replaced(constant, True),
}


@pytest.mark.parametrize(("name", "expected"), YAMLS.items(), ids=YAMLS)
def test_the_yamls_are_what_they_are_called(name, expected):
    assert same(make(OmegaConf.load(CONF / f"{name}.yaml")), expected)


def test_there_is_no_yaml_beyond_these():
    assert {file.stem for file in CONF.glob("*.yaml")} == set(YAMLS)
