"""Users of a data set who have too few examples to be clients: by name and number, with what to type."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedprune.data.partition import Division

SHOWN = 5
"""So many users are named, from the poorest on, and the others are counted."""


def too_few(groups: np.ndarray, users: tuple[str, ...], how: Division) -> str | None:
    """Return who has too few examples to be a client, and what to type to have them; None if nobody has, or if users have no
    names.

    groups: the number of the user of each example that clients may have, as an index into `users`.
    """
    sizes = np.bincount(groups, minlength=len(users))
    poor = [int(number) for number in np.argsort(sizes, kind="stable") if sizes[number] < how.needed]
    if not users or not poor:
        return None
    named = ", ".join(f"{users[number]} ({sizes[number]})" for number in poor[:SHOWN])
    more = f" and {len(poor) - SHOWN} more" if len(poor) > SHOWN else ""
    count = f"{len(poor)} of {len(users)} users have fewer than {how.needed} examples and are no clients: {named}{more}"
    return f"{count}: {_to_type(int(sizes[poor[0]]), how)}"


def _to_type(fewest: int, how: Division) -> str:
    """Return what to type so that more users are clients. fewest: the examples of the poorest."""
    least = replace(how, min_examples=0).needed
    if how.min_examples > max(fewest, least):
        return f"type partition.min_examples={max(fewest, least)}"
    return "partition.val=0 partition.test=0 partition.min_examples=1 gives each of them one to train on"
