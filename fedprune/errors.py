"""Errors that the user can mend. Each message says what is wrong and what to type instead.

What a user's own code raises becomes one of them, too, with the file and the line: see `in_user_code`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 120


def printable(text: str) -> str:
    """Return a text with what a terminal would obey instead of show (colours, bells) as escapes; lines stay lines."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def shown(text: object) -> str:
    """Return a foreign name or value for a message: in one line, printable, and cut if it is long."""
    told = printable(str(text)[: LONGEST + 1]).replace("\n", "\\n")
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}..."


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


class FedpruneError(Exception):
    """An error that the user can mend. A command shows its message without a traceback, and exits with a non-zero status.

    Its text is printable, whatever names of files and tensors are in it.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(FedpruneError):
    """A configuration is wrong. The message lists all problems at once, found before the first batch."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        listed = "\n".join(f"- {problem}" for problem in problems)
        super().__init__(listed if len(problems) > 1 else problems[0])


class Incompatible(ConfigError):
    """Every option is valid, but together they are meaningless. A sweep skips such a cell, with its reason."""

    def __init__(self, *problems: str):
        super().__init__(list(problems))


class DataError(FedpruneError):
    """A data file is missing, damaged, or cannot be divided as asked."""


class RunError(FedpruneError):
    """A run cannot go on: a full disk, a damaged checkpoint, a client whose loss is not a number."""


class Damaged(RunError):
    """A file of a run is not what was written. why: a clause."""

    def __init__(self, path: object, why: object):
        self.why = str(why)
        super().__init__(f"{path} is damaged ({why}): remove it, or run with force=true to start anew")


class Unheard(RunError):
    """No client that was asked for evidence answered. One may answer the next time, so a prune event waits."""


class UserCodeError(RunError):
    """A user's own code raised something. The message has it in one line, with the file and the line."""


class NotANumber(RunError):
    """A score is NaN. layer: the name of the tensor that it is in."""

    def __init__(self, layer: str):
        self.layer = layer
        super().__init__(f"the criterion gave NaN for layer {layer.removesuffix('.weight')}")


@contextmanager
def in_user_code(where: str) -> Iterator[None]:
    """Raise a UserCodeError in the place of any exception that is none of ours.

    where: whose doing it is, as `client 3 in round 2`. Want of memory passes: a worker that has none left ends, and another
    one tries again.
    """
    try:
        yield
    except FedpruneError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserCodeError(f"{where}: {type(error).__name__}: {error} ({place_of(error)})") from error


def from_user_code(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was made of, was raised by a user's own code."""
    while error is not None and not isinstance(error, UserCodeError):
        error = error.__cause__
    return error is not None


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an exception says that this process has no memory left; torch's is a RuntimeError."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def place_of(error: Exception) -> str:
    """Return the file, line and function that raised an exception; of several, the last that is in no installed package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}"
