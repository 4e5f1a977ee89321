"""Whose the mask is: who does what in a round, by hand; and whole runs with personal and voted masks, bit for bit."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import struct
from itertools import pairwise

import pytest
import torch

from fedprune.experiment.build import build
from fedprune.federated.client.prune_event import MOMENTS
from fedprune.federated.masks import PersonalMask, PruneContext, Shared, UpdateSummary, Voted
from fedprune.federated.masks.voting import by_layer_density, by_magnitude
from fedprune.federated.sampling import cohort
from fedprune.pruning.criterion import Criterion, magnitude
from fedprune.pruning.event import Axes
from fedprune.pruning.gate import Accurate
from fedprune.pruning.mask import apply, count, pack, unpack
from fedprune.pruning.rewind import Draws, Keep
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import Gate, Job, Personal, Plan, PruneEvent, State, Subnet
from fedprune.wire.frame import Message, length

EVENTS = (PruneEvent(0, 0.9), PruneEvent(3, 0.5), PruneEvent(5, 0.25))
OPEN = Plan(EVENTS[1:], 10)
GATED = Plan(EVENTS[1:], 10, Gate(Accurate(0.5), stop=8, apart=2))

PARAMS = {"w": torch.tensor([1.0, -2.0, 3.0, -4.0]), "b": torch.tensor([1.0])}
WHOLE = {"w": torch.ones(4, dtype=torch.bool)}
HALF = {"w": torch.tensor([False, False, True, True])}


def at(round: int, own: Personal | None = None, events: int = 0) -> State:
    return State(Subnet(PARAMS, WHOLE), PARAMS, PARAMS, round=round, events=events, personal={} if own is None else {7: own})


def place(events: int, pruned: int) -> Personal:
    return Personal(pack(HALF), events, pruned)


# --- personal, by hand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "state", "todo"),
    [
        # Events after 3 and 5 rounds. Nothing is due before; then the first; then, for who did that, the second.
        (OPEN, at(2), (None, 0)),
        (OPEN, at(3), (EVENTS[1], 0)),
        (OPEN, at(4, place(1, 3)), (None, 1)),
        (OPEN, at(5, place(1, 3)), (EVENTS[2], 1)),
        (OPEN, at(9, place(2, 5)), (None, 2)),
        # Who was not there catches up at once, with the last one, which counts as two.
        (OPEN, at(6), (EVENTS[2], 1)),
        # Behind a gate one at a time, two rounds apart, and none from 8 on.
        (GATED, at(2), (None, 0)),
        (GATED, at(6), (EVENTS[1], 0)),
        (GATED, at(5, place(1, 4)), (None, 1)),
        (GATED, at(7, place(1, 6)), (None, 1)),
        (GATED, at(6, place(1, 4)), (EVENTS[2], 1)),
        (GATED, at(7, place(2, 5)), (None, 2)),
        (GATED, at(8), (None, 0)),
    ],
)
@pytest.mark.parametrize("moment", MOMENTS)
def test_each_client_has_its_own_place_in_the_plan(moment, plan, state, todo):
    assert PersonalMask(moment).on_client(plan, state, 7) == todo
    assert PersonalMask(moment).on_server(plan, state) == ()


def test_a_client_holds_the_mask_that_it_made_and_others_none():
    state = at(4, place(1, 3))
    assert (PersonalMask().client_mask(state, 7), PersonalMask().client_mask(state, 8)) == (pack(HALF), b"")
    assert Shared().client_mask(state, 7) == Voted(by_magnitude).client_mask(state, 7) == b""


CONTEXT = PruneContext(
    OPEN, Axes(What(weights, globally, names=("w",)), Criterion(magnitude)), Keep(), Draws(lambda: PARAMS, torch.Generator)
)


def receipt(client: int, mask: dict, pruned: bool, events: int = 0, event: PruneEvent | None = EVENTS[1]) -> UpdateSummary:
    job = Job(client, 3, 3, 0, Subnet(PARAMS, WHOLE), event=event, events=events)
    return UpdateSummary(job, mask, 1.0, 1, pruned)


def test_what_a_round_comes_to_is_noted_of_those_who_pruned_and_the_server_stays_whole():
    state = at(4, place(1, 2))
    other = {"w": torch.tensor([True, False, False, True])}
    after = PersonalMask().merged(state, PARAMS, [receipt(7, HALF, False, 1), receipt(8, other, True, 1)], CONTEXT)
    assert after.personal == {7: place(1, 2), 8: Personal(pack(other), 2, 3)}
    assert state.personal == {7: place(1, 2)}  # the state before is as it was
    assert after.server.mask["w"].all()
    assert after.server.params["w"].tolist() == [1.0, -2.0, 3.0, -4.0]


# --- voted, by hand --------------------------------------------------------------------------------------------------------


def test_clients_propose_the_last_event_that_is_due_and_the_server_prunes_before_training():
    whose, plan = Voted(by_magnitude), Plan(EVENTS, 10)
    assert whose.on_server(plan, at(0)) == EVENTS[:1]
    assert whose.on_server(plan, at(3, events=1)) == ()
    assert whose.on_client(plan, at(2, events=1), 7) == (None, 1)
    assert whose.on_client(plan, at(3, events=1), 7) == (EVENTS[1], 1)
    assert whose.on_client(plan, at(6, events=1), 7) == (EVENTS[2], 2)


def test_proposals_become_one_mask_and_without_them_nothing_happens():
    # Two clients propose entries {2, 3} and {0, 3}; half of 4 are kept: of the union {0, 2, 3}, by |w|, 3 and 2.
    other = {"w": torch.tensor([True, False, False, True])}
    after = Voted(by_magnitude).merged(at(4), PARAMS, [receipt(1, HALF, True), receipt(2, other, True)], CONTEXT)
    assert after.server.mask["w"].tolist() == [False, False, True, True]
    assert after.server.params["w"].tolist() == [0.0, 0.0, 3.0, -4.0]
    assert after.events == 1 and not after.personal
    still = Voted(by_magnitude).merged(at(4), PARAMS, [receipt(1, WHOLE, False)], CONTEXT)
    assert still.server.mask["w"].all() and still.events == 0


# --- whole runs ------------------------------------------------------------------------------------------------------------

LOTTERY = (
    *("whose=personal", "how_often=stepwise", "when=once_accurate", "when.accuracy=0.2", "when.stop=1.0", "rewind=init"),
    *("rounds=10", "density=0.3", "how_often.rate=0.5", "federated.cohort=3"),
)
OWN_ENDS = (
    *("whose=personal", "whose.at=end", "how_often=stepwise", "when=once_moving", "when.shift=0.0", "when.accuracy=0.2"),
    *("rounds=10", "density=0.3", "how_often.rate=0.3", "local.steps=null", "local.epochs=2", "federated.cohort=3"),
)
OWN_GROWTH = ("whose=personal", "criterion=rigl", "how_often=dynamic", "how_often.every=2", "rounds=6", "federated.cohort=3")
FEDDST = (
    "whose=voted",
    "criterion=rigl",
    "how_often=dynamic",
    "how_often.every=2",
    "when.start=0.0",
    "when.stop=1.0",
    "rounds=6",
)
KINDS = {"start": LOTTERY, "end": OWN_ENDS, "growth": OWN_GROWTH, "voted": FEDDST}
every_kind = pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS)


def masks(state: State) -> dict[int, dict]:
    shapes = {name: alive.shape for name, alive in state.server.mask.items()}
    return {client: unpack(own.mask, shapes) for client, own in state.personal.items()}


@pytest.fixture(scope="module")
def whole(tiny, play):
    """whole(overrides) -> the rounds of this run, played once."""
    return functools.cache(lambda overrides: play(tiny(*overrides)))


def untimed(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


@every_kind
def test_the_executor_makes_no_difference(overrides, tiny, play, whole, differences):
    elsewhere = play(tiny(*overrides, "executor=processes", "executor.workers=2"), stop=6)
    for (state, metrics), (other, others) in zip(whole(overrides)[:6], elsewhere, strict=True):
        assert differences(state, other) == []
        assert untimed(metrics) == untimed(others)


@every_kind
def test_a_run_that_was_saved_in_the_middle_goes_on_as_if_it_had_not(overrides, tiny, play, whole, differences, tmp_path):
    experiment, played = tiny(*overrides), whole(overrides)
    half = played[len(played) // 2 - 1][0]
    save_state(half, tmp_path / "state.safetensors")
    loaded = load_state(tmp_path / "state.safetensors")
    assert differences(half, loaded) == []
    rest = play(experiment, state=loaded)
    for (state, metrics), (other, others) in zip(played[-len(rest) :], rest, strict=True):
        assert differences(state, other) == []
        assert untimed(metrics) == untimed(others)
    assert ("whose=voted" in overrides) != bool(half.personal)


@pytest.mark.parametrize("overrides", [LOTTERY, OWN_ENDS], ids=["start", "end"])
def test_behind_a_gate_every_clients_densities_are_those_of_the_plan_one_at_a_time_and_nest(overrides, tiny, whole):
    experiment = tiny(*overrides)
    densities, total = [1.0, *(event.density for event in experiment.plan.events)], 50_200
    before: dict[int, dict] = {}
    for number, (state, _) in enumerate(whole(overrides)):
        for client, mask in masks(state).items():
            own = state.personal[client]
            assert count(mask) == round(densities[own.events] * total)
            if client in before and own.pruned < number:
                assert all(torch.equal(mask[name], before[client][name]) for name in mask)
            elif client in before:
                assert client in cohort(0, number, 4, 3)
                assert all(not (mask[name] & ~before[client][name]).any() for name in mask)
        before = masks(state)
    assert len(before) == 4
    assert len({pack(mask) for mask in before.values()}) > 1  # personal they are


def test_a_client_that_was_not_there_catches_up_in_its_next_round(tiny, play):
    """One client of four in a round; events after 1 and 2 rounds: everybody comes to the last density in one step."""
    overrides = ("whose=personal", "how_often=gradual", "when.start=0.1", "when.stop=0.3", "rounds=12", "federated.cohort=1")
    experiment = tiny(*overrides)
    assert [event.round for event in experiment.plan.events] == [1, 2, 3]
    seen = set()
    for number, (state, _) in enumerate(play(experiment)):
        (client,) = cohort(0, number, 4, 1)
        if number >= 3:
            assert state.personal[client].events == 3
            assert count(masks(state)[client]) == 15_060  # 0.3 x 50,200
            seen.add(client)
        assert state.personal.keys() <= {*(c for n in range(number + 1) for c in cohort(0, n, 4, 1))}
    assert len(seen) >= 3


def test_a_server_that_never_saw_an_event_is_whole_and_its_values_stay_where_nobody_has_them(whole):
    played, rounds = whole(LOTTERY), 0
    for (before, _), (state, _) in pairwise(played):
        assert all(alive.all() for alive in state.server.mask.values())
        holders = [masks(state).get(client) for client in cohort(0, before.round, 4, 3)]
        if None in holders:
            continue
        nobody = ~functools.reduce(torch.logical_or, (mask["fc1.weight"] for mask in holders))
        assert nobody.any()
        assert torch.equal(state.server.params["fc1.weight"][nobody], before.server.params["fc1.weight"][nobody])
        rounds += 1
    assert rounds >= 3


class Spy:
    """An executor that remembers what went through it."""

    def __init__(self, executor):
        self.executor, self.seen = executor, []

    def map(self, tasks, sizes):
        answers = list(self.executor.map(tasks, sizes))
        self.seen += [(task[1], answer) for task, answer in zip(tasks, answers, strict=True) if task[0] == "run"]
        return iter(answers)


def blocks(pieces: Message) -> tuple[dict, bytes]:
    """(header, the one block) of a message, read by its layout: magic, checksum, length, header, length, block."""
    message = b"".join(pieces)
    (length,) = struct.unpack_from("<I", message, 8)
    (size,) = struct.unpack_from("<I", message, 12 + length)
    assert len(message) == 16 + length + size
    return json.loads(message[12 : 12 + length]), message[16 + length :]


def test_every_byte_is_a_byte_of_a_message_and_a_mask_travels_once(tiny, play):
    # lenet_300_100 on 64 inputs: 50,200 weights and 410 biases. A block has 2 bytes in front, 4 for each value that is sent,
    # and no mask if everything lives or the receiver knows it; else one at the entropy of 50,200 weights of which so many live
    # at random, or less, and never more than a bit each, 6,275 bytes.
    experiment = tiny(*LOTTERY)
    spy = Spy(experiment.executor())
    held: dict[int, int] = {}  # living weights, of clients with a mask
    for number, (_, metrics) in enumerate(play(experiment, executor=spy)):
        seen = spy.seen[3 * number : 3 * number + 3]
        assert metrics["wire/down_bytes"] == sum(length(message) for (message, *_), _ in seen)
        assert metrics["wire/up_bytes"] == sum(length(answer) for _, (answer, *_) in seen)
        assert len(seen) == 3
        for (message, *_), (answer, *_) in seen:
            (asked, down), (told, up) = blocks(message), blocks(answer)
            client = asked["client"]
            assert len(down) == 2 + 4 * (held.get(client, 50_200) + 410)
            if told.get("pruned"):
                held[client] = round(experiment.plan.events[asked["events"]].density * 50_200)
                alive = held[client] / 50_200
                entropy = -alive * math.log2(alive) - (1 - alive) * math.log2(1 - alive)
                assert 0 < len(up) - (2 + 4 * (held[client] + 410)) < min(6_275, 6_275 * entropy + 100)
            else:
                assert len(up) == 2 + 4 * (held.get(client, 50_200) + 410)
            assert told["client"] == client and asked["round"] == number
    assert len(held) == 4


def test_each_client_is_evaluated_on_its_own_part_of_the_network(tiny, play):
    experiment = tiny(*LOTTERY, "eval_every=1")
    state, metrics = play(experiment)[-1]
    accuracies = []
    for client, mask in sorted(masks(state).items()):
        experiment.net.load_state_dict(apply(state.server.params, mask))
        indices = experiment.clients.test[client]
        outputs = experiment.net.eval()(experiment.dataset.normalise(experiment.dataset.x[indices]))
        accuracies.append(float((outputs.argmax(1) == experiment.dataset.y[indices]).float().mean()))
    assert len(accuracies) == 4
    assert metrics["client/accuracy_mean"] == pytest.approx(sum(accuracies) / 4)
    assert metrics["client/accuracy_min"] == pytest.approx(min(accuracies))
    densities = [count(mask) / 50_200 for mask in masks(state).values()]
    assert metrics["client/density_mean"] == pytest.approx(sum(densities) / 4)


def test_a_layer_that_a_client_loses_is_reported_with_its_name(tiny, play, caplog):
    overrides = ("whose=personal", "how_often=one_shot", "when=before_training", "density=0.0001", "rounds=1")
    with caplog.at_level(logging.WARNING):
        play(tiny(*overrides))
    lost = [record.getMessage() for record in caplog.records if "has lost its last unit" in record.getMessage()]
    assert any("of client" in text and "what.min_per_layer=1" in text for text in lost)


def test_the_state_before_a_round_stays_as_it_is_so_that_the_round_can_be_played_again(tiny, whole, differences):
    experiment, played = tiny(*LOTTERY), whole(LOTTERY)
    again, _ = experiment.loop(experiment.executor()).round(played[5][0])
    assert differences(again, played[6][0]) == []


def test_votes_are_about_what_was_trained_whatever_it_is_rewound_to(compose):
    # Whether everybody goes back to the start, or to round 1, comes after the vote; the mask is the same.
    masks = []
    for rewind in (("rewind=none",), ("rewind=init",), ("rewind=early", "rewind.round=1")):
        experiment = build(
            *compose(
                *("whose=voted", "how_often=one_shot", "when=during_training", "when.start=0.5", "criterion=magnitude"),
                *(
                    "what=weights_global",
                    "density=0.5",
                    "rounds=4",
                    "model=lenet_300_100",
                    "partition=iid",
                    "executor=serial",
                    *rewind,
                ),
                *("federated.clients=2", "federated.cohort=2", "local.epochs=null", "local.steps=3", "logger=none"),
            )
        )
        loop = experiment.loop(experiment.executor())
        state = loop.start()
        while not state.events:
            state, _ = loop.round(state)
        masks.append(state.server.mask)
    assert all(torch.equal(alive, other[name]) for other in masks[1:] for name, alive in masks[0].items())


def test_a_vote_counts_from_the_round_in_which_it_was_held():
    # Of round 4: an event 2 rounds on may happen in round 6, as if the server had pruned before round 4.
    told = UpdateSummary(Job(1, 4, 4, 0, Subnet(PARAMS, WHOLE), event=EVENTS[1]), HALF, 1.0, 1, True)
    after = Voted(by_magnitude).merged(at(5), PARAMS, [told], CONTEXT)
    assert (after.round, after.pruned, after.events) == (5, 4, 1)


def test_what_is_dead_stays_dead_in_a_vote_unless_units_are_exchanged():
    # Two of four live. Half of four, at random places: the same two again, but for an exchange, where any may come.
    start = State(Subnet(apply(PARAMS, HALF), HALF), PARAMS, PARAMS, round=5)
    draws = Draws(lambda: PARAMS, lambda name: torch.Generator().manual_seed(0))
    voted = Voted(functools.partial(by_layer_density, positions="random"))
    found = []
    for swap in (0.0, 0.5):
        job = Job(1, 4, 4, 0, start.server, event=PruneEvent(4, 0.5, swap))
        after = voted.merged(start, PARAMS, [UpdateSummary(job, HALF, 1.0, 1, True)], CONTEXT._replace(draws=draws))
        found.append(after.server.mask["w"])
    assert found[0].tolist() == HALF["w"].tolist() and found[1].tolist() != HALF["w"].tolist()


def test_the_effective_density_is_told_of_a_mask_that_was_voted_on(whole):
    rounds = whole(FEDDST)
    masks_after = [state.server.mask for state, _ in rounds]
    changed = [True, *(b is not a for a, b in itertools.pairwise(masks_after))]  # FedDST begins with a random mask
    assert 1 < sum(changed) < len(rounds)
    assert ["density/effective" in metrics for _, metrics in rounds] == changed


def test_what_a_client_keeps_is_merged_only_if_it_was_sent(tiny, play, equal):
    upload = ("federated/upload=top_difference", "federated.upload.density=0.1", "how_often=never", "rounds=2")
    own, shared = (play(tiny(*upload, *which)) for which in (("whose=personal", "whose.uncommon=own"), ()))
    assert equal(own[-1][0].server.params, shared[-1][0].server.params)
