"""A data set that was read before: its tensors in one file, mapped and not copied.

It is there at once, and the cells of a sweep that run side by side have it in memory once.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedprune import __version__
from fedprune.data.sources import Source, obtain
from fedprune.folders import digest_of

P = ParamSpec("P")
Kind = TypeVar("Kind")
Loader = Callable[Concatenate[str, P], Kind]


def cached(source: Source, kind: type[Kind]) -> Callable[[Loader[P, Kind]], Loader[P, Kind]]:
    """Makes a loader `(root, ...) -> kind` leave what it reads in the cache, and take it from there if its files are the same.

    kind: a dataclass of tensors, and of what JSON holds. Files are the same as long as their paths, sizes and times are. Where
    nothing can be written, or what is there is damaged, the loader reads as it would without.
    """

    def around(load: Loader[P, Kind]) -> Loader[P, Kind]:
        @functools.wraps(load)
        def loader(root: str, *args: P.args, **kwargs: P.kwargs) -> Kind:
            marks = [_mark(path) for file in obtain(source, root) for path in _all(file)]
            path = home() / f"{source.name}-{digest_of([__version__, marks, args, kwargs])}.safetensors"
            with suppress(OSError, SafetensorError, KeyError, ValueError, TypeError):
                return _read(path, kind)
            found = load(root, *args, **kwargs)
            with suppress(OSError, SafetensorError):
                _write(found, path)
            return found

        return loader

    return around


def home() -> Path:
    """Where what was read is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedprune"


def _all(path: Path) -> Iterable[Path]:
    return sorted(path.rglob("*")) if path.is_dir() else [path]


def _mark(path: Path) -> tuple[str, int, int]:
    seen = path.stat()
    return str(path.absolute()), seen.st_size, seen.st_mtime_ns


def _read(path: Path, kind: type[Kind]) -> Kind:
    with safe_open(path, "pt") as file:
        plain = json.loads(file.metadata()["plain"])
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    return kind(**lists, **load_file(path))


def _write(found: object, path: Path) -> None:
    values = {field.name: getattr(found, field.name) for field in fields(found)}  # type: ignore[arg-type]
    tensors = {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in values.items() if name not in tensors}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    save_file(tensors, partial, metadata={"plain": json.dumps(plain)})
    os.replace(partial, path)  # whole, or not at all, for whoever reads it meanwhile
