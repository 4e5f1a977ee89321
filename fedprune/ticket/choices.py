"""The keys of what a run starts from, checked alike for tickets and for files of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedprune.errors import ConfigError


def check_choices(group: str, values: Mapping[str, str], choices: Mapping[str, Sequence[str]], absent: str | None) -> None:
    """Raise ConfigError with every key of a group that has no such value; or that changes something that is not there.

    choices: the values of each key, the first of which changes nothing. absent: what is told of a key that has another value
    although there is no file; None if there is one.
    """
    problems = [
        f"{group}.{key}={value}: choose one of {', '.join(choices[key])}"
        for key, value in values.items()
        if value not in choices[key]
    ]
    if absent is not None and not problems:
        problems = [f"{group}.{key}={value} {absent}" for key, value in values.items() if value != choices[key][0]]
    if problems:
        raise ConfigError(problems)
