"""Decode image files to bytes: one tensor of all that can be read, and why others cannot."""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fedprune.errors import DataError

DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
"""Pillow's modes of more than 8 bits a pixel, whose values would be cut off without a warning if they were made bytes."""

GREY = ("1", "L")

RUN_OTHERS = ("EPS", "WMF")
"""Formats that Pillow hands to other programs or to the system: a file of any name could be one."""

_FAULTS = (
    *(OSError, SyntaxError, ValueError, IndexError, TypeError, OverflowError, EOFError, MemoryError, struct.error, zlib.error),
    Image.DecompressionBombError,
)
"""What Pillow's readers raise for crafted files; SyntaxError is from that of PNG."""


class Unreadable(DataError):
    """An image cannot be read."""


def pixels(paths: Sequence[Path], size: Sequence[int] | None, grey: bool | None) -> tuple[Tensor, dict[Path, str]]:
    """Decode the images into one tensor, uint8 [N, C, H, W], of those that can be read; and return why others cannot."""
    if grey is None:
        grey = all(_mode(path) in GREY for path in paths)
    pixels: np.ndarray | None = None
    unread: dict[Path, str] = {}
    number, first = 0, paths[0]
    for path in paths:
        try:
            image = _decoded(path, not grey, size)
        except Unreadable as error:
            unread[path] = str(error)
            continue
        if pixels is None:
            pixels, first = _room(path, len(paths), image), path
        _same_size(path, image, first, pixels)
        pixels[number] = image
        number += 1
    if pixels is None:
        raise Unreadable(
            f"{paths[0]} cannot be read as an image ({unread[paths[0]]}), and none of {len(paths)} can: replace them"
        )
    read = torch.from_numpy(pixels[:number])
    return read[:, None] if grey else read.permute(0, 3, 1, 2).contiguous(), unread


def _room(path: Path, number: int, image: np.ndarray) -> np.ndarray:
    """Return memory for so many images of this size. Raises DataError if there is none."""
    try:
        return np.empty((number, *image.shape), np.uint8)
    except MemoryError as error:
        height, width = image.shape[:2]
        told = f"{path} is {height} x {width} pixels, and {number} images of this size do not fit into memory"
        raise DataError(f"{told}: type data.size=[32,32], which scales every image") from error


def _same_size(path: Path, image: np.ndarray, first: Path, pixels: np.ndarray) -> None:
    (height, width), (other_height, other_width) = pixels.shape[1:3], image.shape[:2]
    if (height, width) != (other_height, other_width):
        raise DataError(
            f"{path} is {other_height} x {other_width} pixels (height x width), {first} is {height} x {width}: type "
            f"data.size=[{height},{width}], which scales every image and cuts it around its middle"
        )


def _mode(path: Path) -> str:
    """Return Pillow's mode of an image, from its header; that of grey for one that cannot be read."""
    try:
        with _opened(path) as image:
            return str(image.mode)
    except Unreadable:
        return GREY[0]


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
    """Open an image. Raises Unreadable, with the reason alone, for a fault of it."""
    try:
        with Image.open(path, formats=_formats()) as image:
            yield image
    except _FAULTS as error:
        raise Unreadable((str(error) or type(error).__name__).partition("\n")[0]) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the formats that Pillow decodes itself."""
    Image.init()
    return tuple(name for name in Image.ID if name not in RUN_OTHERS)


def moments(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of every channel of x [N, C, H, W]; 1 for a channel that is constant.

    They are computed from the counts of the 256 values, so that the sums are exact.
    """
    counts = torch.stack([torch.bincount(channel.flatten().int(), minlength=256) for channel in x.unbind(1)]).double()
    values, number = torch.arange(256, dtype=torch.float64), counts.sum(1)
    mean = counts @ values / number
    std = (counts @ values.square() / number - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, torch.ones_like(std)).tolist())
