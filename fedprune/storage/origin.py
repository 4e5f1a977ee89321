"""Tell a file that was put in the place of another one: its run is not that of the folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from fedprune.storage import digest


def another_run(folder: Path, of: str | None) -> str | None:
    """Return, as a clause, that a file is of another run than the folder; None if it is not, or one of them does not say.

    of: the id of the file's run.
    """
    with suppress(OSError, ValueError):
        here = digest.from_json((folder / "run.json").read_bytes()).get("id")
        if of and here and of != here:
            return f"it is of the run {of}, and {folder} is that of the run {here}"
    return None
