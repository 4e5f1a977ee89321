"""Runs whose clients train as one batched model: what they come to, what goes one after the other, and where they may run."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.execution import Serial, Task
from fedprune.experiment import experiment as experiments
from fedprune.experiment.build import build
from fedprune.federated.client import batched
from fedprune.federated.client.batched import Batched
from fedprune.storage.checkpoint import load_state
from fedprune.types import Job, Subnet

pytestmark = pytest.mark.slow

ONCE = ("when=before_training", "how_often=one_shot")
DURING = ("when.start=0.25", "when.stop=0.5", "how_often=gradual", "how_often.every=1", "rounds=4")
EPOCHS = ("local.epochs=2", "local.steps=null", "partition=dirichlet", "federated.clients=20", "federated.cohort=5")
FILTERS = ("what=filters_global", "what.layers=[conv,linear]", "what.skip=[last]", "what.min_per_layer=2")
RUNS = {
    "dense": ("federated.cohort=4",),
    "while they train": (*DURING, *EPOCHS),
    "convolutions": (*ONCE, *EPOCHS, *FILTERS, "criterion=filter_norm", "model=cnn_fedavg"),
    "evidence": (*ONCE, *EPOCHS, "criterion=snip"),
    "exchange": ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "rounds=4", "when.stop=1", "federated.cohort=3"),
    "personal": (*DURING, *EPOCHS, "whose=personal"),
    "personal at the start": (*DURING, *EPOCHS, "whose=personal", "whose.at=start", "rewind=init"),
    "nested": (*ONCE, *EPOCHS, "whose=nested", "federated/capacity=tiers", "what.skip=[]"),
    "nested, some of them whole": (
        *EPOCHS,
        "whose=nested",
        "federated/capacity=tiers",
        "what.skip=[]",
        "local.retrain_lr=0.25",
    ),
    "frozen batchnorm": (*ONCE, "model=vgg_small", "federated.batchnorm=frozen"),
    "adam": (*ONCE, *EPOCHS, "local/optimizer=adam", "+local.optimizer.eps=1e-3"),
    "all of a recipe": (
        *(*DURING, *EPOCHS, "local=fedprox", "local.lr_decay=0.5", "local.retrain_lr=0.5", "local.fixed=[fc1]"),
        *("local.module._target_=fedprune.local.module.SquaredError", "local.optimizer.lr=0.005"),
    ),
}


@pytest.fixture
def stacks(monkeypatch) -> list[int]:
    """The number of clients in every stack that is trained."""
    seen: list[int] = []
    fit = batched.fit_together

    def counted(module, shares, recipe, decay):
        seen.append(len(shares))
        return fit(module, shares, recipe, decay)

    monkeypatch.setattr(batched, "fit_together", counted)
    return seen


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("at_once", [2, "null"])
def test_a_run_comes_to_what_it_comes_to_one_after_the_other(name, at_once, tiny, play, stacks):
    experiment = tiny(*RUNS[name], "executor=batched", f"executor.at_once={at_once}")
    together = play(experiment)
    assert 1 < min(stacks) <= max(stacks) <= (2 if at_once == 2 else experiment.config.federated.cohort)
    if at_once == "null" and "some" not in name:  # then some have a learning rate of their own
        assert sum(stacks) == experiment.config.federated.cohort * len(together)
    apart = play(tiny(*RUNS[name], "local.compact=never"))
    for (state, metrics), (other, others) in zip(together, apart, strict=True):
        assert all(torch.equal(alive, other.server.mask[n]) for n, alive in state.server.mask.items())
        assert {client: own.mask for client, own in state.personal.items()} == {
            client: own.mask for client, own in other.personal.items()
        }
        torch.testing.assert_close(state.server.params, other.server.params, rtol=1e-3, atol=1e-5)
        assert metrics.keys() == others.keys()
        for key in ("train/loss", "flops/train", "wire/up_bytes", "wire/down_bytes", "density/weights"):
            assert metrics.get(key) == pytest.approx(others.get(key), rel=1e-3), key  # bytes: a loss may take a digit more


@pytest.mark.parametrize("name", ["while they train", "personal"])
def test_it_comes_to_the_same_bits_again_and_goes_on_to_them(name, tiny, play, differences):
    words = (*RUNS[name], "executor=batched", "executor.at_once=3")
    first, second = (play(tiny(*words)) for _ in range(2))
    for (state, _), (other, _) in zip(first, second, strict=True):
        assert differences(state, other) == []
    resumed = play(tiny(*words), state=first[1][0])
    assert differences(resumed[-1][0], first[-1][0]) == []


# --- one after the other -----------------------------------------------------------------------------------------------------

DIGITS = ("data=digits", "model=lenet_300_100")
SMALL = (
    *("rounds=3", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=3"),
    *("local.batch_size=16", "logger=none", "executor=serial", "density=0.3"),
)
APART = {
    "clipped": ((*ONCE, "local.clip_norm=1"), "local.clip_norm"),
    "kept momentum": (("federated.optimizer_state=kept",), "federated.optimizer_state=kept"),
    "batchnorm": (("model=vgg_small", "local.steps=1"), "BatchNorm looks at whole batches"),
    "a penalty": (("local/penalty=group_lasso",), "local.penalty or local.dropout changes their steps"),
    "swat": (("local/dropout=swat",), "local.penalty or local.dropout changes their steps"),
    "scaffold": (("federated=scaffold", "local.optimizer.momentum=0"), "federated.control=scaffold corrects their gradients"),
    "error feedback": (("+experiment=feddip", *DIGITS), "local.error_feedback"),
    "sampled masks": (("+experiment=fedpm", *DIGITS), "SamplingRound trains in a way of its own"),
    "masks that evolve": (("+experiment=dispfl", *DIGITS), "EvolvingRound trains in a way of its own"),
    "evidence summed up": (("+experiment=prunefl", *DIGITS, "how_often.alone=0"), "the gradients of the round"),
}


@pytest.mark.parametrize("name", APART)
def test_where_it_could_differ_not_a_bit_does_and_the_log_says_why_once(name, compose, play, stacks, differences, caplog):
    words, why = APART[name]
    overrides = (*words[:1], *SMALL, *words[1:])

    def played(*more: str):
        return play(build(*compose(*overrides, *more)))

    apart = played()
    with caplog.at_level(logging.WARNING):
        tried = played("executor=batched")
    assert not stacks
    for (state, _), (other, _) in zip(tried, apart, strict=True):
        assert differences(state, other) == []
    said = [record.getMessage() for record in caplog.records if "one after the other" in record.getMessage()]
    assert len(said) == 1
    assert why in said[0]


def test_an_event_that_looks_back_to_the_first_epoch_finds_it(compose, play, stacks, differences, caplog):
    words = ("+experiment=subfedavg_un", *SMALL, *DIGITS, "rounds=14", "local.epochs=2", "local.steps=null")
    apart, tried = (build(*compose(*words, *more)) for more in ((), ("executor=batched",)))
    before, *wanted = play(apart, stop=4)
    stacks.clear()
    for (state, _), (other, _) in zip(play(tried, state=before[0], stop=4), wanted, strict=True):
        assert differences(state, other) == []
    assert not stacks
    assert caplog.text.count("asks for the network after the first epoch") == 1


def first_tasks(experiment) -> tuple[Subnet, list[Task]]:
    """The network that a run begins with, and to train it by each of four clients."""
    start = experiment.loop(Serial(lambda: None)).start().server
    block = experiment.wire.subnet_block(start)
    return start, [("run", (experiment.wire.encode_job(Job(k, 0, 0, 0, start), block), {}, b"")) for k in range(4)]


def test_one_that_cannot_be_batched_does_not_hinder_the_others(tiny, stacks, caplog):
    """A client without examples comes to what it comes to alone: here, to a loss that is no number."""
    experiment, alone = tiny("executor=batched"), tiny().config
    train = experiment.clients.train
    experiment = replace(experiment, clients=replace(experiment.clients, train=(train[0], train[1][:0], *train[2:])))
    start, tasks = first_tasks(experiment)
    answers = [[*one.executor().map(tasks, [1] * 4)] for one in (experiment, replace(experiment, config=alone))]
    assert stacks == [3]
    assert b"".join(answers[0][1][0]) == b"".join(answers[1][1][0])
    for place in (0, 2, 3):
        one, other = (experiment.wire.decode_update(found[place][0], start.mask) for found in answers)
        torch.testing.assert_close(one.subnet.params, other.subnet.params, rtol=1e-3, atol=1e-5)
        assert one.examples == other.examples
    assert "one has no training examples" in caplog.text


def test_a_client_alone_comes_to_what_it_comes_to_bit_for_bit(tiny, play, stacks, differences):
    words = (*DURING, "federated.cohort=1")
    together, apart = play(tiny(*words, "executor=batched")), play(tiny(*words))
    assert not stacks
    assert differences(together[-1][0], apart[-1][0]) == []


def test_answers_come_as_they_are_asked_for_and_tell_their_seconds(tiny, stacks):
    """No more clients are in memory than may be."""
    experiment = tiny("executor=batched", "executor.at_once=2")
    _, tasks = first_tasks(experiment)
    answers = experiment.executor().map(tasks, [1] * 4)
    seconds = []
    for expected in ([2], [2], [2, 2], [2, 2]):
        seconds.append(next(answers)[2])
        assert stacks == expected
    assert all(spent > 0 for one in seconds for spent in one.values())
    assert all({"train", "encode"} <= one.keys() for one in seconds)


# --- where ------------------------------------------------------------------------------------------------------------------


def test_at_least_one_client_is_trained_at_a_time(tiny):
    with pytest.raises(ConfigError, match=r"executor\.at_once=0 must be at least 1; null means"):
        tiny("executor=batched", "executor.at_once=0").executor()


@pytest.mark.parametrize(
    ("option", "made"), [("auto", Batched), ("cuda", Batched), ("batched", Batched), ("serial", Serial), ("processes", Serial)]
)
def test_what_an_option_is_on_a_gpu(option, made, tiny, assemble, monkeypatch):
    monkeypatch.setattr(experiments, "client_round", lambda **arguments: None)
    config, _ = assemble(f"executor={option}")
    assert type(replace(tiny(), config=config, device="cuda:0").executor()) is made


def test_on_the_command_line_it_is_a_run_that_only_rounding_tells_apart(command, outputs):
    """The same plan and bytes, and metrics up to rounding; in a folder of its own, since its last bits are others."""
    words = ("rounds=6", "federated.clients=20", "federated.cohort=5", "density=0.2", "how_often=gradual", "how_often.every=1")
    found = []
    for option in ("serial", "batched"):
        before = set(outputs.glob("*/*/run.json"))
        result = command(*words, "eval_every=1", "logger=none", "device=cpu", f"executor={option}")
        assert result.rc == 0, result.text
        (folder,) = (path.parent for path in {*outputs.glob("*/*/run.json")} - before)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found.append((rows, (folder / "plan.txt").read_text(), load_state(folder / "state" / "state.safetensors")))
    (rows, plan, state), (others, other_plan, other) = found
    assert plan == other_plan
    assert len(rows) == len(others) == 6
    for row, wanted in zip(rows, others, strict=True):
        assert row.keys() == wanted.keys()
        for key in (name for name in row if not name.startswith("time/")):
            close = {"abs": 0.01} if "accuracy" in key else {"rel": 1e-3}
            assert row[key] == pytest.approx(wanted[key], **close), key
        assert row["wire/down_bytes"] == wanted["wire/down_bytes"]
        assert abs(row["wire/up_bytes"] - wanted["wire/up_bytes"]) <= 5 * 3  # digits of the losses
    assert all(torch.equal(alive, other.server.mask[n]) for n, alive in state.server.mask.items())
    assert any(not torch.equal(t, other.server.params[n]) for n, t in state.server.params.items())  # it was another way
    torch.testing.assert_close(state.server.params, other.server.params, rtol=1e-3, atol=1e-5)
