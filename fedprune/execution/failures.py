"""Errors in a user's own code: a message says where in the run and where in the code one was raised."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from fedprune.errors import FedpruneError, RunError


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Raise a RunError in the place of any exception that is none of ours. where: whose doing it is, as `client 3 in round 2`.

    Want of memory passes: a worker that has none left ends, and another one tries again.
    """
    try:
        yield
    except FedpruneError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RunError(f"{where}: {type(error).__name__}: {error} ({place_of(error)})") from error


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception says that this process has no memory left; torch's is a RuntimeError."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def place_of(error: Exception) -> str:
    """Return the file, line and function that raised an exception; of several, the last that is in no installed package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}"
