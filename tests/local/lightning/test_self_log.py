"""What a module logs: reduced over batches and clients by hand, and what cannot be logged refused."""

import math

import numpy as np
import pytest
import torch
from torchmetrics import MeanMetric

from fedprune.errors import RunError
from fedprune.local.lightning.self_log import OURS, OURS_BELOW, OverCohort, Recorder


def logged(*values, **options) -> float:
    """Batches of 1, 2, 3, ... examples, with these values."""
    recorder = Recorder()
    for size, value in enumerate(values, 1):
        recorder.size = size
        recorder.log("x", value, **options)
    return recorder.logged()["x"][1]


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({}, (1 * 6.0 + 2 * 3.0 + 3 * -2.0) / 6),  # 1
        ({"batch_size": 4}, (6.0 + 3.0 - 2.0) / 3),
        ({"reduce_fx": torch.mean}, 1.0),
        *(({"reduce_fx": fx}, 7.0) for fx in ("sum", torch.sum, sum)),
        *(({"reduce_fx": fx}, 6.0) for fx in ("max", torch.max, max)),
        *(({"reduce_fx": fx}, -2.0) for fx in ("min", torch.min, min)),
    ],
)
def test_batches_are_reduced_as_reduce_fx_says_and_weighed_by_their_examples(options, value):
    assert logged(6.0, 3, torch.tensor([-2.0]), **options) == pytest.approx(value)


@pytest.mark.parametrize(("how", "value"), [("mean", (3 * 1.0 + 1 * 5.0) / 4), ("sum", 6.0), ("min", 1.0), ("max", 5.0)])
def test_clients_are_reduced_alike_and_weighed_by_their_examples(how, value):
    over = OverCohort(how)
    over.add(1.0, 3)
    over.add(5.0, 1)
    assert over.reduced() == value


def test_numbers_of_every_kind_are_numbers():
    for value in (
        True,
        np.float32(1),
        np.int64(1),
        torch.tensor(True),
        torch.tensor([[1]]),
        torch.tensor(1.0, dtype=torch.bfloat16),
    ):
        assert logged(value) == 1.0


def test_what_is_logged_stays_as_it_was_and_holds_no_graph():
    running, recorder = torch.ones((), requires_grad=True), Recorder()
    recorder.log("x", running)
    with torch.no_grad():
        running.fill_(5)
    assert recorder.logged()["x"][1] == 1.0


def test_a_number_that_is_none_spreads_and_does_not_vanish():
    assert math.isnan(logged(1.0, math.nan))
    for how in ("mean", "sum", "min", "max"):
        for values in ((1.0, math.nan), (math.nan, 1.0)):
            over = OverCohort(how)
            for value in values:
                over.add(value, 2)
            assert math.isnan(over.reduced())


def test_a_torchmetrics_object_is_computed_at_the_end():
    metric, recorder = MeanMetric(), Recorder()
    for value in (1.0, 2.0, 6.0):
        metric(value)
        recorder.log("x", metric)
    assert recorder.logged() == {"x": ("mean", 3.0)}


@pytest.mark.parametrize("name", [*OURS, *(f"{start}x" for start in OURS_BELOW)])
def test_a_name_of_the_runs_own_is_refused_with_another_that_works(name):
    with pytest.raises(RunError) as caught:
        Recorder().log(name, 1.0)
    message = str(caught.value)
    assert f"self.log({name!r})" in message
    recorder, instead = Recorder(), message.rpartition("such as ")[2].strip("'")
    recorder.log(instead, 1.0)
    assert [*recorder.logged()] == [instead]


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (torch.ones(2), {}, r"a tensor of shape \(2,\)"),
        (torch.ones((), dtype=torch.complex64), {}, "a tensor"),
        ("1", {}, "a str"),
        ({"a": 1}, {}, "a dict"),
        (None, {}, "a NoneType"),
        (1j, {}, "a complex"),
        (1.0, {"reduce_fx": torch.median}, "choose mean, sum, min or max"),
        (1.0, {"reduce_fx": "median"}, "reduce_fx=median"),
    ],
)
def test_what_is_no_number_or_no_simple_reduction_is_refused(value, options, message):
    with pytest.raises(RunError, match=message):
        Recorder().log("x", value, **options)


def test_one_name_has_one_reduction():
    recorder = Recorder()
    recorder.log("x", 1.0, reduce_fx="sum")
    with pytest.raises(RunError, match="reduced by sum and by max"):
        recorder.log("x", 1.0, reduce_fx="max")


def test_the_loss_may_be_logged_as_the_loss_and_nothing_else():
    loss, recorder = torch.tensor(0.5, requires_grad=True) * 1, Recorder()
    for value in (loss, loss.detach(), 0.5):
        recorder.log("train/loss", value)
        recorder.batch_ends(loss)
    assert recorder.logged() == {}
    recorder.log("train/loss", 2 * loss)
    recorder.batch_ends(loss)
    with pytest.raises(RunError, match="'train/loss' is the name of the loss that training_step returns"):
        recorder.logged()


def test_the_loss_is_not_logged_by_the_pass():
    recorder = Recorder()
    recorder.log("train/loss", 0.5)
    with pytest.raises(RunError, match="outside of a batch"):
        recorder.logged()
