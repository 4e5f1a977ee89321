"""A run goes on from its newest checkpoint that is whole, and only from what it can prove.

A checkpoint has a digest and the lines of metrics.jsonl until then, so that lines that are damaged or lost come back from it.
The one before it is kept until the run has ended. A checkpoint that is damaged is set aside and named. Without any the run
begins anew, and comes to the same result.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fedprune.errors import Damaged, RunError
from fedprune.experiment.experiment import Experiment
from fedprune.running.display import console
from fedprune.running.earlier import STATE
from fedprune.storage import digest, history
from fedprune.storage.checkpoint import Saved, load_saved, replace_file, save_state, write_text
from fedprune.storage.history import METRICS, SUMMARY
from fedprune.tensors import tensors_of
from fedprune.types import State

log = logging.getLogger(__name__)

PREVIOUS, DAMAGED = "state/previous.safetensors", "state/damaged.safetensors"


def save(folder: Path, state: State, lines: bytes | bytearray, run: str) -> None:
    """Write a checkpoint, and keep the one before it. Raises RunError if the disk refuses.

    lines: those of metrics.jsonl. run: the run's id. There are never more than two, and a part of one: as much room as it takes
    to replace a single one and to have the last one beside it.
    """
    _keep(folder / STATE, folder / PREVIOUS)
    save_state(state, folder / STATE, bytes(lines), run)


def _keep(newest: Path, previous: Path) -> None:
    """Give a checkpoint the name of the one before, as well as its own: so there is one under its own name at any time."""
    with suppress(OSError):  # if the disk refuses, the checkpoint itself will say so
        if newest.exists():
            previous.unlink(missing_ok=True)
            try:
                os.link(newest, previous)
            except OSError:  # a file system without hard links
                os.replace(newest, previous)


def resumed(folder: Path, experiment: Experiment) -> tuple[State | None, bytearray]:
    """Return the state to go on from, and the lines of its rounds. Raise RunError if it is not one of this network."""
    state, lines = resume(folder)
    shapes = {name: tensor.shape for name, tensor in tensors_of(experiment.net).items()}
    if state and (
        {name: t.shape for name, t in state.server.params.items()} != shapes
        or tuple(state.server.mask) != experiment.axes.what.names
    ):
        raise RunError(f"{folder / STATE} is the checkpoint of another network: run with force=true to start anew")
    return state, bytearray(lines)


def resume(folder: Path) -> tuple[State | None, bytes]:
    """Return the state to go on from (None: from the start), and the lines of metrics.jsonl until then, which are what is there
    from now on. Raises RunError for a checkpoint that cannot be read, or is of another run."""
    saved, content = _newest(folder), _content(folder)
    if saved is None:
        if content:
            console.print(f"there is no checkpoint of the rounds in {folder / METRICS}: they are done again")
        return None, _put(folder, b"", content)
    state, lines = (
        (saved.state, _first(saved.lines, saved.state.round))
        if saved.lines is not None
        else _proven(saved.state, content, folder)
    )
    if saved.lines is not None and not content.startswith(lines):
        log.warning(
            "%s: %s. The lines of the first %s rounds come back from the checkpoint",
            folder / METRICS,
            _why(content),
            saved.state.round,
        )
    return state, _put(folder, lines, content)


def put_right(folder: Path, lines: bytearray) -> None:
    """Write metrics.jsonl again if it does not hold these lines, which a run has written one by one."""
    if _content(folder) != lines:
        log.warning("%s is not what this run wrote, and is written again", folder / METRICS)
        replace_file(folder / METRICS, bytes(lines))


def end(folder: Path, results: Mapping[str, object], lines: bytearray) -> None:
    """Write the summary, by which the run is done, once all else is on the disk; it has the digest of the lines, too."""
    for place in ((folder / STATE).parent, folder):
        _settle(place)
    write_text(folder / SUMMARY, digest.to_json({**results, METRICS: digest.of_bytes(bytes(lines))}))
    _settle(folder)
    (folder / PREVIOUS).unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Have the names of a folder's files on the disk, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _newest(folder: Path) -> Saved | None:
    """Return the newest checkpoint that is whole; None if there is none. Damaged ones are named and set aside."""
    newest, previous = folder / STATE, folder / PREVIOUS
    saved = _whole(newest, folder)
    if saved is None and previous.exists():
        if not (folder / DAMAGED).exists():
            log.warning("%s is missing", newest)
        saved = _whole(previous, folder)
        if saved is not None:
            log.warning("going on from the checkpoint before it, of %s rounds", saved.state.round)
    return saved


def _whole(path: Path, folder: Path) -> Saved | None:
    try:
        return load_saved(path) if path.exists() else None
    except Damaged as error:
        os.replace(path, folder / DAMAGED)
        log.warning("%s is damaged (%s): it is set aside as %s", path, error.why, folder / DAMAGED)
        return None


def _proven(state: State, content: bytes, folder: Path) -> tuple[State | None, bytes]:
    """Return what a checkpoint without lines goes on from: the start, unless the rounds until then are all there."""
    lines = _first(content, state.round)
    found = history.read(lines)
    if not found.problems and [row["round"] for row in found.rows] == [*range(state.round)]:
        return state, lines
    why = _why(content)
    log.warning("%s: %s, and the checkpoint of %s rounds has no copy: they are done again", folder / METRICS, why, state.round)
    return None, b""


def _why(content: bytes) -> str:
    """Say what is wrong with lines that are not those of a checkpoint."""
    found = history.read(content)
    return "; ".join(found.problems) or f"it has {len(found.rows)} rounds, which are not what the run wrote"


def _first(lines: bytes, number: int) -> bytes:
    return b"".join(lines.splitlines(keepends=True)[:number])


def _content(folder: Path) -> bytes:
    path = folder / METRICS
    return path.read_bytes() if path.exists() else b""


def _put(folder: Path, lines: bytes, content: bytes) -> bytes:
    """Write metrics.jsonl if it holds something else, and return what it holds."""
    if content != lines or not (folder / METRICS).exists():
        replace_file(folder / METRICS, lines)
    return lines
