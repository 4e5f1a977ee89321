"""Who answers, by hand and by frequency; what a silent client changes (the weights of the mean, and nothing else)."""

from __future__ import annotations

import json
import logging
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from fedprune.capabilities import complete
from fedprune.errors import ConfigError, Incompatible, RunError
from fedprune.execution import Task
from fedprune.experiment.build import build
from fedprune.federated.availability import (
    Dropout,
    Fate,
    Fates,
    Lognormal,
    Never,
    Slow,
    Tiers,
    Uniform,
    always,
    everybody,
    heard,
)
from fedprune.federated.sampling import cohort
from fedprune.federated.where import OneClient, Where
from fedprune.running.display import left_out_text
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import Job, State, Subnet, Update
from fedprune.wire.frame import length

pytestmark = pytest.mark.slow

ANSWERS, SILENT, LATE = Fate.ANSWERS, Fate.SILENT, Fate.LATE
ROUND = ("round", "clock")  # what a round changes in any case
ONE_SHOT = ("how_often=one_shot", "when=before_training")


def missing(*places: tuple[int, int], fate: Fate = SILENT) -> Fates:
    """The fates in which just these (client, clock) do not answer."""
    return lambda client, clock: fate if (client, clock) in places else ANSWERS


def nobody_in(*clocks: int) -> Fates:
    return lambda client, clock: SILENT if clock in clocks else ANSWERS


def play(experiment, fates: Fates, executor: Any = None, state: State | None = None) -> list[tuple[State, dict[str, float]]]:
    """The rounds of an experiment in which these are the fates."""
    fated = replace(experiment, options=replace(experiment.options, fates=fates))
    loop = fated.loop(executor or experiment.executor())
    state, played = state or loop.start(), []
    while state.round < loop.plan.rounds:
        played.append(loop.round(state))
        state = played[-1][0]
    return played


def of(option: Callable, number: int, seed: int = 0, clock: int = 0, work: Sequence[int] | None = None) -> list[Fate]:
    """The fates of so many clients in a round."""
    fates = option(seed, work or [1] * number)
    return [fates(client, clock) for client in range(number)]


# --- who answers -----------------------------------------------------------------------------------------------------------


def scripted(*speeds: float) -> Callable[[np.random.Generator], float]:
    """These speeds, one for each client in the order in which they are drawn."""
    rest = iter(speeds)
    return lambda generator: next(rest)


@pytest.mark.parametrize(
    ("speeds", "work", "deadline", "late"),
    [
        # Times are 4/1, 4/0.5, 8/2, 2/0.25 = 4, 8, 4, 8; the median of four is (4 + 8) / 2 = 6.
        ((1, 0.5, 2, 0.25), (4, 4, 8, 2), 1.0, {1, 3}),  # 8 > 6
        ((1, 0.5, 2, 0.25), (4, 4, 8, 2), 4 / 3, set()),  # 8 is just in time
        ((1, 0.5, 2, 0.25), (4, 4, 8, 2), 1.33, {1, 3}),  # 8 > 7.98
        ((1, 0.5, 2, 0.25), (4, 4, 8, 2), 0.6, {0, 1, 2, 3}),  # 4 > 3.6
        # Without the last one the median of 4, 8, 4 is 4. Client 2 has most to do, and is not late: it is fast.
        ((1, 0.5, 2), (4, 4, 8), 1.5, {1}),  # 8 > 6
        ((1, 1, 1), (4, 4, 9), 2.0, {2}),  # equally fast: only the one with more to do is late
    ],
)
def test_late_is_who_takes_longer_than_the_deadline_in_median_times(speeds, work, deadline, late):
    fates = of(Slow(scripted(*speeds), deadline), len(work), work=work)
    assert fates == [LATE if client in late else ANSWERS for client in range(len(work))]


def test_lateness_is_that_of_a_straight_line_in_numpy():
    work = np.random.default_rng(1).integers(1, 40, size=101)
    z = [
        np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, zlib.crc32(b"speed"), 0, k + 1]))).standard_normal()
        for k in range(101)
    ]
    times = work / np.exp(0.5 * np.array(z))
    expected = times > 1.5 * np.median(times)
    assert 10 < expected.sum() < 60
    fates = of(Slow(Lognormal(0.5), 1.5), 101, seed=7, work=work.tolist())
    assert [fate is LATE for fate in fates] == expected.tolist()


