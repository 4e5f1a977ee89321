"""A data set that was read before: its tensors in one file, mapped and not copied.

It is there at once, and the cells of a sweep that run side by side have it in memory once.
"""

from __future__ import annotations

import functools
import json
import marshal
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedprune import __version__
from fedprune.data.sources import Source, in_place_of, obtain
from fedprune.run_id import digest_of

P = ParamSpec("P")
Kind = TypeVar("Kind")
Loader = Callable[Concatenate[str, P], Kind]


def cached(source: Source, kind: type[Kind]) -> Callable[[Loader[P, Kind]], Loader[P, Kind]]:
    """Makes a loader `(root, ...) -> kind` leave what it reads in the cache, and take it from there if its files are the same.

    kind: a dataclass of tensors, and of what JSON holds. Files are the same as long as their paths, sizes and times are.
    What was read is this loader's alone, and only until the file that it is written in changes. Where nothing can be written,
    or what is there is damaged, the loader reads as it would without.
    """

    def around(load: Loader[P, Kind]) -> Loader[P, Kind]:
        code = code_of(load)

        @functools.wraps(load)
        def loader(root: str, *args: P.args, **kwargs: P.kwargs) -> Kind:
            marks = [mark(path) for file in obtain(source, root) for path in _all(file)]
            return read_once(source.name, [code, marks, args, kwargs], kind, lambda: load(root, *args, **kwargs))

        loader.depends_on = functools.partial(in_place_of, source)  # type: ignore[attr-defined]  # see identity.py
        return loader

    return around


def read_once(name: str, known: list[Any], kind: type[Kind], load: Callable[[], Kind]) -> Kind:
    """Return what `load` returns, from the cache if it was loaded before with the same `known` (what JSON holds)."""
    path = home() / f"{name}-{digest_of([__version__, kind.__qualname__, *known])}.safetensors"
    with suppress(OSError, SafetensorError, KeyError, ValueError, TypeError):
        return _read(path, kind)
    loaded = load()
    with suppress(OSError, SafetensorError):
        _write(loaded, path)
    return loaded


def home() -> Path:
    """Where what was read is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedprune"


def code_of(load: Callable[..., object]) -> list[Any]:
    """Which loader it is, and the mark of the file that it is written in; of one that is in none (a notebook), its bytecode."""
    file = Path(load.__code__.co_filename)  # type: ignore[attr-defined]
    written = mark(file) if file.exists() else marshal.dumps(load.__code__).hex()  # type: ignore[attr-defined]
    return [load.__module__, load.__qualname__, written]


def _all(path: Path) -> Iterable[Path]:
    return sorted(path.rglob("*")) if path.is_dir() else [path]


def mark(path: Path) -> tuple[str, int, int]:
    """Return what changes when a file does: its path, its size and when it was changed."""
    seen = path.stat()
    return str(path.absolute()), seen.st_size, seen.st_mtime_ns


def _read(path: Path, kind: type[Kind]) -> Kind:
    with safe_open(path, "pt") as file:
        plain = json.loads(file.metadata()["plain"])
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    return kind(**lists, **load_file(path))


def _write(found: object, path: Path) -> None:
    values = {field.name: getattr(found, field.name) for field in fields(found)}  # type: ignore[arg-type]
    # Of their own memory, which safetensors asks for: a loader's may be views of one tensor.
    tensors = {name: value.contiguous().clone() for name, value in values.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in values.items() if name not in tensors}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    save_file(tensors, partial, metadata={"plain": json.dumps(plain)})
    os.replace(partial, path)  # whole, or not at all, for whoever reads it meanwhile
