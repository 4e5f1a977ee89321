"""The cohort of a round, a function of (seed, round), so that a resumed run draws the clients it would have drawn.

Unseen clients are in no cohort.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from fedprune.pruning.what.top_k import nearest
from fedprune.randomness import numpy_stream

log = logging.getLogger(__name__)


def cohort(seed: int, round: int, clients: int, size: int, unseen: Sequence[int] = ()) -> tuple[int, ...]:
    """Draw `size` different clients of `clients` that are not among the unseen, uniformly. Return them in ascending order."""
    able = sampled(clients, unseen) if unseen else clients
    drawn = numpy_stream(seed, "cohort", round).choice(able, size=size, replace=False)
    return tuple(sorted(int(client) for client in drawn))


def sampled(clients: int, unseen: Sequence[int]) -> np.ndarray:
    """Return the clients of which cohorts are drawn, int64, ascending: all but the unseen."""
    return np.delete(np.arange(clients), unseen)


def unseen_clients(seed: int, clients: int, size: int, fraction: float) -> tuple[int, ...]:
    """Draw the nearest number to `fraction` of the clients, which are then in no cohort; in ascending order. size: of a cohort.

    If that leaves fewer than a cohort, or is nobody, nobody is drawn, and a warning says so.
    """
    number = nearest(fraction * clients)
    if fraction and not 0 < number <= clients - size:
        given = f"federated.unseen={fraction} of federated.clients={clients}"
        most = f"federated.cohort={clients - number} or less" if 0 < number < clients else "federated.unseen=0"
        least = f"is nobody: type federated.unseen={1 / clients:.3g}, or more clients"
        few = f"leaves {clients - number} for federated.cohort={size}: type {most}, or more clients"
        log.warning("%s %s; client/*_unseen_mean is left out", given, few if number else least)
        return ()
    drawn = numpy_stream(seed, "unseen").choice(clients, size=number, replace=False)
    return tuple(sorted(int(client) for client in drawn))
