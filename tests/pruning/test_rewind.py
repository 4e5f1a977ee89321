"""What the survivors restart from, to the bit, and by which clock."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fedprune.errors import ConfigError
from fedprune.make import make
from fedprune.pruning.rewind import Early, Keep, RandomReinit

CONF = Path(__file__).parents[2] / "conf" / "rewind"

TRAINED, START, LATER, FRESH = (
    {"w": torch.full((3,), value), "bn.running_mean": torch.full((2,), value), "steps": torch.tensor(int(value))}
    for value in (9.0, 0.0, 2.0, 5.0)
)
ANCHORS = {0: START, 2: LATER}


def forbidden():
    raise AssertionError("nothing new may be drawn")


def test_no_rewind_trains_on_from_where_it_is():
    assert Keep()(TRAINED, ANCHORS, forbidden) == (TRAINED, None)


@pytest.mark.parametrize(("round", "params"), [(0, START), (2, LATER)])
def test_early_goes_back_to_the_remembered_parameters_and_buffers_and_their_clock(round, params):
    rewound, clock = Early(round)(TRAINED, ANCHORS, forbidden)
    assert rewound is params
    assert clock == round


def test_random_reinit_draws_anew_every_time_and_starts_the_clock_again():
    drawn = []

    def fresh():
        drawn.append(1)
        return FRESH

    for times in (1, 2):
        assert RandomReinit()(TRAINED, ANCHORS, fresh) == (FRESH, 0)
        assert len(drawn) == times


def test_the_anchor_is_the_clock_that_must_be_remembered():
    assert [rewind.anchor for rewind in (Keep(), Early(0), Early(3), RandomReinit())] == [None, 0, 3, None]


def test_a_negative_round_is_refused():
    with pytest.raises(ConfigError, match=r"rewind\.round=-1 must not be negative"):
        Early(-1)


@pytest.mark.parametrize(
    ("name", "expected"), [("none", Keep()), ("init", Early(0)), ("early", Early(2)), ("random_reinit", RandomReinit())]
)
def test_the_yamls_are_what_they_are_called(name, expected):
    assert make(OmegaConf.load(CONF / f"{name}.yaml")) == expected


def test_there_is_no_yaml_beyond_these():
    assert {file.stem for file in CONF.glob("*.yaml")} == {"none", "init", "early", "random_reinit"}
