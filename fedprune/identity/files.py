"""The content of files as a digest. Files that have not changed are not read a second time.

What was digested is remembered in the user's cache folder by the files' paths, sizes and times. If that cannot be written,
files are read each time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

REMEMBERED = 1000
"""The number of digests that are remembered, the latest ones."""

SETTLED_NS = 2_000_000_000
"""Files that were changed so short a time ago are read again: on some file systems a second change might have the same time."""

A_DAY = 86400.0  # seconds

LARGE = 2e9  # bytes that are read with a word about it, since it takes seconds


@dataclass(frozen=True)
class File:
    """A file as its folder lists it. changed_ns: the later one of the times at which its content and its entry changed."""

    path: str
    size: int
    modified_ns: int
    changed_ns: int


def home() -> Path:
    """Return the user's cache folder of fedprune; without a home folder, as in some containers, one among temporary files."""
    try:
        above = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        above = Path(tempfile.gettempdir(), f"cache-{os.getuid()}")
    return above / "fedprune"


def beside(path: Path) -> Path:
    """Return a new name beside a file of the cache, to write to before it takes the file's place.

    What a killed process left under such a name goes after a day.
    """
    for left in path.parent.glob(f"{path.stem}.{'[0-9a-f]' * 16}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > A_DAY:
                left.unlink()
    return path.with_suffix(f".{os.urandom(8).hex()}")  # pids repeat on other machines and in containers


def content(paths: Iterable[Path | str]) -> str:
    """Return 16 hexadecimal digits of what these files hold, with the files' names below the folder that all of them are in.

    Of a folder all files below it count, but for hidden ones and those of __pycache__. A single file counts without its name.
    Raises OSError for what cannot be read.
    """
    found = {file.path: file for path in paths for file in _below(Path(path).expanduser())}
    files = [found[path] for path in sorted(found)]
    above = os.path.commonpath([os.path.dirname(file.path) for file in files]) if files else ""
    return _remembered("content", files, lambda: _digest(files, above))


def file_digest(path: Path, algorithm: str) -> str:
    """Return the digest of one file, in hexadecimal digits. Raises OSError if it cannot be read."""
    return _remembered(algorithm, [_file(path)], lambda: _digest_of(str(path), algorithm))


def _below(path: Path) -> Iterator[File]:
    if path.is_dir():
        yield from _walk(os.path.abspath(path))
    else:
        yield _file(path)


def _file(path: Path) -> File:
    return _as_listed(os.path.abspath(path), path.stat())


def _walk(folder: str) -> Iterator[File]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            if entry.is_dir():
                yield from _walk(entry.path)
            elif entry.is_file():
                yield _as_listed(entry.path, entry.stat())


def _as_listed(path: str, status: os.stat_result) -> File:
    return File(path, status.st_size, status.st_mtime_ns, max(status.st_mtime_ns, status.st_ctime_ns))


def _digest(files: list[File], above: str) -> str:
    size = sum(file.size for file in files)
    if size > LARGE:
        log.warning("reading the %.1f GB in %s: a run is told from another one by its data", size / 1e9, above)
    if len(files) == 1:
        return _digest_of(files[0].path, "sha256")[:16]
    lines = [f"{os.path.relpath(file.path, above)}\0{_digest_of(file.path, 'sha256')}\n" for file in files]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _digest_of(path: str, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _remembered(kind: str, files: list[File], digest: Callable[[], str]) -> str:
    """Return what `digest` returns, without calling it if it was called before on files of the same marks."""
    listed = [f"{file.path}\0{file.size}\0{file.modified_ns}\0{file.changed_ns}\n" for file in files]
    key = f"{kind}-{hashlib.sha256(''.join(listed).encode(errors='surrogateescape')).hexdigest()[:32]}"
    known = _read()
    if key in known:
        return known[key]
    fresh = digest()
    newest = max((file.changed_ns for file in files), default=0)
    if time.time_ns() - newest > SETTLED_NS:
        _write(dict([*known.items()][1 - REMEMBERED :]) | {key: fresh})
    return fresh


def _read() -> dict[str, str]:
    with suppress(OSError, ValueError):
        known = json.loads((home() / "digests.json").read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}
    return {}


def _write(known: dict[str, str]) -> None:
    path = home() / "digests.json"
    partial = beside(path)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(known), encoding="utf-8")
        os.replace(partial, path)  # so that another process reads the whole file or none