@pytest.mark.parametrize(
    ("speeds", "probability"),
    [
        # All have the same work. Late is who has time > 1.5 x median.
        # Lognormal: -sigma z > ln 1.5, with probability Phi(-ln 1.5 / 0.5) = 0.209.
        (Lognormal(0.5), NormalDist().cdf(-math.log(1.5) / 0.5)),
        # Uniform: the median time is 1 / 0.625, so late is speed < 0.625 / 1.5 = 0.41667: (0.41667 - 0.25) / 0.75 = 2/9.
        (Uniform(0.25, 1.0), 2 / 9),
        # Tiers: times 1, 2, 4, each a third, and the median 2: late is 4 > 3. Or 1, 1, 1, 4, and the median 1: late is 4 > 1.5.
        (Tiers([1.0, 0.5, 0.25]), 1 / 3),
        (Tiers([1.0, 1.0, 1.0, 0.25]), 1 / 4),
    ],
)
def test_as_many_are_late_as_the_distribution_says(speeds, probability):
    number = 4000
    late = of(Slow(speeds, 1.5), number).count(LATE)
    assert abs(late - number * probability) < 5 * math.sqrt(number * probability * (1 - probability))


def test_lognormal_speeds_of_no_spread_are_equal():
    assert of(Slow(Lognormal(0.0), 1.0), 50) == [ANSWERS] * 50


def test_a_speed_is_a_clients_own_whoever_else_there_is():
    def noting(found: list[float]) -> Callable[[np.random.Generator], float]:
        return lambda generator: found.append(generator.random()) or 1.0

    few: list[float] = []
    many: list[float] = []
    other: list[float] = []
    Slow(noting(few), 1.0)(3, [1] * 5)
    Slow(noting(many), 1.0)(3, [9] * 50)
    Slow(noting(other), 1.0)(4, [1] * 5)
    assert few == many[:5] and len(set(many)) == 50
    assert not set(few) & set(other)


@pytest.mark.parametrize("option", [Dropout(0.5), Never(0.5), Slow(Lognormal(1.0), 0.8), Slow(Tiers([1, 0.2]), 1.0)])
def test_a_fate_depends_on_nothing_but_seed_client_and_clock(option):
    asked = [(client, clock) for client in range(20) for clock in range(20)]
    fates = option(5, range(1, 21))
    once = {place: fates(*place) for place in asked}
    np.random.default_rng(0).shuffle(asked)
    torch.manual_seed(0)
    again = option(5, range(1, 21))
    assert {place: again(*place) for place in asked} == once
    assert len(set(once.values())) == 2
    other = option(6, range(1, 21))
    assert {place: other(*place) for place in asked} != once


@pytest.mark.parametrize("option", [Never(0.3), Slow(Lognormal(0.5), 1.2)])
def test_who_never_answers_and_who_is_slow_is_so_for_life(option):
    assert len(set(of(option, 30))) == 2  # some are, and some are not
    assert all(of(option, 30, clock=clock) == of(option, 30) for clock in range(10))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_clients_drop_out_at_the_rate_independently_of_each_other_and_of_the_round_before(rate):
    clients, rounds = 10, 1000
    silent = np.array([[fate is SILENT for fate in of(Dropout(rate), clients, clock=clock)] for clock in range(rounds)])

    def within(found: np.ndarray, probability: float) -> bool:
        deviation = math.sqrt(found.size * probability * (1 - probability))
        return abs(found.sum() - found.size * probability) < 5 * deviation

    assert within(silent, rate)
    assert all(within(silent[:, client], rate) for client in range(clients))
    for pair in ((0, 1), (3, 7), (8, 9)):
        assert within(silent[:, pair].all(axis=1), rate**2)
    assert within(silent[0::2] & silent[1::2], rate**2)


def test_how_many_of_a_cohort_are_silent_is_binomial():
    # 2000 cohorts of 5 at the rate 1/2: 2000 x (1, 5, 10, 10, 5, 1) / 32. Chi-square with 5 degrees: above 20.5 once in 1000.
    fates = Dropout(0.5)(0, [1] * 40)
    silent = Counter(sum(fates(k, clock) is SILENT for k in cohort(0, clock, 40, 5)) for clock in range(2000))
    expected = {number: 2000 * math.comb(5, number) / 32 for number in range(6)}
    assert sum((silent[n] - e) ** 2 / e for n, e in expected.items()) < 20.5


