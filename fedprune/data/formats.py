"""Read and check the file formats of data sets: IDX (MNIST and its kin), the python version of CIFAR, JSON lists of pixels.

A damaged file is a DataError that names the file, its fault, and what to do.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import tarfile
import zlib
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import DataError
from fedprune.storage import array_pickles

_UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError)

_DOWNLOADED = "(or put a good copy in its place) and run again: what is missing is downloaded"


def damaged(path: Path, what: str, remedy: str = _DOWNLOADED) -> DataError:
    """Return the error for a damaged file. what: its fault. remedy: what to do once the file is deleted."""
    return DataError(f"{path} is damaged: {what}. Delete it {remedy}.")


def read_idx(path: Path, dims: int) -> Tensor:
    """Return the uint8 tensor with `dims` dimensions in an IDX file, gzipped or not (judged by content, not by name).

    Format (LeCun, Cortes & Burges): two zero bytes, 0x08 for unsigned bytes, the number of dimensions, each size as a
    big-endian uint32, then the data. Raises DataError if the file is anything else.
    """
    raw = _content(path)
    start, magic = 4 + 4 * dims, bytes([0, 0, 8, dims])
    if raw[:4] != magic:
        raise damaged(path, f"it begins with the bytes {raw[:4].hex() or '(none)'} instead of {magic.hex()}")
    if len(raw) < start:
        raise damaged(path, f"it ends after {len(raw)} bytes, inside its header")
    sizes = struct.unpack(f">{dims}I", raw[4:start])
    if len(raw) - start != math.prod(sizes):
        raise damaged(path, f"its header announces {math.prod(sizes)} bytes of data and {len(raw) - start} follow")
    if not len(raw) - start:
        raise damaged(path, "it holds no examples")
    return torch.frombuffer(raw, dtype=torch.uint8, offset=start).reshape(sizes)


def read_cifar(path: Path, batches: tuple[str, ...], labels: str) -> list[tuple[Tensor, Tensor]]:
    """Return (images uint8 [n, 3, 32, 32], labels int64 [n]) of each of the named `batches` of an archive or extracted folder.

    labels: the key of the labels in a batch (`labels`, or `fine_labels` in CIFAR-100). Batches are pickles (Krizhevsky 2009);
    they are read by an unpickler that can build only plain arrays, so no file can run code. Raises DataError for a batch that
    is missing, unreadable, asks for anything but arrays, or contradicts itself.
    """
    contents = _members(path, batches)
    absent = [batch for batch in batches if batch not in contents]
    if absent:
        raise damaged(path, f"it lacks {', '.join(absent)}")
    return [_cifar_batch(path / batch if path.is_dir() else path, batch, contents[batch], labels) for batch in batches]


def read_json_digits(path: Path, files: tuple[str, ...], side: int, remedy: str) -> list[Tensor]:
    """Return the images uint8 [n, side, side] in each of the named `files` of an archive or extracted folder.

    Format: a JSON object whose `data` is one flat list of pixels, byte / 255 to three decimals (enough to tell 256 apart).
    Raises DataError, with `remedy` as what to do, for a file that is missing, unreadable, or not whole images of such pixels.
    """
    contents = _members(path, files, remedy)
    absent = [file for file in files if file not in contents]
    if absent:
        raise damaged(path, f"it lacks {', '.join(absent)}", remedy)
    return [_json_images(path, file, contents[file], side, remedy) for file in files]


def _json_images(path: Path, file: str, content: bytes, side: int, remedy: str) -> Tensor:
    try:
        shades = np.asarray(json.loads(content)["data"])
    except (ValueError, KeyError, TypeError, RecursionError) as failure:
        raise damaged(path, f"{file} cannot be read ({failure})", remedy) from failure
    if shades.ndim != 1 or shades.dtype.kind not in "if" or not len(shades) or len(shades) % side**2:
        raise damaged(path, f"the `data` of {file} is not a list of pixels of whole {side}x{side} images", remedy)
    pixels = shades * 255.0
    # The comparison is written so that NaN fails it. Three decimals move a pixel by up to 0.0005 * 255 = 0.1275.
    if not (np.abs(pixels - 127.5) <= 127.5).all() or np.abs(pixels - np.rint(pixels)).max() > 0.13:
        raise damaged(path, f"the `data` of {file} holds numbers that are not byte / 255", remedy)
    return torch.from_numpy(np.rint(pixels).astype(np.uint8)).reshape(-1, side, side)


def _content(path: Path) -> bytearray:
    """Return the file's content, unzipped piece by piece into the memory that the tensor will use."""
    content = bytearray()
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as file:
            while piece := file.read(1 << 20):
                content += piece
        return content
    except _UNREADABLE as failure:
        raise damaged(path, f"it cannot be read ({failure})") from failure


def _members(path: Path, wanted: tuple[str, ...], remedy: str = _DOWNLOADED) -> dict[str, bytes]:
    """Return the content of each wanted file of a folder or tar archive, by its bare name."""
    try:
        if path.is_dir():
            return {name: (path / name).read_bytes() for name in wanted if (path / name).is_file()}
        with tarfile.open(path, "r|*") as archive:  # as a stream: a gzipped archive is read once, nothing is extracted
            entries = ((Path(entry.name).name, archive.extractfile(entry)) for entry in archive if entry.isfile())
            return {name: stream.read() for name, stream in entries if name in wanted and stream is not None}
    except _UNREADABLE as failure:
        raise damaged(path, f"it cannot be read ({failure})", remedy) from failure


def _cifar_batch(path: Path, batch: str, content: bytes, labels: str) -> tuple[Tensor, Tensor]:
    entries = _unpickled(path, batch, content)
    x, y = entries.get("data"), entries.get(labels)
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 3 * 32 * 32 or not len(x):
        raise damaged(path, f"the `data` of {batch} is not a table of bytes with 3072 columns")
    if not isinstance(y, list) or len(y) != len(x) or not all(isinstance(label, int) for label in y):
        raise damaged(path, f"{batch} has {len(x)} images, and its `{labels}` are not as many whole numbers")
    return torch.from_numpy(np.array(x)).reshape(-1, 3, 32, 32), torch.tensor(y, dtype=torch.int64)


def _unpickled(path: Path, batch: str, content: bytes) -> dict[str, object]:
    try:
        entries = cast(dict[object, object], unpickled(io.BytesIO(content), encoding="bytes"))
        return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in entries.items()}
    except Exception as failure:  # a damaged pickle can raise anything at all
        raise damaged(path, f"{batch} cannot be read ({failure})") from failure


def unpickled(file: io.BytesIO, encoding: str = "ASCII") -> object:
    """Return what a pickle holds; see array_pickles.py, by which no file can run code or read memory that is not its own.

    encoding: how texts of Python 2 are read; `bytes` leaves them as they are. Raises ValueError if it asks for anything else
    than plain arrays, or is damaged.
    """
    return array_pickles.load(file, encoding)
