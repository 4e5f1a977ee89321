"""Gates at work: the server asks at the end of a round, about the next event, of the merged network.

The answer holds for the start of the next round, at which the network is the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fedprune.federated.masks.personal import client_densities
from fedprune.pruning.event import Axes, Measure, dropped
from fedprune.pruning.evidence import needs
from fedprune.pruning.gate import shift
from fedprune.types import Gate, Mask, Plan, PruneEvent, State


def due_events(plan: Plan, state: State) -> tuple[PruneEvent, ...]:
    """Return the events whose rounds have come; under a gate, the next one alone, if it is let through."""
    events = tuple(event for event in plan.events[state.events :] if event.round <= state.round)
    return events if plan.gate is None else events[: int(state.opened)]


def next_gated_event(plan: Plan, state: State) -> PruneEvent | None:
    """Return the event that the gate is to be asked about now: early enough for its round, until it is too late."""
    if plan.gate is None or state.events == len(plan.events) or state.round >= plan.gate.stop:
        return None
    event = plan.events[state.events]
    soonest = max(event.round, state.pruned + plan.gate.apart) if state.events else event.round
    return event if state.round > soonest - plan.gate.opens.asks else None


def ask_gate(
    gate: Gate, event: PruneEvent, state: State, axes: Axes, measure: Measure, validation: Callable[[], Mapping[str, float]]
) -> tuple[State, dict[str, float]]:
    """Return the state that knows whether the event may happen, and the outcomes as metrics gate/*. Measure no others.

    validation: () -> outcomes on validation data: val_accuracy, if the task measures it, and val_metric, the task's own.
    """
    wanted = needs(gate.opens)
    candidate = dropped(state.server, event, axes, measure) if "mask_shift" in wanted else Mask()
    outcomes: dict[str, float] = {}
    if {"val_accuracy", "val_metric"} & {*wanted}:
        outcomes |= {name: value for name, value in validation().items() if name in wanted}
    if candidate and state.candidate:
        outcomes["mask_shift"] = shift(state.candidate, candidate, state.server.mask)
    opened = set(wanted) <= set(outcomes) and gate.opens(**outcomes)
    return replace(state, opened=opened, candidate=candidate), {f"gate/{name}": value for name, value in outcomes.items()}


def unmet(plan: Plan, state: State) -> str | None:
    """Return what to tell at the end of a run whose gate did not let all events through, or None."""
    if plan.gate is None or state.events == len(plan.events):
        return None
    ended = f"density {plan.events[state.events - 1].density:.4g}" if state.events else "dense"
    return (
        f"the gate ({plan.gate.opens}) let {state.events} of {len(plan.events)} prune events through: the run ends "
        f"{'at ' * bool(state.events)}{ended} instead of {plan.events[-1].density:.4g}; for more of them set "
        f"{plan.gate.opens.looser}, or more rounds"
    )


def unmet_by_clients(plan: Plan, state: State, clients: int, plans: Sequence[Plan] = ()) -> str | None:
    """Return what `unmet` does, where each of `clients` clients goes through the plan by itself: how many came to its end.
    plans: of each client, where they differ."""
    there = sum(done.events == len((plans[client] if plans else plan).events) for client, done in state.personal.items())
    if there == clients or not plan.events:
        return None
    gate = f"the gate ({plan.gate.opens}) let" if plan.gate else "the rounds that they were in let"
    looser = f"{plan.gate.opens.looser}, " if plan.gate else ""
    mean = statistics.fmean(client_densities(state, clients))
    end = "the density of their plans" if plans else f"density {plan.events[-1].density:.4g}"
    return (
        f"{gate} {there} of {clients} clients come to {end}: the run ends at a mean density of "
        f"{mean:.4g}; for more of them set {looser}more rounds, or a larger federated.cohort"
    )