def test_a_rate_of_zero_is_everybody():
    assert of(Dropout(0.0), 1000) == of(Never(0.0), 1000) == of(always, 1000) == [ANSWERS] * 1000


@pytest.mark.parametrize(("fraction", "number"), [(0.0, 0), (0.2, 2), (0.25, 3), (0.34, 3), (0.9, 9)])  # halves up
def test_as_many_never_answer_as_the_fraction_says_to_the_nearest(fraction, number):
    fates = of(Never(fraction), 10)
    assert (fates.count(SILENT), fates.count(LATE)) == (number, 0)


def test_a_larger_fraction_silences_more_and_not_others():
    few, many = of(Never(0.2), 50), of(Never(0.5), 50)
    silent = [{client for client in range(50) if fates[client] is SILENT} for fates in (few, many)]
    assert [len(clients) for clients in silent] == [10, 25]
    assert silent[0] < silent[1]


def test_every_client_is_equally_likely_never_to_answer():
    # 2000 seeds, 3 of 10: 600 times each; the standard deviation is sqrt(2000 x 0.3 x 0.7) = 20.5.
    counts = np.sum([[fate is SILENT for fate in of(Never(0.3), 10, seed=seed)] for seed in range(2000)], axis=0)
    assert abs(counts - 600).max() < 5 * 20.5


def test_heard_is_whether_anybody_who_is_asked_ever_answers():
    asked = {0: (1, 2), 1: (2, 3), 2: (0, 3)}.__getitem__
    only = missing(*((client, clock) for client in (1, 2, 3) for clock in range(3)))
    assert heard(only, asked, 3)  # client 0, in the third round
    assert not heard(only, asked, 2)


# --- one round -------------------------------------------------------------------------------------------------------------

THREE = ("federated.clients=3", "federated.cohort=3", "partition=quantity_skew", "federated.weighting=uniform", "rounds=2")


class Scripted:
    """Clients that answer the network that they were sent plus 1, 10 and 100, in every entry, and note that they were asked."""

    def __init__(self, wire):
        self.wire = wire
        self.seen: list[tuple[int, int, int, int]] = []  # (round, client, bytes of the job, bytes of the answer)

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
        training = [(arguments, size) for (method, arguments), size in zip(tasks, sizes, strict=True) if method == "run"]
        for (message, kept, *_), examples in training:
            job = self.wire.decode_job(message)
            params = {name: value + 10**job.client for name, value in job.subnet.params.items()}
            metrics = {"loss": 1.0, "steps": 1, "seen": 7}
            update = Update(job.client, Subnet(params, job.subnet.mask), examples, metrics=metrics)
            answer = self.wire.encode_update(update, job.subnet.mask)
            self.seen.append((job.round, job.client, length(message), length(answer)))
            yield answer, kept, {}

    def close(self, now: bool = False) -> None:
        pass


def scripted_rounds(experiment, fates: Fates) -> tuple[Scripted, list[tuple[State, dict[str, float]]]]:
    executor = Scripted(experiment.wire)
    loop = replace(experiment, options=replace(experiment.options, fates=fates)).loop(executor)
    zeros = {name: torch.zeros_like(value) for name, value in loop.start().server.params.items()}
    loop = replace(loop, evaluation=lambda state: {})
    state, played = replace(loop.start(), server=Subnet(zeros, loop.start().server.mask)), []
    for _ in range(loop.plan.rounds):
        state, metrics = loop.round(state)
        played.append((state, metrics))
    return executor, played


