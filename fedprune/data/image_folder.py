"""Read a user's images as a data set, one folder per class: `data=image_folder data.root=flowers`.

    train/<class>/*  and  test/<class>/*     an official split
    <class>/*                                a fifth of every class is held out as the test set, always the same

These folders are in `root/<name of the data set>` or, if there is none, in `root`. Every file with an ending that Pillow knows
is an image; other files and hidden ones are left out. The pixels are cached as bytes (cache.py), so that files are decoded
once.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fedprune.data.cache import code_of, mark, read_once
from fedprune.data.datasets import Dataset, fifth_held_out
from fedprune.errors import DataError
from fedprune.identity.reads import reads

DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
"""Pillow's modes of more than 8 bits a pixel, whose values would be cut off without a warning if they were made bytes."""

GREY = ("1", "L")


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
    root: str, name: str = "image_folder", size: Sequence[int] | None = None, grey: bool | None = None, users: str | None = None
) -> Dataset:
    """Return the images below `root` as bytes [N, C, H, W]. A label is the index of a class among the sorted names.

    name: the data set's, for messages. size: (height, width) to which every image is scaled and cut around its middle; None:
    all images have one size. grey: one channel (True) or three (False); None: one if no image has colours. users: a CSV file
    with the columns `file` (relative to that folder) and `user`, the owner of each training image, for partition=natural. mean
    and std are those of the training pool, per channel. Raises DataError for what cannot be read, with what to type.
    """
    folder = _folder(root, name)
    layout = _layout(folder, name)
    images = [*layout.train, *layout.test]
    marks = [mark(path) for path, _ in images] + ([mark(_csv(users))] if users else [])
    options = [name, list(size) if size else None, grey, users]
    known = [code_of(image_folder), marks, options]
    return read_once(name, known, Dataset, lambda: _read(folder, layout, name, size, grey, users))


def _read(folder: Path, layout: Layout, name: str, size: Sequence[int] | None, grey: bool | None, users: str | None) -> Dataset:
    paths, labels = zip(*layout.train, *layout.test, strict=True)
    x, y = _pixels(paths, size, grey), torch.tensor(labels)
    groups = _users(folder, [path for path, _ in layout.train], _csv(users)) if users else None
    if layout.test:
        number = len(layout.train)
        parts = (x[:number], y[:number], x[number:], y[number:])
    else:
        held_out = fifth_held_out(y)
        parts = (x[~held_out], y[~held_out], x[held_out], y[held_out])
        groups = groups[~held_out] if groups is not None else None
    mean, std = _moments(parts[0])
    return Dataset(name, *parts, classes=len(layout.classes), mean=mean, std=std, groups=groups)


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


def _pixels(paths: Sequence[Path], size: Sequence[int] | None, grey: bool | None) -> Tensor:
    """Decode the images into one tensor, uint8 [N, C, H, W]."""
    if grey is None:
        grey = all(_mode(path) in GREY for path in paths)
    coloured = not grey
    first = _decoded(paths[0], coloured, size)
    pixels = np.empty((len(paths), *first.shape), np.uint8)
    for number, path in enumerate(paths):
        image = _decoded(path, coloured, size)
        if image.shape != first.shape:
            (height, width), (other_height, other_width) = first.shape[:2], image.shape[:2]
            raise DataError(
                f"{path} is {other_height} x {other_width} pixels (height x width), {paths[0]} is {height} x {width}: type "
                f"data.size=[{height},{width}], which scales every image and cuts it around its middle"
            )
        pixels[number] = image
    channels_last = torch.from_numpy(pixels)
    return channels_last.permute(0, 3, 1, 2).contiguous() if coloured else channels_last[:, None]


def _mode(path: Path) -> str:
    """Return Pillow's mode of an image, from its header."""
    with _opened(path) as image:
        return str(image.mode)


def _decoded(path: Path, coloured: bool, size: Sequence[int] | None) -> np.ndarray:
    """Return an image turned upright by its EXIF data, uint8 [H, W, 3] or [H, W]."""
    with _opened(path) as image:
        if image.mode in DEEP:
            raise DataError(f"{path} has more than 8 bits a pixel (mode {image.mode}): save it with 8, scaled as you want it")
        turned = ImageOps.exif_transpose(image).convert("RGB" if coloured else "L")
    scaled = ImageOps.fit(turned, (int(size[1]), int(size[0])), Image.Resampling.BILINEAR) if size else turned
    return np.asarray(scaled)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image. A fault of it is raised as a DataError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: from Pillow's reader of PNG
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise DataError(f"{path} cannot be read as an image ({reason}): replace or delete it") from error


def _moments(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of every channel of x [N, C, H, W]; 1 for a channel that is constant.

    They are computed from the counts of the 256 values, so that the sums are exact.
    """
    counts = torch.stack([torch.bincount(channel.flatten().int(), minlength=256) for channel in x.unbind(1)]).double()
    values, number = torch.arange(256, dtype=torch.float64), counts.sum(1)
    mean = counts @ values / number
    std = (counts @ values.square() / number - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, torch.ones_like(std)).tolist())


def _csv(users: str) -> Path:
    path = Path(users).expanduser()
    if not path.is_file():
        raise DataError(f"data.users={users}: there is no such file; it needs the columns file,user")
    return path


def _users(folder: Path, paths: Sequence[Path], table: Path) -> Tensor:
    """Return the user of each image as a number, int64 [N]. Raises DataError if the table does not name one for each."""
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
    return torch.tensor([numbers[user_of[name]] for name in names])
