"""The cache of data sets that were read before: the tensors of each in one file, mapped and not copied.

So a data set is there at once, and the cells of a sweep that run side by side have it in memory once. A file has a digest
(storage/digest.py), and one that is damaged is written anew.
"""

from __future__ import annotations

import functools
import json
import logging
import marshal
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fedprune import __version__
from fedprune.data.sources import Source, obtain, unverified
from fedprune.identity.files import beside, home
from fedprune.identity.reads import reads
from fedprune.run_id import digest_of
from fedprune.storage import digest, safetensors_writer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger(__name__)

P = ParamSpec("P")
Kind = TypeVar("Kind", bound="DataclassInstance")
Loader = Callable[Concatenate[str, P], Kind]


def cached(source: Source, kind: type[Kind]) -> Callable[[Loader[P, Kind]], Loader[P, Kind]]:
    """Cache what a loader `(root, ...) -> kind` reads, and read it from the cache while the data set's files are the same.

    kind: a dataclass of tensors and of values that JSON has. Files are the same as long as their paths, sizes and times are.
    A cached file belongs to one loader, and only until the file of the loader's code changes. If nothing can be written, or the
    cached file is damaged, the loader reads as it would without a cache.
    """

    def around(load: Loader[P, Kind]) -> Loader[P, Kind]:
        code = code_of(load)

        @reads(root=functools.partial(unverified, source))
        @functools.wraps(load)
        def loader(root: str, *args: P.args, **kwargs: P.kwargs) -> Kind:
            marks = [mark(path) for file in obtain(source, root) for path in _all(file)]
            return read_once(source.name, [code, marks, args, kwargs], kind, lambda: load(root, *args, **kwargs))

        return cast(Loader[P, Kind], loader)  # `root` has a name here

    return around


def read_once(name: str, known: Sequence[object], kind: type[Kind], load: Callable[[], Kind]) -> Kind:
    """Return what `load` returns, from the cache if it was loaded before with the same `known` (what JSON holds)."""
    path = home() / f"{name}-{digest_of([__version__, kind.__qualname__, *known])}.safetensors"
    try:
        return _read(path, kind)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        log.warning("%s is damaged (%s): the data are read anew, and it is written again", path, error)
    except OSError:
        pass  # there is none yet, or no place for it
    loaded = load()
    with suppress(OSError, SafetensorError):
        _write(loaded, path)
    return loaded


def code_of(load: Callable[..., object]) -> list[object]:
    """Return a loader's name, and the mark of the file of its code; its bytecode if it is in no file (in a notebook)."""
    file = Path(load.__code__.co_filename)
    written = mark(file) if file.exists() else marshal.dumps(load.__code__).hex()
    return [load.__module__, load.__qualname__, written]


def _all(path: Path) -> Iterable[Path]:
    return sorted(path.rglob("*")) if path.is_dir() else [path]


def mark(path: Path) -> tuple[str, int, int]:
    """Return what changes when a file does: its path, its size and when it was changed."""
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns


def _read(path: Path, kind: type[Kind]) -> Kind:
    digest.check(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("file", path.name) != path.name:
        raise ValueError(f"it is {metadata['file']} under another name")
    plain = json.loads(metadata["plain"])
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    return kind(**lists, **load_file(path))


def _write(loaded: DataclassInstance, path: Path) -> None:
    values = {field.name: getattr(loaded, field.name) for field in fields(loaded)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in values.items() if name not in tensors}
    metadata = {"plain": json.dumps(plain), "file": path.name} | digest.SEALED
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    with open(partial, "wb") as file:
        digest.write(file, safetensors_writer.pieces(tensors, metadata))
    os.replace(partial, path)  # so that another process reads the whole file or none
