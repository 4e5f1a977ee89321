"""A wheel as seglearn's, with small recordings of a smartwatch."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

EXERCISES = ["PEN", "ABD"]
STEPS = 7
WHEEL = "seglearn-1.2.5-py3-none-any.whl"


def recordings(subjects: Sequence[int] = (3, 8), steps: int = STEPS) -> dict[str, Any]:
    """Both arms of two exercises by each subject, of 7 steps unless said. A value tells subject, exercise, arm, step and axis:
    3011.4 is subject 3, exercise 0, arm 1, step 1, axis 4."""
    rows = [(subject, label, arm) for subject in subjects for label in (0, 1) for arm in (1, 0)]
    place = np.arange(steps)[:, None] + np.arange(6)[None] / 10
    return {
        "X": [1000.0 * subject + 100 * label + 10 * arm + place for subject, label, arm in rows],
        "y": np.array([label for _, label, _ in rows]),
        "subject": np.array([subject for subject, _, _ in rows]),
        "side": np.array([float(arm) for _, _, arm in rows]),
        "y_labels": EXERCISES,
    }


def written(table: object) -> bytes:
    """A file of numpy that holds one object, as seglearn's."""
    file = io.BytesIO()
    np.save(file, np.array(table, dtype=object), allow_pickle=True)
    return file.getvalue()


def write(root: Path, content: bytes | None = None) -> Path:
    """Write the wheel into a folder, with this content of its file; with the recordings by default."""
    path = root / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("seglearn/__init__.py", "raise SystemExit('this must not be run')")
        archive.writestr("seglearn/data/watch_dataset.npy", written(recordings()) if content is None else content)
    return path
