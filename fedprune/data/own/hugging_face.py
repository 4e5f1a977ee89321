"""Read a Hugging Face data set that was saved to disk: `data=hugging_face data.path=FOLDER`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from fedprune.capabilities import declared
from fedprune.data.datasets import Dataset
from fedprune.data.own.examples import read
from fedprune.data.own.torch_dataset import assembled
from fedprune.errors import DataError
from fedprune.identity.reads import reads

LABELS = ("label", "labels", "fine_label", "target")
"""Columns of labels, by the names that are usual."""


class Split(Protocol):
    """As much of a datasets.Dataset as is used: rows by their numbers, columns by their names."""

    column_names: list[str]
    features: Mapping[str, object]

    def __len__(self) -> int: ...

    def __getitem__(self, key: int | str, /) -> object: ...


@dataclass(frozen=True)
class Pairs:
    """The examples of one split, as pairs."""

    split: Split
    input: str
    label: str

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, number: int) -> tuple[object, object]:
        row = cast(Mapping[str, object], self.split[number])
        return row[self.input], row[self.label]


@reads("path")
def hugging_face(
    path: str | None = None,
    input: str | None = None,
    label: str | None = None,
    users: str | None = None,
    train: str = "train",
    test: str | None = None,
    renumber: bool = False,
    missing: str = "stop",
) -> Dataset:
    """Return the examples of a data set that `datasets` saved by save_to_disk, read once. It takes the package `datasets`.

    input, label: their columns; None: the one of a usual name, and the only other one. users: the column of whose each example
    is. train, test: the names of the splits; test None: the split `test` if there is one, else a fifth of the training
    examples. renumber, missing: see torch_dataset. Names of classes are those of the column, if it has some. Raises DataError
    for what does not fit, with what to type.
    """
    splits = _splits(path, train)
    training = _split(splits, "train", train)
    testing = _split(splits, "test", test) if test else splits.get("test") if train != "test" else None
    label = _column(training, "label", label, [name for name in LABELS if name in training.column_names])
    others = [name for name in training.column_names if name not in (label, users)]
    input = _column(training, "input", input, others)
    owners = cast(Sequence[object], training[_column(training, "users", users, [])]) if users else None
    parts = [None if part is None else read(Pairs(part, input, label), "data.path") for part in (training, testing)]
    assert parts[0] is not None
    return assembled(parts[0], parts[1], owners, renumber, "hugging_face", missing, _class_names(training, label))


def _class_names(split: Split, label: str) -> Sequence[object]:
    """Return the names of classes of a column of the type ClassLabel; nothing of another one."""
    names: object = declared(split.features[label], "names", ())
    return names if isinstance(names, list) else ()


def _splits(path: str | None, train: str) -> Mapping[str, Split]:
    """Return the splits of the data set in a folder by their names."""
    if path is None:
        raise DataError("data=hugging_face needs a folder that save_to_disk has written: type data.path=FOLDER")
    try:
        from datasets import load_from_disk  # a large package, and nothing else needs it
    except ImportError as error:
        raise DataError("data=hugging_face needs the package datasets: type `pip install datasets`") from error
    folder = Path(path).expanduser()
    try:
        found = load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data.path={path} is no folder that save_to_disk has written ({reason}): type data.path=FOLDER"
        ) from error
    return found if isinstance(found, Mapping) else {train: found}


def _split(splits: Mapping[str, Split], key: str, name: str) -> Split:
    if name not in splits:
        raise DataError(f"data.{key}={name}: the data set has no such split: choose one of {', '.join(splits)}")
    return splits[name]


def _column(split: Split, key: str, column: str | None, candidates: list[str]) -> str:
    """Return the column for a key: the one that is named, else the only candidate."""
    if column is None and len(candidates) == 1:
        return candidates[0]
    if column is None or column not in split.column_names:
        wrong = f"data.{key}={column}: the data set has no such column" if column else f"data.{key} is not given"
        raise DataError(f"{wrong}: choose one of {', '.join(split.column_names)}: type data.{key}={split.column_names[0]}")
    return column
