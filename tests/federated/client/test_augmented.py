"""Rounds on augmented batches: the same under every executor, and nothing but training sees them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

pytestmark = pytest.mark.slow

CALLS: list[int] = []


class Noise(nn.Module):
    """Draws from every global generator, and when it is made, too."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.rand(1))

    def forward(self, inputs):
        CALLS.append(len(inputs))
        drawn = torch.randint(3, inputs.shape) + np.random.randint(2) + random.randint(0, 1) + int(2 * self.shift)
        return (inputs + drawn).to(inputs.dtype)


class Draws(nn.Module):
    """Draws numbers and changes nothing."""

    def forward(self, inputs):
        torch.rand(7), np.random.rand(), random.random()
        return inputs


class Dropping(nn.Sequential):
    """A network whose training draws from torch's global generator."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 10))


NOISE = f"data.augment._target_={__name__}.Noise"
PRUNED = ("when=before_training", "how_often=one_shot", "density=0.2", "federated.tuned=2", "federated.cohort=3")


def last(rounds):
    return rounds[-1][0].server.params


@pytest.mark.parametrize("augment", ["data/augment=crop_flip", NOISE])
def test_executors_come_to_the_same(augment, tiny, play, equal):
    words = (augment, *PRUNED)
    serial = play(tiny(*words))
    assert equal(last(serial), last(play(tiny(*words))))
    processes = play(tiny(*words, "executor=processes", "executor.workers=2"))
    assert equal(last(serial), last(processes))
    assert [metrics.get("test/accuracy") for _, metrics in serial] == [metrics.get("test/accuracy") for _, metrics in processes]
    for other in (("executor=batched",), ("local.compact=never",)):
        torch.testing.assert_close(last(play(tiny(*words, *other))), last(serial), rtol=1e-3, atol=1e-5)


def test_it_does_change_what_is_trained_and_with_the_seed(tiny, play, equal):
    plain, flipped = (last(play(tiny(*words))) for words in ((), ("data/augment=crop_flip",)))
    assert not equal(plain, flipped)


def test_training_draws_what_it_draws_without(tiny, play, equal):
    model = f"model._target_={__name__}.Dropping"
    plain = play(tiny(model))
    assert equal(last(plain), last(play(tiny(model, f"data.augment._target_={__name__}.Draws"))))


@pytest.mark.parametrize(
    "words",
    [
        ("criterion=snip", "when=before_training", "how_often=one_shot", "density=0.2"),
        ("criterion=fisher_empirical", "whose=personal", "how_often=gradual", "how_often.every=1", "rounds=4"),
        ("federated/client=sampled_masks", "federated/aggregate=beta_mode", "federated.weighting=uniform", "density=1.0"),
    ],
)
def test_only_batches_of_training_are_augmented(words, tiny, play):
    CALLS.clear()
    rounds = play(tiny(*words, NOISE, "eval_every=1", "federated.unseen=0.25"))
    assert "client/accuracy_mean" in rounds[-1][1]
    tried = CALLS[: len(CALLS) - 3 * 2 * len(rounds)]  # the rest: three steps of two clients in each round
    assert tried == [8, 8, 1, 1]  # when the run was built
    assert {*CALLS[len(tried) :]} == {16}


def test_a_tuned_evaluation_trains_as_the_next_round_would(tiny, play):
    CALLS.clear()
    play(tiny(NOISE, "federated.tuned=2", "federated.tuned_at=end"))
    assert len(CALLS) == 4 + 3 * 2 * (3 + 1)


def test_a_run_without_it_does_not_call_it(tiny):
    experiment = tiny()
    assert experiment.worker()().context.augment is None
