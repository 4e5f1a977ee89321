"""Where a round's time goes: by hand on a clock that is set by hand; in real rounds it adds up, and changes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fedprune import phase_clock
from fedprune.federated.client.round import ClientRound
from fedprune.phase_clock import PHASES, PREFIX, Clock

SNIP = ("how_often=one_shot", "when=before_training", "criterion=snip", "eval_every=2")


@pytest.fixture
def later(monkeypatch):
    """later(seconds): so much time has passed."""
    now = [100.0]
    monkeypatch.setattr(phase_clock.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


class Ticking:
    """A clock that goes one second further each time that the thread which made it looks at it; other threads only look."""

    def __init__(self) -> None:
        self.now, self._thread = 0.0, threading.get_ident()

    def __call__(self) -> float:
        self.now += threading.get_ident() == self._thread
        return self.now


@pytest.fixture
def ticking(monkeypatch) -> Ticking:
    """What `time.perf_counter` is meanwhile, so that no share of a round depends on the machine."""
    clock = Ticking()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_a_phase_is_what_is_done_inside_without_the_phases_inside_it(later):
    found = Clock()
    later(1)
    with found.phase("broadcast"):
        later(2)
        with found.phase("sampling"):
            later(4)
        later(8)
    later(16)
    with found.phase("merge"):
        later(32)
    later(64)
    assert found.seconds() == {"other": 1 + 16 + 64, "broadcast": 2 + 8, "sampling": 4, "merge": 32}


def broken_off(found: Clock, later) -> None:
    with found.phase("prune", whole=True):
        with found.phase("broadcast"):
            later(1)
        list(found.waiting(wait(later, 2, 3)))
        found.add({"train": 1000.0, "encode": 7.0})
        with found.phase("decode"):
            later(4)
            raise KeyError


def test_a_whole_phase_has_what_is_inside_it_too_even_if_it_breaks_off(later):
    found = Clock()
    with pytest.raises(KeyError):
        broken_off(found, later)
    with found.phase("decode"):
        later(8)
    assert found.seconds() == {"other": 0, "prune": 1 + 2 + 3 + 4, "decode": 8}


def wait(later, *seconds: float) -> Iterator[float]:
    for each in seconds:
        later(each)
        yield each


def test_what_is_waited_for_is_shared_out_among_what_workers_did_meanwhile(later):
    """Two workers, each busy for 10 s, of which the server waits for 8: it did something else in the other two."""
    found = Clock()
    with found.phase("merge"):
        for each in found.waiting(wait(later, 5, 3)):
            assert each in (5, 3)
            with found.phase("decode"):
                later(0.5)
            later(0.25)
            found.add({"decode": 1.0, "train": 7.0, "encode": 2.0})
    # 20 s of work: 2 of decoding, 14 of training, 4 of encoding; so 8 s of waiting are 0.8, 5.6 and 1.6.
    assert found.seconds() == pytest.approx(
        {"other": 0, "merge": 2 * 0.25, "decode": 2 * 0.5 + 0.8, "train": 5.6, "encode": 1.6}
    )
    assert found.metrics()[f"{PREFIX}train_s"] == pytest.approx(5.6)
    assert list(found.metrics()) == [f"{PREFIX}{name}_s" for name in PHASES]


def test_waiting_for_nobody_is_waiting(later):
    found = Clock()
    assert list(found.waiting(wait(later))) == []
    for _ in found.waiting(wait(later, 5)):
        later(1)
    assert found.seconds() == {"other": 1, "train": 5}


@pytest.mark.parametrize(
    "overrides",
    [
        SNIP,
        (*SNIP, "executor=processes", "executor.workers=2"),
        ("+experiment=dispfl", "data=digits", "model=lenet_300_100", "eval_every=2"),
    ],
    ids=["serial", "processes", "neighbours"],
)
def test_the_phases_of_a_round_add_up_to_it_and_profiling_changes_nothing(overrides, tiny, play, differences, compose, ticking):
    experiment, profiled = (made(tiny, compose, *overrides, f"profile={on}") for on in ("false", "true"))
    for (state, metrics), (other, others) in zip(play(experiment), play(profiled), strict=True):
        assert differences(state, other) == []
        assert without_times(metrics) == without_times(others)
        assert not any(key.startswith(PREFIX) for key in metrics)
        seconds = {name: others[f"{PREFIX}{name}_s"] for name in PHASES}
        assert sum(seconds.values()) == pytest.approx(others["time/round_s"] - 2)  # the first look, and the last
        assert all(seconds[name] > 0 for name in ("sampling", "broadcast", "decode", "train", "encode", "merge"))
        assert (seconds["evaluate"] > 0) is ("test/accuracy" in others)


def made(tiny, compose, *overrides: str):
    if not overrides[0].startswith("+"):
        return tiny(*overrides)
    from fedprune.experiment.build import build

    small = ("rounds=2", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2")
    return build(*compose(*overrides, *small, "local.batch_size=8", "logger=none", "executor=serial"))


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith((PREFIX, "time/"))}


@pytest.mark.parametrize(("kind", "phase"), [("measure", "prune"), ("train", "train"), ("evaluate", "evaluate")])
def test_the_time_of_evidence_is_of_pruning_and_that_of_a_client_of_training(kind, phase, tiny, monkeypatch, ticking):
    does, calls = getattr(ClientRound, kind), []

    def late(*arguments: Any) -> Any:
        ticking.now += 1e6
        calls.append(kind)
        return does(*arguments)

    monkeypatch.setattr(ClientRound, kind, late)
    experiment = tiny(*SNIP, "profile=true", "eval_every=1")
    loop = experiment.loop(experiment.executor())
    _, metrics = loop.round(loop.start())
    seconds = {name: round(metrics[f"{PREFIX}{name}_s"] / 1e6) for name in PHASES}
    assert len(calls) >= 2  # two clients, and at least as many slices of evaluation
    assert seconds == dict.fromkeys(PHASES, 0) | {phase: len(calls)}
