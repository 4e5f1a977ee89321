"""Read a user's images as a data set, one folder per class: `data=image_folder data.root=flowers`.

    train/<class>/*  and  test/<class>/*     an official split
    <class>/*                                a fifth of every class is held out as the test set, always the same

These folders are in `root/<name of the data set>` or, if there is none, in `root`. Every file with an ending that Pillow knows
is an image; other files and hidden ones are left out. The pixels are cached as bytes (cache.py), so that files are decoded
once.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fedprune.data.cache import code_of, mark, read_once
from fedprune.data.datasets import Dataset, fifth_held_out
from fedprune.data.pixels import Unreadable, moments, pixels
from fedprune.errors import DataError
from fedprune.identity.reads import reads

log = logging.getLogger(__name__)

UNREADABLE = ("stop", "leave_out")
"""The ways to go on where images cannot be read."""


@dataclass(frozen=True)
class Layout:
    """The files of a folder. train, test: (image, label), class by class; test is empty if the folder has no official split.
    classes: the sorted names, of which a label is the index.
    """

    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...]
    classes: tuple[str, ...]


def _of_classes(root: str, name: str = "image_folder") -> list[Path]:
    """Return the folders of images that are read of `root`."""
    folder = _folder(root, name)
    return [folder / "train", folder / "test"] if _is_split(folder) else [folder]


@reads("users", root=_of_classes)
def image_folder(
    root: str,
    name: str = "image_folder",
    size: Sequence[int] | None = None,
    grey: bool | None = None,
    users: str | None = None,
    unreadable: str = "stop",
) -> Dataset:
    """Return the images below `root` as bytes [N, C, H, W]. A label is the index of a class among the sorted names.

    name: the data set's, for messages. size: (height, width) to which every image is scaled and cut around its middle; None:
    all images have one size. grey: one channel (True) or three (False); None: one if no image has colours. users: a CSV file
    with the columns `file` (relative to that folder) and `user`, the owner of each training image, for partition=natural.
    unreadable: `stop` at images that cannot be read, or `leave_out`, with a warning that names them when they are read first.
    mean and std are those of the training pool, per channel. Raises DataError for what cannot be read, with what to type.
    """
    if unreadable not in UNREADABLE:
        raise DataError(f"data.unreadable={unreadable}: type data.unreadable=stop or data.unreadable=leave_out")
    folder = _folder(root, name)
    layout = _layout(folder, name)
    images = [*layout.train, *layout.test]
    marks = [mark(path) for path, _ in images] + ([mark(_csv(users))] if users else [])
    options = [name, list(size) if size else None, grey, users, unreadable]
    known = [code_of(image_folder), code_of(pixels), marks, options]
    return read_once(name, known, Dataset, lambda: _read(folder, layout, name, size, grey, users, unreadable))


def _read(
    folder: Path,
    layout: Layout,
    name: str,
    size: Sequence[int] | None,
    grey: bool | None,
    users: str | None,
    unreadable: str,
) -> Dataset:
    paths = [path for path, _ in (*layout.train, *layout.test)]
    x, unread = pixels(paths, size, grey)
    if unread:
        layout = _without(layout, unread, unreadable)
    y = torch.tensor([label for _, label in (*layout.train, *layout.test)])
    groups, names = _users(folder, [path for path, _ in layout.train], _csv(users)) if users else (None, ())
    if layout.test:
        number = len(layout.train)
        parts = (x[:number], y[:number], x[number:], y[number:])
    else:
        held_out = fifth_held_out(y)
        parts = (x[~held_out], y[~held_out], x[held_out], y[held_out])
        groups = groups[~held_out] if groups is not None else None
    mean, std = moments(parts[0])
    classes = layout.classes
    return Dataset(name, *parts, len(classes), mean=mean, std=std, groups=groups, users=names, class_names=classes)


def _without(layout: Layout, unread: dict[Path, str], unreadable: str) -> Layout:
    """Return the layout without the images that cannot be read. unread: why, by image. Raises Unreadable where it is to stop,
    or where a class has no other image to train on."""
    (first, reason), more = next(iter(unread.items())), [str(path) for path in unread][1:]
    others = f" and {len(more)} more cannot either ({', '.join(more[:4])}{', ...' if len(more) > 4 else ''})" if more else ""
    said = f"{first} cannot be read as an image ({reason}){others}"
    if unreadable == "stop":
        raise Unreadable(f"{said}: replace or delete it, or type data.unreadable=leave_out")
    train, test = (tuple(pair for pair in part if pair[0] not in unread) for part in (layout.train, layout.test))
    if {label for _, label in train} != {*range(len(layout.classes))} or (layout.test and not test):
        raise Unreadable(f"{said}, and data.unreadable=leave_out leaves a class without images: replace it")
    log.warning("left out: %s", said)
    return Layout(train, test, layout.classes)


def _folder(root: str, name: str) -> Path:
    folder = Path(root).expanduser()
    return folder / name if (folder / name).is_dir() else folder


def _is_split(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "test").is_dir()


def _layout(folder: Path, name: str) -> Layout:
    """Find the images of every class. Raises DataError if there are none, or a class has none to train on."""
    if not folder.is_dir():
        raise DataError(
            f"data={name}: there is no folder {folder.absolute()}; type data.root=FOLDER, which has a folder per class"
        )
    split = _is_split(folder)
    train, test = ("train", "test") if split else ("", "")
    classes = _classes(folder / train)
    if len(classes) < 2:
        raise DataError(
            f"data={name}: {(folder / train).absolute()} needs a folder of images for each of at least two classes and has "
            f"{len(classes)}: {', '.join(classes) or 'none'}; type data.root=FOLDER"
        )
    if split and (strange := sorted({*_classes(folder / test)} - {*classes})):
        raise DataError(f"data={name}: test/ has classes that train/ has not: {', '.join(strange)}")
    images = {subfolder: tuple(_images(folder / subfolder, classes)) for subfolder in {train, test}}
    labels = {label for _, label in images[train]}
    empty = [str(folder / train / class_name) for label, class_name in enumerate(classes) if label not in labels]
    if empty:
        raise DataError(f"data={name}: there is no image in {', '.join(empty)}")
    return Layout(images[train], images[test] if split else (), classes)


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _images(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Return the images in the folders of these classes, however deep, with their labels; sorted, as on every machine."""
    endings = Image.registered_extensions()
    return [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in endings and not path.name.startswith(".")
    ]


def _csv(users: str) -> Path:
    path = Path(users).expanduser()
    if not path.is_file():
        raise DataError(f"data.users={users}: there is no such file; it needs the columns file,user")
    return path


def _users(folder: Path, paths: Sequence[Path], table: Path) -> tuple[Tensor, tuple[str, ...]]:
    """Return the user of each image as a number, int64 [N], and the users' names.

    Raises DataError if the table does not name one for each.
    """
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "user"} <= set(rows[0]):
        columns = ",".join(rows[0]) if rows else "nothing"
        raise DataError(f"data.users={table} needs the columns file,user in its first line and has {columns}")
    user_of = {row["file"]: row["user"] for row in rows}
    names = [path.relative_to(folder).as_posix() for path in paths]
    missing = [name for name in names if name not in user_of]
    if missing:
        raise DataError(f"data.users={table} has no row for {len(missing)} images, such as file={missing[0]}")
    numbers = {user: number for number, user in enumerate(sorted({user_of[name] for name in names}))}
    return torch.tensor([numbers[user_of[name]] for name in names]), tuple(numbers)
