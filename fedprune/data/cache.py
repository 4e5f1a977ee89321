"""The cache of data sets that were read before: the tensors of each in one file, mapped and not copied.

So a data set is there at once, and the cells of a sweep that run side by side have it in memory once.
"""

from __future__ import annotations

import functools
import json
import marshal
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedprune import __version__
from fedprune.data.sources import Source, obtain, unverified
from fedprune.identity.files import home
from fedprune.identity.reads import reads
from fedprune.run_id import digest_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
    with suppress(OSError, SafetensorError, KeyError, ValueError, TypeError):
        return _read(path, kind)
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
    with safe_open(path, "pt") as file:
        plain = json.loads(file.metadata()["plain"])
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    return kind(**lists, **load_file(path))


def _write(loaded: DataclassInstance, path: Path) -> None:
    values = {field.name: getattr(loaded, field.name) for field in fields(loaded)}
    # Copies, since safetensors refuses tensors that share memory, and a loader's may be views of one tensor.
    tensors = {name: value.contiguous().clone() for name, value in values.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in values.items() if name not in tensors}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.urandom(8).hex()}")  # pids repeat on other machines and in containers
    save_file(tensors, partial, metadata={"plain": json.dumps(plain)})
    os.replace(partial, path)  # so that another process reads the whole file or none