@pytest.mark.parametrize(
    ("absent", "merged"),
    [
        ((), 37.0),  # (1 + 10 + 100) / 3
        ((0,), 55.0),  # (10 + 100) / 2
        ((1,), 50.5),  # (1 + 100) / 2
        ((2,), 5.5),  # (1 + 10) / 2
        ((0, 2), 10.0),
    ],
)
@pytest.mark.parametrize("fate", [SILENT, LATE])
def test_the_result_is_the_mean_of_those_that_answer(absent, merged, fate, tiny):
    executor, ((state, metrics), (last, _)) = scripted_rounds(tiny(*THREE), missing(*((k, 0) for k in absent), fate=fate))
    assert all(bool((value == merged).all()) for value in state.server.params.values())
    assert all(bool((value == merged + 37).all()) for value in last.server.params.values())  # all are back
    first = [seen for seen in executor.seen if seen[0] == 0]
    assert [client for _, client, *_ in first] == [k for k in range(3) if k not in absent]  # nobody else was made to train
    assert metrics["clients/silent"] == len(absent) * (fate is SILENT)
    assert metrics["clients/late"] == len(absent) * (fate is LATE)
    assert (metrics["clients/dropped"], metrics["train/examples"], metrics["train/loss"]) == (0, 7 * len(first), 1.0)
    # All three were sent their job (which has the same length for each); only answers came up.
    assert metrics["wire/down_bytes"] == 3 * first[0][2]
    assert metrics["wire/up_bytes"] == sum(up for *_, up in first)
    assert "evidence/unanswered" not in metrics


def test_the_mean_by_examples_is_that_of_those_that_answer(tiny, equal):
    experiment = tiny(*THREE, "federated.weighting=examples")
    ((state, _), _) = play(experiment, missing((1, 0)))
    executor = experiment.executor()
    start = experiment.loop(executor).start().server
    one, two = (executor._client_round.train(Job(client, 0, 0, 0, start)).subnet.params for client in (0, 2))
    n, m = (len(experiment.clients.train[client]) for client in (0, 2))
    assert n != m
    for name, value in state.server.params.items():
        by_hand = (n * one[name].double().numpy() + m * two[name].double().numpy()) / (n + m)
        assert np.allclose(value.numpy(), by_hand, atol=1e-6), name


MOVING = {
    "fedavg": (),
    "fedavgm": ("federated=fedavgm",),
    "fedadam": ("federated=fedadam",),
    "kept": ("federated.optimizer_state=kept", "federated=fedavgm"),
    "local batchnorm": ("model=resnet20", "model.norm=batch", "federated.batchnorm=local", "local.steps=1"),
}


@pytest.mark.parametrize("name", MOVING)
def test_a_round_in_which_nobody_answers_changes_nothing_but_the_time_and_the_bytes_that_were_sent(
    name, tiny, differences, caplog
):
    experiment = tiny(*MOVING[name], "rounds=4", *ONE_SHOT, "federated.clients=4", "federated.cohort=4")
    played = play(experiment, nobody_in(2))
    (before, _), (after, metrics), (last, _) = played[1:]
    assert differences(before, after, ignore=(*ROUND, "down_bytes")) == []
    assert differences(after, last, ignore=(*ROUND, "down_bytes", "up_bytes")) != []
    assert (after.round, after.clock) == (before.round + 1, before.clock + 1)
    assert bool(before.server_state.momentum) is (name not in ("fedavg", "local batchnorm"))
    assert bool(before.kept) is (name in ("kept", "local batchnorm"))
    assert "train/loss" not in metrics
    assert (metrics["clients/silent"], metrics["train/steps"], metrics["flops/train"], metrics["wire/up_bytes"]) == (4, 0, 0, 0)
    assert metrics["wire/down_bytes"] == played[1][1]["wire/down_bytes"] > 0
    assert "round 2: there is no update to merge; the network stays as it is" in caplog.text


def test_what_a_silent_client_keeps_stays_as_it_was(tiny, equal):
    experiment = tiny("federated.optimizer_state=kept", "rounds=3", "federated.clients=4", "federated.cohort=4")
    (first, _), (second, _), (third, _) = play(experiment, missing((2, 1), (3, 0), (3, 1), (3, 2)))
    assert equal(first.kept[2], second.kept[2]) and not equal(second.kept[2], third.kept[2])
    assert not equal(first.kept[1], second.kept[1])
    assert 3 not in third.kept


class Garbling:
    """Damages every answer of some rounds."""

    def __init__(self, inner: Any, wire: Any, rounds: Sequence[int]):
        self._inner, self._wire, self._rounds = inner, wire, rounds

    def map(self, tasks: Sequence[Task], sizes: Sequence[int]) -> Iterator[Any]:
        for (method, arguments), answer in zip(tasks, self._inner.map(tasks, sizes), strict=True):
            broken = method == "run" and self._wire.decode_job(arguments[0]).round in self._rounds
            yield (b"".join(answer[0])[:-1], *answer[1:]) if broken else answer

    def close(self, now: bool = False) -> None:
        self._inner.close(now)


