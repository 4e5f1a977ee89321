"""Topologies: the neighbours of each client of a round, where there is no server.

Every topology is (client, active, seed, clock) -> the clients whose networks it is sent, in ascending order. active: those that
take part in this round, in ascending order; `client` is one of them, and never among its own neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

from fedprune.errors import ConfigError
from fedprune.randomness import numpy_stream

Topology = Callable[[int, tuple[int, ...], int, int], tuple[int, ...]]


def random(client: int, active: tuple[int, ...], seed: int, clock: int, number: int = 10) -> tuple[int, ...]:
    """Return `number` others, drawn anew for each client and round; all of them if there are not more. Dai et al. 2022."""
    if number < 1:
        raise ConfigError([f"federated.round.topology.number={number} is how many neighbours send their network: at least 1"])
    others = [other for other in active if other != client]
    drawn = numpy_stream(seed, "neighbours", clock, client).choice(others, min(number, len(others)), replace=False)
    return tuple(sorted(int(other) for other in drawn))


def alone(client: int, active: tuple[int, ...], seed: int, clock: int) -> tuple[int, ...]:
    """Return nobody: each client trains its own network, and nothing is exchanged."""
    return ()


def ring(client: int, active: tuple[int, ...], seed: int, clock: int) -> tuple[int, ...]:
    """Return the client before and the client after it in a circle of all that take part."""
    position = active.index(client)
    both = {active[position - 1], active[(position + 1) % len(active)]}
    return tuple(sorted(both - {client}))


def full(client: int, active: tuple[int, ...], seed: int, clock: int) -> tuple[int, ...]:
    """Return all others that take part."""
    return tuple(other for other in active if other != client)
