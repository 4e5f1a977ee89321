"""Data sets of time series: windows of steps, in all axes of a sensor. Each has a loader `(root: str, ...) -> Dataset`."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedprune.data.cache import cached
from fedprune.data.datasets import Dataset
from fedprune.data.formats import damaged, unpickled
from fedprune.data.sources import WATCH, obtain, to_type
from fedprune.errors import ConfigError, DataError

AXES = 6
_MEMBER = "seglearn/data/watch_dataset.npy"
# zipfile raises RuntimeError for a member whose damaged header says that it is encrypted, or of an unknown compression.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, RuntimeError)


@dataclass(frozen=True)
class Series:
    """One recording: steps float32 [T, 6], the number of its exercise, its subject, and the arm (0 left, 1 right)."""

    steps: np.ndarray
    label: int
    subject: int
    arm: int

    @property
    def held_out(self) -> bool:
        """Return whether the recording is tested on: of a subject and exercise it is one arm, of their neighbours the other."""
        return self.arm == (self.subject + self.label) % 2


@cached(WATCH, Dataset)
def watch(root: str, steps: int = 128) -> Dataset:
    """Return seven exercises of the shoulder by ten subjects, as a smartwatch records them: 6x1x`steps` (Burns et al. 2018).

    The six channels are acceleration and angular velocity in three axes, at 50 Hz. Each subject did each exercise twenty times
    with either arm, which gives 140 recordings of 947 to 2,618 steps. A recording is cut from its start into windows without
    overlap; the rest at its end is not used. Of each subject and exercise, the recording of one arm is in the global test set
    (the left one if the numbers of subject and exercise add up to an even number), so no window of it is trained on, and both
    sets have both arms. `groups` are the subjects. mean and std are those of the training windows.

    Raises ConfigError if `steps` is no length, DataError for a missing or damaged file, with what to type.
    """
    if steps < 1:
        raise ConfigError([f"data.steps={steps} is the length of a window: type a whole number from 1"])
    (path,) = obtain(WATCH, root)
    remedy = f"and {to_type(WATCH, Path(root).expanduser())}"
    recordings, exercises = read_series(path, remedy)
    train, test = ([each for each in recordings if each.held_out == held_out] for held_out in (False, True))
    shortest = min(len(each.steps) for each in recordings)
    if steps > shortest:
        raise ConfigError([f"data.steps={steps} is longer than the shortest recording: type {shortest} or less"])
    x, test_x = (torch.cat([windows(each.steps, steps) for each in part]) for part in (train, test))
    y, test_y = (_for_each_window([each.label for each in part], part, steps) for part in (train, test))
    subjects = sorted({each.subject for each in recordings})
    groups = _for_each_window([subjects.index(each.subject) for each in train], train, steps)
    mean, std = (tuple(values.tolist()) for values in (x.mean((0, 2, 3)), x.std((0, 2, 3), correction=0)))
    users = tuple(f"subject {subject}" for subject in subjects)
    parts = (x, y, test_x, test_y, len(exercises), mean, std)
    return Dataset("watch", *parts, groups=groups, users=users, class_names=exercises)


def windows(series: np.ndarray, steps: int) -> Tensor:
    """Cut a series [T, axes] from its start into windows, float32 [T // steps, axes, 1, steps]."""
    whole = len(series) // steps
    cut = torch.from_numpy(series[: whole * steps]).reshape(whole, steps, series.shape[1])
    return cut.transpose(1, 2)[:, :, None].contiguous()


def read_series(path: Path, remedy: str) -> tuple[list[Series], tuple[str, ...]]:
    """Return the recordings, in the order of the file, and the names of the exercises.

    path: the wheel of seglearn, or its file watch_dataset.npy, which is a pickle: an unpickler reads it that can build only
    arrays. Raises DataError, with `remedy` as what to do, for a file that cannot be read, is not such a table, or has not one
    recording of each subject, exercise and arm.
    """
    try:
        table = _table(_content(path))
        recordings = [
            Series(np.asarray(steps, np.float32), int(label), int(subject), int(arm))
            for steps, label, subject, arm in zip(table["X"], table["y"], table["subject"], table["side"], strict=True)
        ]
        exercises = tuple(str(exercise) for exercise in table["y_labels"])
    except DataError:
        raise
    except (*_UNREADABLE, TypeError, OverflowError) as failure:
        raise damaged(path, f"it cannot be read ({failure})", remedy) from failure
    for number, each in enumerate(recordings):
        if each.steps.ndim != 2 or each.steps.shape[1] != AXES or not np.isfinite(each.steps).all():
            raise damaged(path, f"recording {number} is not a table of numbers with {AXES} columns", remedy)
    _require_every_pair(path, recordings, len(exercises), remedy)
    return recordings, exercises


def _content(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return archive.read(_MEMBER)


def _table(content: bytes) -> dict[str, Sequence[Any]]:
    """Return the dict in a file of numpy that holds one object. Raises ValueError for another file."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it is of another version of numpy's format")
    np.lib.format.read_array_header_1_0(file)
    table = unpickled(file)
    if not isinstance(table, dict):
        raise ValueError("it holds no dict")
    return table


def _require_every_pair(path: Path, recordings: Iterable[Series], exercises: int, remedy: str) -> None:
    found = Counter((each.subject, each.label, each.arm) for each in recordings)
    subjects = {subject for subject, _, _ in found}
    wanted = {(subject, label, arm) for subject in subjects for label in range(exercises) for arm in (0, 1)}
    if not found or found != Counter(wanted):
        raise damaged(path, "it has not one recording of each subject, exercise and arm", remedy)


def _for_each_window(values: Sequence[int], series: Sequence[Series], steps: int) -> Tensor:
    return torch.repeat_interleave(torch.tensor(values), torch.tensor([len(each.steps) // steps for each in series]))