@pytest.mark.parametrize("name", MOVING)
def test_a_round_in_which_every_update_is_broken_changes_nothing_but_the_time_and_the_bytes(name, tiny, differences, caplog):
    experiment = tiny(*MOVING[name], "rounds=3", *ONE_SHOT, "federated.broken=drop", "federated.cohort=4")
    with caplog.at_level(logging.WARNING):
        played = play(experiment, everybody, Garbling(experiment.executor(), experiment.wire, [1]))
    (before, _), (after, metrics), (last, _) = played
    assert differences(before, after, ignore=(*ROUND, "up_bytes", "down_bytes")) == []
    assert differences(after, last, ignore=(*ROUND, "up_bytes", "down_bytes")) != []
    assert (metrics["clients/dropped"], metrics["clients/silent"]) == (4, 0)
    assert metrics["wire/up_bytes"] > 0  # broken as they were, they crossed the wire
    assert re.findall(r"client (\d) in round 1: its update cannot be read", caplog.text) == ["0", "1", "2", "3"]
    assert (
        left_out_text([metrics for _, metrics in played])
        == "left out of 3 rounds: 4 broken or lost; 1 of the rounds merged nothing"
    )


# --- evidence --------------------------------------------------------------------------------------------------------------


def test_who_does_not_answer_has_no_say_in_what_is_pruned(tiny, differences):
    """SNIP on the three that answer is SNIP in a federation that never asked the fourth."""
    words = (*ONE_SHOT, "criterion=snip", "where=all_clients", "federated.cohort=1", "rounds=1")
    experiment = tiny(*words)
    ((state, metrics),) = play(experiment, missing((1, 0)))

    def others(cohort, clients, seed):
        return (0, 2, 3)

    ((asked, _),) = play(
        replace(experiment, options=replace(experiment.options, where=complete(others, Where))), missing((1, 0))
    )
    assert differences(state, asked, ignore=("down_bytes",)) == []
    ((everyone, _),) = play(experiment, everybody)
    assert not torch.equal(everyone.server.mask["fc1.weight"], state.server.mask["fc1.weight"])
    assert metrics["evidence/unanswered"] == 1


def test_an_event_about_which_nobody_answers_waits_for_the_next_round(tiny, equal, caplog):
    experiment = tiny("criterion=snip", "how_often=gradual", "how_often.every=1", "when.start=0", "when.stop=1", "rounds=4")
    on_time = play(experiment, everybody)
    played = play(experiment, nobody_in(0, 2))
    assert [metrics["prune/events"] for _, metrics in on_time] == [1, 2, 3, 4]
    assert [metrics["prune/events"] for _, metrics in played] == [0, 2, 2, 4]
    assert equal(played[0][0].server.params, played[0][0].init)
    assert ["density/effective" in metrics for _, metrics in played] == [False, True, False, True]
    assert [metrics["density/weights"] for _, metrics in played][1::2] == [
        metrics["density/weights"] for _, metrics in on_time
    ][1::2]
    # Asked twice in vain: for evidence and to train. Both jobs were sent to both clients.
    sent = [metrics["wire/down_bytes"] for _, metrics in played]
    assert [metrics.get("evidence/unanswered", 0) for _, metrics in played] == [2, 0, 2, 0]
    assert sent[0] > 4 * 4 * 50_200 and played[0][1]["wire/up_bytes"] == 0
    assert "round 0: no client that was asked for the evidence of the prune event has answered; it waits" in caplog.text
    assert [metrics.get("prune/waiting", 0) for _, metrics in played] == [1, 0, 1, 0]


def test_an_event_that_took_no_evidence_from_clients_does_not_wait(tiny):
    for words in (("criterion=magnitude",), ("criterion=snip", "where=server", "where.proxy=100")):
        played = play(tiny(*ONE_SHOT, *words, "rounds=2"), nobody_in(0))
        assert [metrics["prune/events"] for _, metrics in played] == [1, 1]
        assert played[0][1]["density/weights"] == pytest.approx(0.3)


def test_events_that_never_came_are_told_at_the_end(tiny):
    experiment = tiny("criterion=snip", "how_often=gradual", "how_often.every=1", "when.start=0", "when.stop=1")
    rows = [metrics for _, metrics in play(experiment, nobody_in(1, 2))]
    assert [row.get("prune/waiting", 0) for row in rows] == [0, 1, 2]
    assert left_out_text(rows) == (
        "left out of 3 rounds: 4 silent; 2 of the rounds merged nothing; prune events that never came, because nobody answered "
        "about their evidence: 2"
    )
    assert left_out_text(rows[:1]) is None


