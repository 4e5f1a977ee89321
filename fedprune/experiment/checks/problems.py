"""Problems: collected while a configuration is read, so that all are reported together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

from fedprune.errors import ConfigError, DataError, Incompatible, RunError

P = ParamSpec("P")
T = TypeVar("T")

Names = Mapping[str, str]
"""The chosen option of each group."""


class Problems:
    """Collects problems, so that all are reported together."""

    def __init__(self) -> None:
        self._wrong: list[str] = []
        self._incompatible: list[str] = []
        self._cause: RunError | None = None  # the first that has one, for its traceback

    def attempt(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the function's value. If it raises a problem, note that and return None: call `stop_if_any` before using
        it."""
        try:
            return function(*args, **kwargs)
        except Incompatible as error:
            self._incompatible += error.problems
        except ConfigError as error:
            self._wrong += error.problems
        except DataError as error:
            self._wrong.append(str(error))
        except RunError as error:
            self._wrong.append(str(error))
            self._cause = self._cause or error
        return None  # type: ignore[return-value]  # a problem is noted, and `stop_if_any` raises

    def add(self, problems: Iterable[str]) -> None:
        """Note problems of single values."""
        self._wrong += problems

    def add_incompatible(self, problems: Iterable[str]) -> None:
        """Note problems of combinations of values, each of which is fine."""
        self._incompatible += problems

    def stop_if_any(self) -> None:
        """Raise ConfigError with all problems so far; Incompatible if only combinations are at fault."""
        if self._wrong:
            raise ConfigError(self._wrong + self._incompatible) from self._cause
        if self._incompatible:
            raise Incompatible(*self._incompatible)
