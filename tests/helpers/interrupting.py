"""A run is stopped where a test wants it, as late as it can come: when the line of a round is about to be written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from fedprune.running import loggers


@contextmanager
def raised(error: type[BaseException], when: Callable[[Path, dict[str, float]], bool]) -> Iterator[None]:
    """In the context an error is raised in the place of the first line for which `when(folder, metrics)` is true."""
    append = loggers.append

    def appended_or_raised(folder: Path, metrics: dict[str, float]) -> None:
        if when(folder, metrics):
            raise error
        append(folder, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loggers, "append", appended_or_raised)
        yield


def raised_in(number: int, error: type[BaseException] = KeyboardInterrupt) -> AbstractContextManager[None]:
    """The same for the round of this number."""
    return raised(error, lambda _, metrics: metrics["round"] == number)