def test_evidence_that_is_broken_ends_the_run_and_waits_only_for_who_may_answer_yet(tiny):
    experiment = tiny(*ONE_SHOT, "criterion=snip", "federated.broken=drop", "federated.cohort=4", "rounds=2")
    with pytest.raises(RunError, match="no client delivered the evidence"):
        play(experiment, everybody, Garbling(experiment.executor(), experiment.wire, [0]))
    played = play(experiment, missing((2, 0)), Garbling(experiment.executor(), experiment.wire, [0]))
    assert [metrics["prune/events"] for _, metrics in played] == [0, 1]


def test_a_gate_that_nobody_answers_stays_shut_and_compares_with_nothing(tiny):
    """Two events under a gate that opens as soon as it can tell: after two masks in a row, and after two more."""
    words = ("when=once_settled", "when.shift=1.0", "criterion=snip", "how_often=stepwise", "how_often.rate=0.5", "rounds=8")
    experiment = tiny(*words, "density=0.25")

    def events(fates: Fates) -> list[float]:
        return [metrics["prune/events"] for _, metrics in play(experiment, fates)]

    assert events(everybody) == [0, 0, 1, 1, 2, 2, 2, 2]
    # The masks after rounds 0 and 1 are asked of the cohorts of clocks 1 and 2. Nobody at 2: masks at 3 and 4, the event at 4.
    assert events(nobody_in(2)) == [0, 0, 0, 0, 1, 1, 2, 2]


def test_an_event_that_waits_under_a_gate_waits_until_it_is_asked_again(tiny):
    """The gate opens on validation accuracy, which takes no answer; the event finds nobody, and never comes after `stop`."""
    words = ("when=once_accurate", "when.accuracy=0.0", "criterion=snip", "how_often=one_shot", "rounds=5", "when.stop=0.6")
    experiment = tiny(*words)
    assert experiment.plan.gate.stop == 3

    def events(fates: Fates) -> list[float]:
        return [metrics["prune/events"] for _, metrics in play(experiment, fates)]

    assert events(everybody) == [0, 1, 1, 1, 1]
    assert events(nobody_in(1)) == [0, 0, 1, 1, 1]
    assert events(nobody_in(1, 2)) == [0, 0, 0, 0, 0]


def test_a_client_with_a_mask_of_its_own_catches_up_when_it_answers_again(tiny):
    experiment = tiny("whose=personal", *ONE_SHOT, "federated.cohort=4", "rounds=3")
    (first, _), (second, _), _ = play(experiment, missing((2, 0)))
    assert set(first.personal) == {0, 1, 3}
    assert set(second.personal) == {0, 1, 2, 3}


def test_a_vote_that_nobody_takes_part_in_is_held_in_the_next_round(tiny):
    words = ("whose=voted", "how_often=one_shot", "when.start=0.4", "when.stop=0.6", "federated.cohort=4", "rounds=3")
    experiment = tiny(*words)
    assert [event.round for event in experiment.plan.events] == [1]
    for fates, events in ((everybody, [0, 1, 1]), (nobody_in(1), [0, 0, 1])):
        assert [state.events for state, _ in play(experiment, fates)] == events


# --- whole runs ------------------------------------------------------------------------------------------------------------

DROPOUT = ("federated/availability=dropout", "federated.availability.rate=0.4")
SLOW = ("federated/availability=slow", "federated.availability.deadline=1.0", "partition=quantity_skew")
LONG = (
    *("federated=fedavgm", "federated.optimizer_state=kept", "federated.cohort=3", "rounds=10", "density=0.3"),
    *("criterion=rigl", "how_often=dynamic", "how_often.every=2", "when.start=0", "when.stop=1"),
)


