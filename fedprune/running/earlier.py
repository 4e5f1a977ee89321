"""The run that was begun in a folder before, and runs beside it that differ in code or data only."""

from __future__ import annotations

import glob
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fedprune.errors import Damaged, RunError
from fedprune.identity.changes import changes
from fedprune.run_id import RunId
from fedprune.storage import digest
from fedprune.storage.history import SUMMARY

if TYPE_CHECKING:  # importing it takes torch's second, and most results are only looked into
    from fedprune.types import Json

STATE, FAILED = "state/state.safetensors", "failed.json"


def refuse_another(folder: Path, which: RunId) -> None:
    """Raise RunError if the folder holds results of another run, as one that is named by hand may."""
    begun, before = any((folder / name).exists() for name in (SUMMARY, STATE)), described(folder)
    if begun and before.get("id") not in (None, which.digest):
        same = before.get("id_of_config") == which.of_config
        since = f" ({changes(before['inputs'], which.inputs)} since)" if same else ""
        raise RunError(
            f"{folder} holds another run, that of config.yaml there{since}: type another hydra.run.dir, or none, or force=true "
            "to put this one in its place"
        )


def changed_since(folder: Path, which: RunId) -> str | None:
    """Return a line about the latest run of the same configuration beside this one that had other code or data; None if there
    is none."""
    if (folder.exists() and any(folder.iterdir())) or not any(asdict(which.inputs).values()):
        return None
    words = glob.escape(folder.name.removesuffix(which.digest))
    beside = sorted(folder.parent.glob(f"{words}????????/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for other in (path.parent for path in beside):
        before = described(other)
        if before.get("id_of_config") == which.of_config and before["id"] != which.digest:
            return f"not the run of {other}: {changes(before['inputs'], which.inputs)} since"
    return None


def described(folder: Path) -> Json:
    """Return run.json of the run that was begun here; nothing if there is none, or it is damaged."""
    with suppress(OSError, ValueError):
        return digest.from_json((folder / "run.json").read_bytes())
    return {}


def failure(folder: Path) -> Json:
    """Return why a run has no result, its `status` and `reason`; nothing if no one has written that down."""
    if not (folder / FAILED).exists():
        return {}
    try:
        return digest.load_json(folder / FAILED)
    except Damaged as error:
        return {"status": "failed", "reason": str(error)}
