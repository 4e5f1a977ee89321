"""A group of options: the class that says what an option of it is, and how one is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple


class Holder(NamedTuple):
    """The object that a user's bare formula belongs into. target: its class or function. role: its argument that takes the
    formula. pieces: the names of what a formula is called with. besides: what else it needs, as `strength=0.0001`."""

    target: str
    role: str
    pieces: Collection[str]
    besides: tuple[str, ...] = ()


class Group(NamedTuple):
    """A group of options. key: where the configuration has its node. base: the class that says what an option is. other:
    another such class. holder: of groups whose options hold formulas."""

    key: str
    base: type
    other: type | None = None
    holder: Holder | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return the names of what options are called with; none if they are not called."""
        call = vars(self.base).get("__call__")
        return tuple(inspect.signature(call).parameters)[1:] if call else ()

    @property
    def called(self) -> str:
        """Return the words for how an option is called."""
        return f"{self.key} is called with ({', '.join(self.arguments)})"

    @property
    def see(self) -> str:
        """Return the words for where the base class stands."""
        return f"see {self.base.__module__}.{self.base.__name__}"


def takes(function: Callable[..., object], arguments: Sequence[str], keys: Sequence[str] = ()) -> bool:
    """Return whether a function or class can be called with so many arguments, and keywords of these names."""
    try:
        inspect.signature(function).bind(*arguments, **dict.fromkeys(keys))
    except TypeError:
        return False
    except ValueError:  # of a function in C nobody knows
        return True
    return True