@pytest.mark.parametrize("words", [DROPOUT, SLOW], ids=["dropout", "slow"])
def test_executors_agree_on_every_bit(words, tiny, differences):
    experiment = tiny(*LONG, *words, "rounds=4")
    fates = experiment.options.fates
    serial = play(experiment, fates)
    workers = tiny(*LONG, *words, "rounds=4", "executor=processes", "executor.workers=2").executor()
    try:
        parallel = play(experiment, fates, workers)
    finally:
        workers.close()
    assert sum(metrics["clients/silent"] + metrics["clients/late"] for _, metrics in serial) > 0
    for (state, metrics), (other, others) in zip(serial, parallel, strict=True):
        assert differences(state, other) == []
        assert {k: v for k, v in metrics.items() if "time/" not in k} == {k: v for k, v in others.items() if "time/" not in k}


@pytest.mark.parametrize("words", [DROPOUT, SLOW], ids=["dropout", "slow"])
def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(words, tiny, tmp_path, differences):
    experiment = tiny(*LONG, *words)
    played = play(experiment, experiment.options.fates)
    save_state(played[4][0], tmp_path / "state.safetensors")
    resumed = play(experiment, experiment.options.fates, state=load_state(tmp_path / "state.safetensors"))
    assert len(resumed) == 5
    for (state, _), (other, _) in zip(played[5:], resumed, strict=True):
        assert differences(state, other) == []


def test_after_a_rewind_the_same_clients_are_missing(tiny):
    words = ("when=after_training", "how_often=iterative", "rewind=init", "rounds=4", "density=0.64", *DROPOUT)
    experiment = tiny(*words, "federated.clients=12", "federated.cohort=6", "local.steps=1")
    played = play(experiment, experiment.options.fates)
    silent = [metrics["clients/silent"] for _, metrics in played]
    assert len(silent) == 12 and len(set(silent[:4])) > 1
    assert silent[:4] == silent[4:8] == silent[8:]


@pytest.mark.parametrize("words", [("local.steps=3",), ("local.steps=null", "local.epochs=2", "local.batch_size=64")])
def test_the_work_of_a_client_is_the_number_of_its_steps(words, tiny):
    experiment = tiny(*words, "partition=quantity_skew", "federated.cohort=4", "rounds=1")
    ((_, metrics),) = play(experiment, everybody)
    work = [experiment.recipe.batches(len(part)) for part in experiment.clients.train]
    assert sum(work) == metrics["train/steps"]
    assert len(set(work)) == (1 if words == ("local.steps=3",) else 3)


def test_with_equal_speeds_it_is_the_clients_with_most_data_that_are_late(tiny):
    words = ("local.steps=null", "local.epochs=1", "local.batch_size=8", "partition=quantity_skew", "federated.clients=9")
    slow = ("federated/availability=slow", "federated.availability.speeds.sigma=0", "federated.availability.deadline=1.0")
    experiment = tiny(*words, *slow)
    batches = [math.ceil(len(part) / 8) for part in experiment.clients.train]
    fates = [experiment.options.fates(client, 0) for client in range(9)]
    assert [fate is LATE for fate in fates] == [number > sorted(batches)[4] for number in batches]
    assert 1 <= fates.count(LATE) <= 4


# --- what is said about it -------------------------------------------------------------------------------------------------


def test_how_much_was_left_out_is_summed_over_rounds():
    rows = [
        {"clients/silent": 2, "clients/late": 1, "clients/dropped": 0, "train/loss": 1.0},
        {"clients/silent": 3, "clients/late": 0, "clients/dropped": 0},
    ]
    assert left_out_text(rows) == "left out of 2 rounds: 5 silent, 1 late; 1 of the rounds merged nothing"
    assert left_out_text(rows[:1]) == "left out of 1 rounds: 2 silent, 1 late"
    assert left_out_text([{"clients/dropped": 0, "train/loss": 1.0}]) is None  # an older run, in which all went well


SMALL = ("rounds=4", "federated.clients=6", "federated.cohort=4", "partition=iid", "local.epochs=null", "local.steps=1")


def test_the_last_line_of_a_run_says_how_many_were_left_out(command, folder):
    result = command(*SMALL, "logger=none", "executor=serial", *DROPOUT)
    assert result.rc == 0, result.text
    rows = [json.loads(line) for line in (folder() / "metrics.jsonl").read_text().splitlines()]
    silent = int(sum(row["clients/silent"] for row in rows))
    assert 0 < silent < 16
    last = next(line for line in result.out.splitlines() if line.startswith("left out of"))
    assert last == left_out_text(rows) and last.startswith(f"left out of 4 rounds: {silent} silent")
    of_the_last = int(rows[-1]["clients/silent"])
    assert of_the_last > 0 and f"left out {of_the_last}" in result.out.replace(last, "")
    # The estimate said so before: the fates are known.
    dry = command(*SMALL, "logger=none", "executor=serial", *DROPOUT, "dry_run=true")
    assert f"{100 * (1 - silent / 16):.3g} % of those that are sent for training" in dry.out
    estimated = re.search(r"bytes up +([\d.]+) MB", dry.out)
    assert float(estimated[1]) == pytest.approx(sum(row["wire/up_bytes"] for row in rows) / 1e6, rel=0.01)


