"""The server's end of the wire: what is counted was really sent, and what cannot be right is not merged."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedprune.errors import RunError
from fedprune.execution import Task
from fedprune.federated.exchange import Exchange
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.server.accumulator import merged
from fedprune.federated.server.aggregate import OverlapMean
from fedprune.pruning.mask import apply
from fedprune.types import SERVER, ClientState, Job, State, Subnet, Update
from fedprune.wire.frame import Message, length
from fedprune.wire.message import Wire
from helpers.spy import Spy, spied

pytestmark = pytest.mark.slow

ONE_SHOT = ("how_often=one_shot", "when=before_training")


# --- bytes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ("how_often=never",),
        (*ONE_SHOT, "criterion=snip"),
        (*ONE_SHOT, "criterion=snip", "wire=dense"),
        ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "when.stop=1"),
        ("what=filters_per_layer", "model=cnn_fedavg", *ONE_SHOT, "wire=bitmap"),
    ],
    ids=lambda overrides: " ".join(overrides)[:60],
)
def test_reported_bytes_are_the_lengths_of_the_messages(overrides, tiny, play):
    experiment = tiny(*overrides)
    spy = spied(experiment)
    played = play(experiment, spy)
    total = 0
    for state, metrics in played:
        sent = (metrics["wire/down_bytes"], metrics["wire/up_bytes"])
        assert sent == spy.bytes_of(metrics["round"])
        total += sum(sent)
        assert metrics["wire/total_bytes"] == state.down_bytes + state.up_bytes == total


@pytest.mark.parametrize(
    ("where", "measuring"),
    [(("where=cohort",), 2), (("where=one_client",), 1), (("where=all_clients",), 4), (("where=server", "where.proxy=100"), 0)],
    ids=lambda value: str(value),
)
def test_evidence_costs_bytes_from_every_client_that_measures_and_none_from_the_server(where, measuring, tiny, play):
    experiment = tiny(*ONE_SHOT, "criterion=snip", *where)
    spy = spied(experiment)
    ((_, metrics),) = play(experiment, spy, stop=1)
    jobs = [job for job, *_ in spy.seen if job.measure]
    if where[0] == "where=server":
        assert [job.client for job in jobs] == [SERVER]
    else:
        assert len({job.client for job in jobs}) == len(jobs) == measuring
    down, up = spy.bytes_of(0, measured=True)
    # The dense network goes down, and a gradient for every prunable weight comes up.
    prunable = sum(tensor.numel() for name, tensor in experiment.net.state_dict().items() if name.endswith("weight"))
    everything = sum(tensor.numel() for tensor in experiment.net.state_dict().values())
    assert down == pytest.approx(4 * everything * measuring, rel=0.01)
    assert up == pytest.approx(4 * prunable * measuring, rel=0.01)
    training = spy.bytes_of(0, measured=False)
    assert (metrics["wire/down_bytes"], metrics["wire/up_bytes"]) == (down + training[0], up + training[1])


def test_one_client_that_measures_is_the_same_in_every_round_and_not_for_every_seed(tiny, play):
    who = {}
    for seed in (0, 1, 2, 3):
        experiment = tiny("criterion=snip", "where=one_client", "how_often=gradual", "when.stop=1", f"seed={seed}")
        spy = spied(experiment)
        play(experiment, spy)
        (who[seed],) = {job.client for job, *_ in spy.seen if job.measure}
    assert len(set(who.values())) > 1


@pytest.mark.parametrize("examples", [7, 10_000])
def test_a_client_measures_on_as_many_examples_as_asked(examples, tiny, play):
    experiment = tiny(*ONE_SHOT, "criterion=snip", "where=all_clients", f"where.examples={examples}")
    weights = {}

    def note(job: Job, answer: Message) -> Message:
        if job.measure:
            weights[job.client] = experiment.wire.decode_update(answer, job.subnet.mask).examples
        return answer

    play(experiment, spied(experiment, note), stop=1)
    assert weights == {client: min(examples, len(part)) for client, part in enumerate(experiment.clients.train)}


def test_codecs_change_bytes_and_nothing_else(tiny, play, differences):
    overrides = ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "when.stop=1", "density=0.1")
    played = {codec: play(tiny(*overrides, f"wire={codec}")) for codec in ("dense", "bitmap", "gaps", "auto")}
    for codec in ("bitmap", "gaps", "auto"):
        for (state, _), (other, _) in zip(played[codec], played["dense"], strict=True):
            assert differences(state, other, ignore=("up_bytes", "down_bytes")) == []
    sent = {codec: (states[-1][0].down_bytes, states[-1][0].up_bytes) for codec, states in played.items()}
    assert sent["auto"][0] == sent["gaps"][0] < sent["bitmap"][0] < sent["dense"][0]
    assert sent["auto"][1] < sent["gaps"][1] < sent["bitmap"][1] < sent["dense"][1]


def test_whether_equal_masks_are_one_object_cannot_be_seen_in_the_mean():
    """Decoding remembers masks, up to a number: what it happens to remember must not reach a result."""
    generator = torch.Generator().manual_seed(0)
    mask = {"w": torch.rand(50, 40, generator=generator) < 0.5}
    server, *weights = (apply({"w": torch.randn(50, 40, generator=generator)}, mask) for _ in range(6))
    for examples in ((3.0, 7.0, 2.0, 5.0, 1.0), (1.0,) * 5):
        one = merged(OverlapMean(), server, [(Subnet(w, mask), n) for w, n in zip(weights, examples, strict=True)])
        copies = [{"w": mask["w"].clone()} for _ in weights]
        other = merged(OverlapMean(), server, [(Subnet(w, m), n) for w, m, n in zip(weights, copies, examples, strict=True)])
        assert torch.equal(one["w"], other["w"])


def test_what_is_trained_is_what_was_decoded(tiny, play):
    """A wire that loses the low half of every number changes the result: the loop has no other way around it."""
    experiment = tiny("how_often=never")

    def coarse(job: Job, answer: Message) -> Message:
        update = experiment.wire.decode_update(answer, job.subnet.mask)
        rounded = {n: t.bfloat16().float() for n, t in update.subnet.params.items()}
        return experiment.wire.encode_update(replace(update, subnet=Subnet(rounded, update.subnet.mask)), job.subnet.mask)

    ((state, _),) = play(experiment, spied(experiment, coarse), stop=1)
    ((exact, _),) = play(experiment, stop=1)
    assert not torch.equal(state.server.params["fc1.weight"], exact.server.params["fc1.weight"])
    assert torch.allclose(state.server.params["fc1.weight"], exact.server.params["fc1.weight"], atol=1e-2)


# --- broken updates --------------------------------------------------------------------------------------------------------


def poison(experiment, client: int, how: str) -> Callable[[Job, Message], Message]:
    """Spoils what one client answers."""

    def spoil(job: Job, answer: Message) -> Message:
        if job.client != client:
            return answer
        if how == "garbled":
            return b"".join(answer)[:-1] + bytes([answer[-1][-1] ^ 1])
        if how == "cut":
            return b"".join(answer)[: length(answer) // 2]
        update = experiment.wire.decode_update(answer, job.subnet.mask)
        if how == "nan loss":
            return experiment.wire.encode_update(
                replace(update, metrics={**update.metrics, "loss": float("nan")}), job.subnet.mask
            )
        params, mask = dict(update.subnet.params), dict(update.subnet.mask)
        if how == "nan weight":
            params["fc1.bias"] = params["fc1.bias"].index_fill(0, torch.tensor([3]), float("nan"))
        if how == "grown":
            mask["fc1.weight"] = torch.ones_like(mask["fc1.weight"])
            params["fc1.weight"] = params["fc1.weight"] + 1
        return experiment.wire.encode_update(replace(update, subnet=Subnet(params, mask)), job.subnet.mask)

    return spoil


BROKEN = {
    "nan loss": "the training has diverged (loss nan",
    "nan weight": "not all numbers are finite",
    "garbled": "its update cannot be read: a damaged message",
    "cut": "its update cannot be read: a damaged message",
    "grown": "its mask has entries in fc1.weight that are dead in the mask it was sent",
}


@pytest.mark.parametrize(("how", "reason"), BROKEN.items())
def test_a_broken_update_stops_the_run_and_names_its_client(how, reason, tiny, play):
    experiment = tiny(*ONE_SHOT, "federated.cohort=4")
    with pytest.raises(RunError) as caught:
        play(experiment, spied(experiment, poison(experiment, 2, how)))
    assert str(caught.value).startswith("client 2 in round 0: ")
    assert reason in str(caught.value)
    assert "federated.broken=drop" in str(caught.value)


@pytest.mark.parametrize(("how", "reason"), BROKEN.items())
def test_a_broken_update_is_left_out_and_counted_if_told_so(how, reason, tiny, play, equal, caplog):
    experiment = tiny(*ONE_SHOT, "federated.cohort=4", "federated.broken=drop")
    with caplog.at_level(logging.WARNING):
        ((state, metrics),) = play(experiment, spied(experiment, poison(experiment, 2, how)), stop=1)
    assert re.search(f"client 2 in round 0: .*{re.escape(reason)}.*; left out of the round", caplog.text)
    assert metrics["clients/dropped"] == metrics["clients/dropped/2"] == 1
    assert metrics["train/steps"] == 3 * 3  # of the three others

    # As if the three others had been the cohort. The broken answer is still counted: it did cross the wire.
    others = experiment.loop(experiment.executor())
    exchange, start = others.exchange, others.pruning.prune(others.start(), others.plan.events[0], Tally())
    fold = others._fold(start)
    for job, answer in exchange.train([others._job(start, client) for client in (0, 1, 3)], start, Tally()):
        fold.add(job, answer)
    assert equal(state.server.params, others._step(start, fold).server.params)
    assert all(torch.isfinite(tensor).all() for tensor in state.server.params.values())
    assert metrics["wire/up_bytes"] > 0


def test_a_round_in_which_every_update_is_dropped_leaves_the_network_as_it_is(tiny, play, equal):
    experiment = tiny(*ONE_SHOT, "federated.broken=drop", "local.optimizer.lr=1e30")
    played = play(experiment)
    for state, metrics in played:
        assert metrics["clients/dropped"] == 2
        assert "train/loss" not in metrics
        assert equal(state.server.params, played[0][0].server.params)
        assert all(torch.isfinite(tensor).all() for tensor in state.server.params.values())


def test_evidence_that_no_client_delivers_ends_the_run_with_a_reason(tiny, play):
    experiment = tiny(*ONE_SHOT, "criterion=snip", "federated.broken=drop")

    def lose(job: Job, answer: bytes) -> bytes:
        return b"" if job.measure else answer

    with pytest.raises(RunError, match="no client delivered the evidence that the prune event needs"):
        play(experiment, spied(experiment, lose))


# --- tally -----------------------------------------------------------------------------------------------------------------


def update(loss: float, seen: int, steps: int) -> Update:
    return Update(0, None, seen, metrics={"loss": loss, "seen": seen, "steps": steps})


def test_a_tally_sums_over_clients_and_averages_the_loss_over_the_examples_seen():
    tally = Tally(up_bytes=5, down_bytes=7, dropped=[7, 3, 7])
    tally.add(update(1.0, 10, 2))
    tally.add(update(4.0, 30, 3))
    assert tally.metrics() == {
        "wire/up_bytes": 5,
        "wire/down_bytes": 7,
        "train/examples": 40,
        "train/steps": 5,
        "clients/dropped": 3,
        "clients/dropped/7": 2,
        "clients/dropped/3": 1,
        "clients/silent": 0,
        "clients/late": 0,
        "train/loss": (10 * 1.0 + 30 * 4.0) / 40,
    }
    assert "train/loss" not in Tally().metrics()


def test_what_a_client_has_not_kept_yet_is_what_the_network_began_with(tiny):
    experiment = tiny("model=resnet20", "model.norm=batch", "federated.batchnorm=local")
    loop = experiment.loop(experiment.executor())
    exchange: Exchange = loop.exchange
    start: State = loop.start()
    kept = exchange.kept_by(start, 3).batchnorm
    assert set(kept) == set(exchange.private) != set()
    mine = ClientState(batchnorm={name: torch.full_like(start.init[name], 7) for name in exchange.private})
    assert exchange.kept_by(replace(start, kept={3: mine}), 3) is mine
    others = exchange.kept_by(replace(start, kept={3: mine}), 2).batchnorm
    assert all((others[name] == kept[name]).all() for name in kept)


def test_a_message_is_made_when_its_client_begins_and_a_subnet_of_several_is_encoded_once(tiny, play, monkeypatch):
    """So that a round of many clients does not hold the messages of all, nor keep workers waiting for them."""
    experiment, made, encoded = tiny("federated.cohort=4", "whose=shared"), [], []
    encode_job, block = Wire.encode_job, Wire.subnet_block
    monkeypatch.setattr(Wire, "encode_job", lambda wire, job, *rest: (made.append(job.client), encode_job(wire, job, *rest))[1])
    monkeypatch.setattr(Wire, "subnet_block", lambda wire, *rest: (encoded.append(wire), block(wire, *rest))[1])

    class Watched(Spy):
        def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
            for number, answer in enumerate(super().map(tasks, sizes), start=1):
                assert len(set(made)) == min(number, 4)
                yield answer

    inner = experiment.executor()
    loop = experiment.loop(Watched(inner, experiment.wire))
    state, metrics = loop.round(loop.start())
    assert len(set(made)) == 4
    assert len(encoded) == 1 + 4  # the job's, once, and each client's own answer
    assert metrics["wire/down_bytes"] > 4 * 4 * sum(t.numel() for t in state.server.params.values())
