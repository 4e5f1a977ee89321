"""The cohort of a round: a function of (seed, round), so that a resumed run draws the clients it would have drawn."""

from __future__ import annotations

from fedprune.randomness import numpy_stream


def cohort(seed: int, round: int, clients: int, size: int) -> tuple[int, ...]:
    """Draw `size` different clients of `clients`, uniformly. Return them in ascending order."""
    drawn = numpy_stream(seed, "cohort", round).choice(clients, size=size, replace=False)
    return tuple(sorted(int(client) for client in drawn))
