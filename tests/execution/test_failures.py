"""What torch or a user's code raises: found when a run is built where sizes tell, else told with the client and the round."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from fedprune.errors import ConfigError, RunError, in_user_code
from fedprune.local.module import LocalModule

# Four clients share 1,437 digits: 360 or 359 each, of which 80 percent are trained on.
EPOCH = ("local.epochs=1", "local.steps=null", "rounds=1", "how_often=never")
BATCHNORM = (f"model._target_={__name__}.Normed", *EPOCH)


class Normed(nn.Sequential):
    """BatchNorm on vectors: a batch of one has one value per channel."""

    def __init__(self, shape, classes, norm="batch"):
        norms = {"batch": nn.BatchNorm1d(8), "group": nn.GroupNorm(8, 8)}
        super().__init__(nn.Flatten(), nn.Linear(64, 8), norms[norm], nn.ReLU(), nn.Linear(8, classes))


class Pixels(nn.Sequential):
    """BatchNorm on images: one example has many values per channel, and can be trained on."""

    def __init__(self, shape, classes):
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, classes))


class Point(nn.Sequential):
    """InstanceNorm on a single pixel, which no number of examples helps in training; in evaluation it has statistics."""

    def __init__(self, shape, classes):
        super().__init__(
            nn.Conv2d(1, 4, 8), nn.InstanceNorm2d(4, track_running_stats=True), nn.Flatten(), nn.Linear(4, classes)
        )


def sizes(experiment) -> list[int]:
    return [len(part) for part in experiment.clients.train]


@pytest.mark.parametrize("executor", ["serial", "processes", "batched"])
def test_a_remainder_of_one_joins_the_batch_before_it(executor, tiny, play):
    number = sizes(tiny(*BATCHNORM))[0]
    experiment = tiny(*BATCHNORM, f"local.batch_size={number - 1}", f"executor={executor}", "federated.cohort=4")
    assert experiment.recipe.smallest == 2
    metrics = play(experiment)[-1][1]
    assert metrics["train/examples"] == sum(sizes(experiment))
    assert metrics["train/steps"] == sum(experiment.recipe.batches(examples) for examples in sizes(experiment))
    assert experiment.recipe.batches(number) == 1


@pytest.mark.parametrize("overrides", [("federated.batchnorm=frozen",), (f"model._target_={__name__}.Pixels",)])
def test_it_stays_a_batch_where_it_can_be_trained_on(overrides, tiny, play):
    number = sizes(tiny(*BATCHNORM))[0]
    experiment = tiny(*BATCHNORM, *overrides, f"local.batch_size={number - 1}")
    assert experiment.recipe.smallest == 1
    assert experiment.recipe.batches(number) == 2
    play(experiment)


def test_evidence_is_measured_on_batches_that_can_be(tiny, play):
    number = sizes(tiny(*BATCHNORM))[0]
    how = ("how_often=one_shot", "when=before_training", "criterion=snip", "where=all_clients")
    play(tiny(*BATCHNORM, *how, f"local.batch_size={number - 1}"))
    with pytest.raises(ConfigError, match=r"where.examples=1: .* set where.examples=2 or more, or federated.batchnorm=frozen"):
        tiny(*BATCHNORM, *how, "where.examples=1")
    play(tiny(*BATCHNORM, *how, "where.examples=2"))
    play(tiny(*BATCHNORM, *how, "where.examples=1", "federated.batchnorm=frozen"))


def test_the_last_batch_may_be_left_out(tiny, play):
    experiment = tiny(*EPOCH, "local.drop_last=true", "local.batch_size=100", "federated.cohort=4")
    metrics = play(experiment)[-1][1]
    assert metrics["train/steps"] == sum(number // 100 for number in sizes(experiment))
    assert metrics["train/examples"] == 100 * metrics["train/steps"]


def test_leaving_it_out_must_leave_something(tiny, play):
    fewest = min(sizes(tiny(*EPOCH)))
    match = rf"drop_last=true leaves client \d nothing to train on: it has {fewest} examples.*set local.batch_size={fewest} or"
    for length in (("local.epochs=1", "local.steps=null"), ("local.epochs=null", "local.steps=3")):
        with pytest.raises(ConfigError, match=match):
            tiny(*EPOCH, *length, "local.drop_last=true", "local.batch_size=5000")
        play(tiny(*EPOCH, *length, "local.drop_last=true", f"local.batch_size={fewest}"))


def test_a_client_with_one_example_is_found_when_the_run_is_built(tiny, play):
    one_each = (*BATCHNORM, "federated.clients=400", "partition.min_examples=0", "partition.val=0.1", "partition.test=0.1")
    with pytest.raises(ConfigError, match=r"client \d+ has 1 example .* set partition.min_examples=4 or more, or federated.b"):
        tiny(*one_each)
    play(tiny(*one_each, "federated.batchnorm=frozen", "federated.cohort=1"), stop=1)
    with pytest.raises(ConfigError, match=r"client 0 has 1 example .* set partition.examples=4 or more"):
        tiny(*BATCHNORM, "partition=class_mix", "partition.examples=3", "partition.min_examples=0")
    play(tiny(*BATCHNORM, "partition=class_mix", "partition.examples=4", "partition.min_examples=0"), stop=1)


def test_batches_of_one_are_refused(tiny, play):
    with pytest.raises(ConfigError, match=r"local.batch_size=1: .* set local.batch_size=2 or more, or federated.batchnorm"):
        tiny(*BATCHNORM, "local.batch_size=1")
    tiny(*BATCHNORM, "local.batch_size=2")
    tiny(*BATCHNORM, "local.batch_size=1", "federated.batchnorm=frozen")


def test_freezing_is_no_advice_where_it_does_not_help(tiny):
    with pytest.raises(ConfigError, match=r"local.batch_size=1: .*set local.batch_size=2 or more$"):
        tiny(*BATCHNORM, "+model.norm=group", "local.batch_size=1")
    with pytest.raises(ConfigError, match=r"cannot be trained on 1 x 8 x 8 inputs: ValueError: Expected more than 1 spatial"):
        tiny(*BATCHNORM, f"model._target_={__name__}.Point")


def test_trying_leaves_the_network_as_it_was(tiny, equal):
    experiment, again = tiny(*BATCHNORM), tiny(*BATCHNORM)
    assert experiment.net.state_dict()["2.num_batches_tracked"] == 0
    assert equal(dict(experiment.net.state_dict()), dict(again.net.state_dict()))


# --- what only shows in training -------------------------------------------------------------------------------------------


class Sulking(Normed):
    """Raises in every forward pass of training on so many examples."""

    def forward(self, inputs):
        if self.training and len(inputs) == 16:
            raise ValueError("the user's own mistake")
        return super().forward(inputs)


@pytest.mark.parametrize("executor", ["serial", "processes", "batched"])
def test_an_exception_in_training_names_the_client_the_round_and_the_place(executor, tiny, play):
    experiment = tiny(f"model._target_={__name__}.Sulking", "+model.norm=group", f"executor={executor}", "how_often=never")
    with pytest.raises(RunError) as failure:
        play(experiment)
    assert "client " in str(failure.value)
    assert " in round 0: ValueError: the user's own mistake (" in str(failure.value)
    assert "test_failures.py" in str(failure.value)


class Unfit(LocalModule):
    """Cannot be evaluated on the validation part."""

    def outcome(self, batch):
        if len(batch[0]) > 2:
            raise KeyError("nobody")
        return super().outcome(batch)


def test_an_exception_in_an_evaluation_names_the_part(tiny, play):
    with pytest.raises(RunError, match=r"evaluating the network on examples 0 to \d+ of \w+: KeyError: 'nobody'"):
        play(tiny(f"local.module._target_={__name__}.Unfit", "how_often=never", "eval_every=1"))


def test_our_own_messages_and_want_of_memory_pass():
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    for error in (RunError("ours"), ConfigError(["ours"]), MemoryError(), full):
        with pytest.raises(type(error)) as passed, in_user_code("client 0 in round 0"):
            raise error
        assert passed.value is error


def test_what_is_explained_travels_between_processes():
    with pytest.raises(RunError) as failure, in_user_code("client 0 in round 0"):
        torch.zeros(2) @ torch.zeros(3)
    assert str(pickle.loads(pickle.dumps(failure.value))) == str(failure.value)
    assert "client 0 in round 0: RuntimeError: " in str(failure.value)
    assert "test_failures.py" in str(failure.value)
