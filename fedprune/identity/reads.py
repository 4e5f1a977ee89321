"""Files that an option reads: their content takes the place of their paths in a run's identity.

An option declares it on the function or class that its `_target_` names:

    @reads("root", "users")                      the arguments `root` and `users` are paths of files, or of folders of them
    def photographs(root, users=None): ...

    @reads("users", root=of_classes)             of `root` only the files count that `of_classes` returns
    def photographs(root, name, users=None): ...

    def of_classes(root, name="photographs"):    called with those arguments of the loader that it has by name
        return [Path(root) / name / "train"]     files, and folders with all that is in them; [] if nothing there counts

The same files in another place are then the same run, and files that have changed make it another one. An argument that is
null, or a path of nothing, counts as it is written. An option from outside the package may leave out the declaration: each of
its values that is the path of a file or folder counts both as it is written and by content.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedprune.capabilities import declared
from fedprune.identity.code import is_ours
from fedprune.identity.files import content

Loader = TypeVar("Loader", bound=Callable[..., object])

Files = Callable[..., Iterable[Path | str]]
"""(arguments of the loader, by name) -> the files and folders that it reads of one argument."""


def reads(*whole: str, **some: Files) -> Callable[[Loader], Loader]:
    """Declare which arguments of a function or class are paths whose content counts in a run's identity (see above).

    whole: arguments of which all counts that they name. some: for another argument, which files of it count.
    """
    declaration = dict.fromkeys(whole) | some

    def declare(loader: Loader) -> Loader:
        setattr(loader, "reads_files", declaration)  # noqa: B010 (a function has no such attribute for mypy)
        return loader

    return declare


def by_content(node: object, key: str = "", theirs: bool = False) -> tuple[object, dict[str, str]]:
    """Return a part of a configuration with paths replaced by what is there; and the digest of each, by its dotted key.

    key: the dotted key of `node`. theirs: every path in it counts, since it is of an option from outside without a declaration.
    """
    digests: dict[str, str] = {}
    if isinstance(node, Mapping):
        if "_target_" in node:
            node, digests, theirs = _of_target(node, key)
        items = [(name, *by_content(value, f"{key}.{name}".lstrip("."), theirs)) for name, value in node.items()]
        return {name: value for name, value, _ in items}, _merged([digests, *(found for *_, found in items)])
    if isinstance(node, (list, tuple)):
        parts = [by_content(value, f"{key}.{number}", theirs) for number, value in enumerate(node)]
        return [value for value, _ in parts], _merged(found for _, found in parts)
    if theirs and isinstance(node, str) and _is_path(node) and (digest := _digest([node])):
        return {"path": node, "content": digest}, {key: digest}
    return node, {}


def declared_by(target: object, attribute: str, otherwise: object) -> Any:
    """Return an attribute of the object that `_target_` names; `otherwise` if it has none, or if there is no such object."""
    module, _, name = str(target).rpartition(".")
    try:
        return declared(vars(importlib.import_module(module))[name], attribute, otherwise)
    except Exception:  # a user's module may raise anything; build reports it
        return otherwise


def _of_target(node: Mapping[str, object], key: str) -> tuple[dict[str, object], dict[str, str], bool]:
    """Return what `by_content` does of a node that declares its paths, and whether it is from outside and declares nothing."""
    values, digests = dict(node), dict[str, str]()
    declaration: Mapping[str, Files | None] | None = declared_by(node["_target_"], "reads_files", None)
    for name, files in (declaration or {}).items():
        paths = _paths(node, name, files)
        if paths == []:
            values.pop(name, None)
        elif paths and (digest := _digest(paths)):
            values[name] = {"content": digest}
            digests[f"{key}.{name}"] = digest
    return values, digests, declaration is None and not is_ours(str(node["_target_"]))


def _is_path(value: str) -> bool:
    """Return whether there is such a file or folder, which is not one that the results may be written in."""
    try:
        path = Path(value).expanduser()
        return path.exists() and not Path.cwd().is_relative_to(path.resolve())
    except (OSError, ValueError, RuntimeError):  # too long a name, a null character, no home folder
        return False


def _paths(node: Mapping[str, object], name: str, files: Files | None) -> list[Path | str] | None:
    """Return what is read of one argument; None if that cannot be told, as of a folder that is not there."""
    value = node.get(name)
    if files is None:
        return [str(value)] if value else None
    known = inspect.signature(files).parameters
    try:
        return [*files(**{argument: value for argument, value in node.items() if argument in known})]
    except Exception:  # a wrong value of an option; build reports it
        return None


def _digest(paths: Iterable[Path | str]) -> str | None:
    try:
        return content(paths)
    except OSError:  # missing or unreadable; build reports it
        return None


def _merged(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {key: digest for part in parts for key, digest in part.items()}
