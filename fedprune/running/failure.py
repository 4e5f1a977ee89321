"""Why a run has no result: failed.json in its folder, and error.log for what nobody expected."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedprune.errors import FedpruneError, Incompatible, RunError, from_user_code
from fedprune.running.earlier import FAILED
from fedprune.running.lock import is_held_by_another
from fedprune.storage.checkpoint import write_text
from fedprune.storage.history import SUMMARY

log = logging.getLogger(__name__)

OF_FAILURE = (FAILED, "error.log")
"""Files that a failed run leaves, and that go when it is resumed."""


@contextmanager
def noted(folder: Path, dry: bool = False) -> Iterator[None]:
    """Leave in a run's folder why it has no result, if an error is raised in the context; of a dry run, nothing. A folder to
    which another process writes is left alone."""
    try:
        yield
    except Exception as error:
        if not dry and not is_held_by_another(folder):
            _fail(folder, error)
        raise


def _fail(folder: Path, error: Exception) -> None:
    """Write down why there is no result. A run that is done stays so, whatever is asked of its folder later."""
    expected = isinstance(error, FedpruneError)
    if not expected or from_user_code(error):
        _write_traceback(folder)
    if from_user_code(error):
        log.info("the whole traceback is in %s", folder / "error.log")
    if (folder / SUMMARY).exists():
        return
    status = "skipped" if isinstance(error, Incompatible) else "failed"
    reason = str(error) if expected else f"{type(error).__name__}: {error}"
    with suppress(RunError):  # on a full disk the reason is on the screen all the same
        write_text(folder / FAILED, json.dumps({"status": status, "reason": reason}, indent=2) + "\n")


def _write_traceback(folder: Path) -> None:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.log").write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
