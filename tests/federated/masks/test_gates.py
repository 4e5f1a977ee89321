"""Gated runs: when a gate is asked, what it lets through, and what is said about events that never came."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fedprune.federated.masks.gates import next_gated_event, unmet, unmet_by_clients
from fedprune.pruning.gate import Accurate, Settled, shift
from fedprune.pruning.how_often import SHAPES
from fedprune.pruning.mask import apply, count
from fedprune.running.display import plan_text
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import Gate, Personal, Plan, PruneEvent, State, Subnet

OPEN, SHUT = ("when=once_accurate", "when.accuracy=0.0"), ("when=once_accurate", "when.accuracy=1.0", "local.optimizer.lr=1e-9")
SETTLED = ("when=once_settled", "when.shift=1.0")
STEPS = ("how_often=stepwise", "how_often.rate=0.5", "density=0.25", "rounds=8")  # two events


def pruned_in(played) -> list[int]:
    """The rounds (0-based) that began with an event."""
    return [state.round - 1 for state, _ in played if state.pruned == state.round - 1 and state.events]


# --- when a gate is asked --------------------------------------------------------------------------------------------------


def at(round: int, events: int = 0, pruned: int = 0) -> State:
    return State(Subnet({}, {}), {}, {}, round=round, events=events, pruned=pruned)


@pytest.mark.parametrize(
    ("opens", "apart", "state", "asked"),
    [
        # Events at the earliest after 3 and 5 rounds, none from 8 on. Accuracy is asked when the event could happen.
        (Accurate(0.5), 1, at(2), None),
        (Accurate(0.5), 1, at(3), 0),
        (Accurate(0.5), 1, at(7), 0),
        (Accurate(0.5), 1, at(8), None),
        # The first came after 3, or was delayed to after 6: the second follows at its own earliest, or a round later.
        (Accurate(0.5), 1, at(4, events=1, pruned=3), None),
        (Accurate(0.5), 1, at(5, events=1, pruned=3), 1),
        (Accurate(0.5), 1, at(7, events=1, pruned=6), 1),
        (Accurate(0.5), 2, at(6, events=1, pruned=5), None),
        (Accurate(0.5), 2, at(7, events=1, pruned=5), 1),
        (Accurate(0.5), 1, at(7, events=2, pruned=6), None),
        # A shift takes two rounds to tell, so the first of them is the one before.
        (Settled(0.1), 2, at(1), None),
        (Settled(0.1), 2, at(2), 0),
        (Settled(0.1), 2, at(3), 0),
        (Settled(0.1), 2, at(4, events=1, pruned=3), 1),
        (Settled(0.1), 3, at(5, events=1, pruned=4), None),
        (Settled(0.1), 3, at(6, events=1, pruned=4), 1),
    ],
)
def test_when_an_event_is_waited_for(opens, apart, state, asked):
    plan = Plan((PruneEvent(3, 0.5), PruneEvent(5, 0.25)), 10, Gate(opens, 8, apart))
    assert next_gated_event(plan, state) == (None if asked is None else plan.events[asked])
    assert next_gated_event(Plan(plan.events, 10), state) is None


# --- runs ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how_often",
    [
        ("how_often=one_shot",),
        ("how_often=iterative", "how_often.rate=null", "how_often.times=3"),
        *(("how_often=gradual", "how_often.every=2", f"how_often.shape={shape}") for shape in SHAPES),
        ("how_often=stepwise", "how_often.rate=0.6"),
        ("how_often=stepwise", "how_often.rate=0.6", "how_often.every=3"),
    ],
    ids=lambda overrides: "-".join(override.partition("=")[2] for override in overrides),
)
@pytest.mark.parametrize("when", [OPEN, SETTLED], ids=["accurate", "settled"])
def test_behind_an_open_gate_every_event_comes_at_its_earliest(when, how_often, tiny, play):
    experiment = tiny(*when, *how_often, "rounds=9")
    played = play(experiment)
    assert pruned_in(played) == [event.round for event in experiment.plan.events]
    assert played[-1][0].events == len(experiment.plan.events)
    assert count(played[-1][0].server.mask) == round(0.3 * 50_200)
    assert unmet(experiment.plan, played[-1][0]) is None


def test_what_a_gate_never_lets_through_does_not_happen(tiny, play):
    experiment = tiny(*SHUT, *STEPS)
    state, metrics = play(experiment)[-1]
    assert (state.events, metrics["prune/events"], metrics["density/weights"]) == (0, 0, 1.0)
    assert unmet(experiment.plan, state) == (
        "the gate (val accuracy >= 1) let 0 of 2 prune events through: the run ends dense instead of 0.25; "
        "for more of them set a lower when.accuracy, or more rounds"
    )
    assert "ends at density 0.5 instead" in unmet(experiment.plan, at(8, events=1))


def test_accuracy_is_that_on_validation_data_asked_only_while_an_event_waits(tiny, play):
    experiment = tiny(*OPEN, "when.accuracy=0.6", *STEPS, "how_often.every=3", "eval_every=1", "rounds=14", "local.steps=5")
    played = play(experiment)
    gate, rounds = experiment.plan.gate, pruned_in(played)
    assert gate is not None and len(rounds) == 2
    for state, metrics in played:
        asked = "gate/val_accuracy" in metrics
        next_one = [1, rounds[0] + 3, math.inf][state.events]
        assert asked == (next_one <= state.round < gate.stop)
        if asked:
            assert metrics["gate/val_accuracy"] == metrics["val/accuracy"] != metrics["test/accuracy"]
            assert state.opened == (metrics["val/accuracy"] >= 0.6) == (state.round in rounds)
    assert rounds[0] > 1  # it had to wait, or nothing is shown


def test_a_gate_is_never_shown_test_data(tiny, play, differences):
    """With the labels of all test data exchanged, everything that a gated run does is the same."""
    experiment = tiny(*OPEN, "when.accuracy=0.6", *STEPS, "rounds=6", "eval_every=1")
    y, test_y = experiment.dataset.y.clone(), (experiment.dataset.test_y + 1) % 10
    own = torch.cat(experiment.clients.test)
    y[own] = (y[own] + 1) % 10
    blind = replace(experiment, dataset=replace(experiment.dataset, y=y, test_y=test_y))
    for (state, metrics), (other, others) in zip(play(experiment), play(blind), strict=True):
        assert differences(state, other) == []
        assert metrics["test/accuracy"] != others["test/accuracy"]
        assert metrics.get("gate/val_accuracy") == others.get("gate/val_accuracy")


def test_the_shift_is_that_of_the_masks_that_would_have_been_chosen_in_two_rounds(tiny, play):
    experiment = tiny("when=once_settled", "when.shift=0.0", "how_often=one_shot", "rounds=5")
    played = play(experiment)
    before = None
    for state, metrics in played[:-1]:
        weights = {name: state.server.params[name] for name in state.server.mask}
        flat = torch.cat([w.abs().flatten() for w in weights.values()])
        threshold = flat.sort(descending=True)[0][15_060 - 1]  # 0.3 x 50,200 are kept
        chosen = {name: w.abs() >= threshold for name, w in weights.items()}
        assert all(torch.equal(chosen[name], alive) for name, alive in state.candidate.items())
        if before is not None:
            assert metrics["gate/mask_shift"] == shift(before, chosen, state.server.mask) > 0
        else:
            assert "gate/mask_shift" not in metrics
        before = chosen
    assert played[-1][0].events == 0


def test_a_mask_that_never_moves_opens_as_soon_as_that_can_be_told(tiny, play):
    experiment = tiny("when=once_settled", "when.shift=0.0", "criterion=random", *STEPS)
    played = play(experiment)
    assert pruned_in(played) == [2, 4]
    assert all(metrics["gate/mask_shift"] == 0.0 for _, metrics in played if "gate/mask_shift" in metrics)
    for (before, _), (after, _) in pairwise(played):
        if before.opened:  # what is pruned is what was about to be
            assert all(torch.equal(before.candidate[name], alive) for name, alive in after.server.mask.items())
            assert after.candidate.keys() in (set(), before.candidate.keys())


def test_evidence_that_a_gate_asks_of_clients_is_counted_in_the_bytes(tiny, play):
    quiet, asked = (
        play(tiny(*when, "when.start=0.5", "how_often=one_shot", "criterion=snip", "rounds=4"))
        for when in (OPEN, ("when=once_settled", "when.shift=0.0"))
    )
    assert quiet[1][1]["wire/up_bytes"] < asked[1][1]["wire/up_bytes"] - 2 * 4 * 50_000  # float32 from two clients
    for played in (quiet, asked):
        assert played[-1][0].up_bytes == sum(metrics["wire/up_bytes"] for _, metrics in played)


def test_everything_is_evaluated_right_before_a_gated_event(tiny, play):
    experiment = tiny(*OPEN, *STEPS, "how_often.every=3", "eval_every=100")
    evaluated = [metrics["round"] + 1 for _, metrics in play(experiment) if "test/accuracy" in metrics]
    assert evaluated == [1, 4, 8]  # events after 1 and 4 rounds, and the end


@pytest.mark.parametrize("when", [OPEN, SETTLED], ids=["accurate", "settled"])
def test_a_gated_ticket_goes_back_to_the_start_in_the_middle_of_the_one_run(when, tiny, play, equal):
    experiment = tiny(*when, *STEPS, "rewind=init", "how_often.every=3")
    played = play(experiment)
    rounds = pruned_in(played)
    clocks = [state.clock for state, _ in played]
    assert rounds == {OPEN: [1, 4], SETTLED: [2, 5]}[when]
    assert clocks == [*range(1, rounds[0] + 1), 1, 2, 3, *range(1, 9 - rounds[1])]
    for round in rounds:
        state = played[round][0]
        assert equal(state.ticket, apply(state.init, state.server.mask))


@pytest.mark.parametrize("when", [("when=once_accurate", "when.accuracy=0.5"), ("when=once_settled", "when.shift=0.03")])
def test_a_gated_run_goes_on_from_any_checkpoint_bit_for_bit(when, tiny, play, tmp_path, differences):
    experiment = tiny(*when, *STEPS, "rewind=init", "federated=fedavgm", "federated.clients=4", "federated.cohort=2")
    played = play(experiment)
    assert played[-1][0].events > 0
    for reached, _ in played[:-1]:
        save_state(reached, tmp_path / "state.safetensors")
        (after, _), *_ = play(experiment, state=load_state(tmp_path / "state.safetensors"), stop=reached.round + 1)
        assert differences(after, played[reached.round][0]) == []


# --- the command line ------------------------------------------------------------------------------------------------------

SMALL = (
    *("rounds=4", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("logger=none", "executor=serial", "density=0.5", "how_often=one_shot"),
)


def test_a_run_says_what_it_waits_for_and_what_never_came(command, folder):
    result = command(*SMALL, "when=once_accurate", "when.accuracy=1.0")
    assert result.rc == 0, result.text
    assert "once val accuracy >= 1, at the earliest after round     1: density 0.5" in result.out
    assert "let 0 of 1 prune events through: the run ends dense instead of 0.5; for more of them set a lower" in result.text
    plan = json.loads((folder() / "run.json").read_text())["plan"]
    assert plan["gate"] == "val accuracy >= 1"
    summary = json.loads((folder() / "summary.json").read_text())["metrics"]
    assert (summary["prune/events"], summary["density/weights"]) == (0, 1.0)
    shutil.rmtree(Path("outputs"))
    result = command(*SMALL, "when=once_settled", "when.shift=1.0")
    assert result.rc == 0 and "prune events through" not in result.text
    rows = [json.loads(line) for line in (folder() / "metrics.jsonl").read_text().splitlines()]
    assert [row["density/weights"] for row in rows] == [1.0, 1.0, 0.5, 0.5]


def test_validation_data_that_nobody_has_is_asked_for_by_name(command):
    result = command(*SMALL, "when=once_accurate", "partition.val=0")
    assert result.rc != 0
    assert "when=once_accurate looks at the clients' validation data, and partition.val=0 leaves none" in result.text
    assert command(*SMALL, "when=once_accurate", "partition.val=0", "how_often=never").rc == 0


def test_a_dry_run_counts_evidence_for_every_time_that_a_gate_must_ask(command):
    once, gated = (
        command(*SMALL, f"when={when}", "criterion=snip", "dry_run=true").out for when in ("during_training", "once_settled")
    )
    assert "gate" in gated and "mask shift <= 0.1; the costs are those of events at their earliest" in gated
    lines = [next(line for line in out.splitlines() if "bytes of evidence" in line).split() for out in (once, gated)]
    cost = [float(number) * {"kB": 1e3, "MB": 1e6}[unit] for *_, number, unit in lines]
    assert cost[1] == pytest.approx(3 * cost[0], rel=0.01)  # twice for the shift, once for the event


def test_of_clients_with_masks_of_their_own_it_is_said_how_many_came_to_the_end():
    # Of 4 clients two are done, at 2 of 8 entries; one is half-way, at 4 of 8; one never began: (0.25 + 0.25 + 0.5 + 1) / 4 =
    # 0.5.
    plan = Plan((PruneEvent(1, 0.5), PruneEvent(2, 0.25)), 8, Gate(Accurate(0.5), 8, 1))
    own = {0: Personal(b"\x03", 2, 4), 2: Personal(b"\x81", 2, 5), 3: Personal(b"\x0f", 1, 6)}
    state = State(Subnet({}, {"w": torch.ones(8, dtype=torch.bool)}), {}, {}, round=8, personal=own)
    assert unmet_by_clients(plan, state, 4) == (
        "the gate (val accuracy >= 0.5) let 2 of 4 clients come to density 0.25: the run ends at a mean density of 0.5; "
        "for more of them set a lower when.accuracy, more rounds, or a larger federated.cohort"
    )
    assert "the rounds that they were in let 2 of 4 clients come" in unmet_by_clients(replace(plan, gate=None), state, 4)
    done = replace(state, personal=dict.fromkeys(range(4), own[0]))
    assert unmet_by_clients(plan, done, 4) is None
    assert unmet_by_clients(Plan((), 8), state, 4) is None
    # Where plans differ, each client is done at the end of its own: client 0 here, client 2 has one event to go.
    longer = replace(plan, events=(*plan.events, PruneEvent(3, 0.125)))
    apart = unmet_by_clients(plan, state, 4, (plan, plan, longer, plan))
    assert apart is not None and "let 1 of 4 clients come to the density of their plans: the run ends" in apart
    assert unmet_by_clients(plan, done, 4, (plan,) * 4) is None


def test_a_plan_of_personal_masks_says_that_each_client_has_its_own_time():
    plan = Plan((PruneEvent(3, 0.5),), 8, Gate(Accurate(0.5), 8, 1))
    event = plan_text(plan, "", own=True).splitlines()[1]
    assert event == "  once val accuracy >= 0.5, each client in its own time, at the earliest after round     3: density 0.5"
    event = plan_text(replace(plan, gate=None), "", own=True).splitlines()[1]
    assert event == "  each client in its own time, at the earliest after round     3: density 0.5"
