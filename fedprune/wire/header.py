"""The headers of messages: which keys they have, and of which types and within which bounds their values are.

The other end may send anything. So a header is bounded before it is read, and nothing of it is used before it is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from fedprune.errors import shown
from fedprune.types import Json

LONGEST = 2**20
"""Bytes of a header, at most. Those of our own have a few hundred."""

CONTROL, C = "carried", "c"
"""The names of a control in the header of a message."""

COMMON = "shared"
"""The word in the header of a job that brings common entries alone."""

Check = Callable[[object], bool]


def parsed(raw: bytes) -> Json:
    """Return the JSON object in these bytes. Raises ValueError for other bytes, and for a key that is there twice."""
    if len(raw) > LONGEST:
        raise ValueError(f"a header of {len(raw)} bytes, of at most {LONGEST}")
    try:
        header = json.loads(raw, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("a header that is nested too deep") from None
    if not isinstance(header, dict):
        raise ValueError(f"a header that is no JSON object, but a {type(header).__name__}")
    return header


def _once(pairs: list[tuple[str, object]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a header with the same key twice")
    return found


def whole(least: int = 0, below: int = 2**63) -> Check:
    """Return the check for a whole number from `least` on, and not a truth value."""
    return lambda value: type(value) is int and least <= value < below


def number(value: object) -> bool:
    """Return whether this is a number of JSON: NaN and infinities are some, whole numbers beyond any float are none."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def fraction(value: object) -> bool:
    """Return whether this is a number from 0 to 1."""
    return number(value) and 0 <= float(value) <= 1  # type: ignore[arg-type]  # it is a number


def true(value: object) -> bool:
    """Return whether this is True: what is false is not written."""
    return value is True


def one_of(*texts: str) -> Check:
    """Return the check for one of these texts."""
    return lambda value: isinstance(value, str) and value in texts


def names(value: object) -> bool:
    """Return whether this is a list of texts, none of them empty and none twice."""
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value) and len({*value}) == len(value)


def numbers(value: object) -> bool:
    """Return whether this is an object of numbers by name."""
    return isinstance(value, dict) and all(map(number, value.values()))


def logged(value: object) -> bool:
    """Return whether this is an object of pairs by name: a text (how it is reduced) and a number."""
    return isinstance(value, dict) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and number(pair[1]) for pair in value.values()
    )


def event(value: object) -> bool:
    """Return whether this is a prune event: its round, density and swap, and null or (i, n), the i-th of n blocks."""
    if not isinstance(value, list) or len(value) != 4 or not whole(-1)(value[0]):
        return False
    return fraction(value[1]) and fraction(value[2]) and (value[3] is None or _block(value[3]))


def _block(value: object) -> bool:
    pair = isinstance(value, list) and len(value) == 2 and all(map(whole(), value))
    return pair and value[0] < value[1]  # type: ignore[index]  # it is a list of two


def places(name: str, tensors: int) -> Check:
    """Return the check for {name: places}: different ones among so many tensors, and nothing else."""

    def fits(value: object) -> bool:
        if not isinstance(value, dict) or [*value] != [name] or not isinstance(value[name], list):
            return False
        return all(map(whole(0, tensors), value[name])) and len({*value[name]}) == len(value[name])

    return fits


OF_JOBS = {"client": whole(-1), "round": whole(), "clock": whole(), "seed": whole(-(2**63), 2**64)}
MAY_JOBS: dict[str, Check] = {
    **{"measure": names, "about": one_of("alive", "dead", "all"), "event": event, "events": whole()},
    **{COMMON: true, "newcomer": true},
}
OF_UPDATES: dict[str, Check] = {
    **{"client": whole(-1), "examples": whole(), "metrics": numbers, "evidence": names},
    **{"about": one_of("alive", "dead", "all", "top")},
}
MAY_UPDATES: dict[str, Check] = {"logged": logged, "pruned": true}
"""What headers have to have and may have: the checks by key."""


def checked_job(header: Json, tensors: int) -> None:
    """Raise ValueError if this is no header of a job. tensors: how many the layout has."""
    _check(header, OF_JOBS, MAY_JOBS | {CONTROL: places(C, tensors)})


def checked_update(header: Json, tensors: int) -> None:
    """Raise ValueError if this is no header of an update. tensors: how many the layout has."""
    _check(header, OF_UPDATES, MAY_UPDATES | {CONTROL: places(C, tensors)})


def _check(header: Json, needed: Mapping[str, Check], allowed: Mapping[str, Check]) -> None:
    """Raise ValueError if a header has not all of `needed`, or a key that is in neither, or a value that fails its check."""
    missing = [key for key in needed if key not in header]
    if missing:
        raise ValueError(f"its header has no {missing[0]}")
    for key, value in header.items():
        fits = needed.get(key) or allowed.get(key)
        if fits is None:
            raise ValueError(f"its header has a key that is none: {shown(key)}")
        if not fits(value):
            raise ValueError(f"its header has {key} {shown(json.dumps(value))}, which cannot be")