def test_a_run_in_which_all_answer_says_nothing_about_it(command):
    result = command(*SMALL, "logger=none", "executor=serial")
    assert result.rc == 0 and "left out" not in result.text


# --- configurations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (lambda rate=rate: Dropout(rate), f"federated.availability.rate={rate} is the prob")
            for rate in (-0.1, 1.0, math.nan)
        ),
        *((lambda part=part: Never(part), f"federated.availability.fraction={part} of the clients") for part in (-0.1, 1.0)),
        *((lambda d=d: Slow(Lognormal(1), d), f"federated.availability.deadline={d} is in median times") for d in (0, -1.0)),
        (lambda: Lognormal(-0.5), "federated.availability.speeds.sigma=-0.5 must not be negative"),
        (lambda: Uniform(0.0, 1.0), "low=0.0 and high=1.0 are speeds: 0 < low <= high"),
        (lambda: Uniform(2.0, 1.0), "low=2.0 and high=1.0 are speeds: 0 < low <= high"),
        (lambda: Tiers([]), "federated.availability.speeds.speeds=[]: give one or more"),
        (lambda: Tiers([1.0, 0.0]), "federated.availability.speeds.speeds=[1.0, 0.0]: give one or more"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("option", ["slow", "slow_tiers", "slow_uniform", "never", "dropout", "always"])
def test_every_option_is_had_from_the_command_line(option, tiny):
    experiment = tiny(f"federated/availability={option}", "federated.clients=40", "federated.cohort=2")
    found = Counter(experiment.options.fates(client, 0) for client in range(40))
    missed = {"always": None, "never": SILENT, "dropout": SILENT}.get(option, LATE)
    assert set(found) == ({ANSWERS} if missed is None else {ANSWERS, missed})


def test_all_that_is_out_of_range_is_reported_together(assemble):
    words = ("federated/availability=slow", "federated.availability.deadline=0", "density=2")
    with pytest.raises(ConfigError) as caught:
        build(*assemble(*words))
    assert "density=2" in str(caught.value) and "federated.availability.deadline=0" in str(caught.value)


def test_a_federation_in_which_nobody_ever_answers_is_refused(tiny):
    for words in (
        ("federated/availability=never", "federated.availability.fraction=0.9"),  # 3.6 of four clients are four
        ("federated/availability=slow", "federated.availability.deadline=0.01"),
    ):
        with pytest.raises(Incompatible, match="leaves nobody in any of the 3 rounds: choose federated/availability=always"):
            tiny(*words)


def test_evidence_from_one_client_that_never_answers_is_refused(tiny):
    words = (*ONE_SHOT, "federated/availability=never", "federated.availability.fraction=0.5", "where=one_client")
    refused = set()
    for seed in range(8):
        (who,) = OneClient()((), 4, seed)
        if Never(0.5)(seed, [1] * 4)(who, 0) is ANSWERS:
            tiny(*words, "criterion=snip", f"seed={seed}")
            continue
        refused.add(seed)
        with pytest.raises(Incompatible, match="where=one_client: under federated.availability nobody ever answers who is to"):
            tiny(*words, "criterion=snip", f"seed={seed}")
    assert 0 < len(refused) < 8
    summed = ("criterion=prunefl", "how_often=dynamic", "how_often.every=1", "when=during_training", "when.start=0.4")
    for seed in refused:  # sums of gradients are evidence of clients, too
        with pytest.raises(Incompatible, match="where=one_client: under federated.availability nobody ever answers who is to"):
            tiny(*words, *summed, f"seed={seed}")
    for seed in refused:  # nobody is asked
        tiny(*words, "criterion=magnitude", f"seed={seed}")
        tiny("federated/availability=never", "criterion=snip", "where=one_client", "how_often=never", f"seed={seed}")
