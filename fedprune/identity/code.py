"""The user's code in a run's identity: the source of what `_target_` names, and of what that imports, as far as it is theirs.

Theirs is what lies neither in this package nor in the standard library nor in site-packages. Imports are read from the source
and followed, in packages too; none of it is run for that. Of an installed package the version counts. A module that is loaded
counts as it was when it was first looked at after loading, since later changes of its file are not what runs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

FOUNDATION = ("fedprune", "torch", "hydra")
"""Packages whose version is not part of a run's identity: all runs stand on them."""

INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Source:
    """A file of the user's code. name: as the user knows it, such as package/module.py. spec: of the loaded module, or None."""

    name: str
    digest: str
    imports: tuple[str, ...]
    spec: ModuleSpec | None


_seen: dict[str, Source] = {}  # of loaded modules, by file


def targets(node: object) -> Iterator[str]:
    """Yield the dotted names of all functions and classes that a part of a configuration names."""
    if isinstance(node, Mapping):
        target = str(node.get("_target_", ""))
        if target.startswith("hydra.utils.get_"):  # such as get_method, whose argument is the name of the function
            target = str(node.get("path", ""))
        if target:
            yield target
        node = tuple(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from targets(value)


def is_ours(target: str) -> bool:
    """Return whether a dotted name is of this package, or of one that every run stands on."""
    return target.partition(".")[0] in FOUNDATION


def sources(names: Iterable[str]) -> dict[str, str]:
    """Return the digest of each file of the user's code that these dotted names lead to."""
    found: dict[str, Source] = {}
    waiting, known = [name for name in names if not is_ours(name)], set()
    if waiting:
        importlib.invalidate_caches()  # a file may have been written since Python last listed its folder
    while waiting:
        name = waiting.pop()
        for spec in _specs(name):
            if spec.name not in known and _is_users(spec):
                known.add(spec.name)
                with suppress(OSError):  # build reports it
                    source = _source(spec)
                    found[source.name] = source
                    waiting += [each for each in source.imports if not is_ours(each)]
        for source in _without_spec(name):
            found[source.name] = source
            waiting += [each for each in source.imports if source.name not in known and not is_ours(each)]
            known.add(source.name)
    return {name: found[name].digest for name in sorted(found)}


def packages(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each installed package, other than FOUNDATION, that these dotted names are of."""
    tops = sorted({name.partition(".")[0] for name in names if not is_ours(name)})
    installed = {top for top in tops for spec in _specs(top) if _is_in(spec, INSTALLED)}
    return {top: _version(top) for top in sorted(installed)}


def _specs(name: str) -> Iterator[ModuleSpec]:
    """Yield the module of a dotted name and the packages around it, from the outermost; nothing is imported."""
    places: list[str] | None = None
    parts = name.split(".")
    for number in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:number]), places)
        if spec is None:
            return
        yield spec
        if spec.submodule_search_locations is None:
            return
        places = list(spec.submodule_search_locations)


def _spec(name: str, places: list[str] | None) -> ModuleSpec | None:
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__spec__ is not None:
        return loaded.__spec__
    try:
        return importlib.util.find_spec(name) if places is None else _below(name, places)
    except (ImportError, ValueError, AttributeError):  # not a name of a module; build reports it
        return None


def _below(name: str, places: list[str]) -> ModuleSpec | None:
    """Return a module of a package that need not be imported. places: the package's folders."""
    folders: list[str] = []
    for place in places:
        finder = pkgutil.get_importer(place)
        spec = finder.find_spec(name) if finder is not None else None
        if spec is not None and spec.loader is not None:
            return spec
        folders += (spec and spec.submodule_search_locations) or []
    without_file = ModuleSpec(name, None, is_package=True)
    without_file.submodule_search_locations = folders
    return without_file if folders else None


def _is_users(spec: ModuleSpec) -> bool:
    return spec.has_location and spec.origin is not None and not _is_in(spec, INSTALLED) and not _is_standard(spec.origin)


def _is_in(spec: ModuleSpec, folders: tuple[str, ...]) -> bool:
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    return any(folder in Path(place).parts for place in places for folder in folders)


def _is_standard(origin: str) -> bool:
    return any(Path(origin).is_relative_to(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib"))


def _source(spec: ModuleSpec) -> Source:
    """Return a file of the user's. Raises OSError if it cannot be read."""
    file, loaded = str(spec.origin), spec.name in sys.modules
    if loaded and file in _seen and _seen[file].spec is spec:
        return _seen[file]
    written = Path(file).read_bytes()
    package = spec.submodule_search_locations is not None
    depth = spec.name.count(".") + 1 + package
    name = "/".join(Path(file).parts[-depth:])
    imports = tuple(_imports(written, spec.name if package else spec.name.rpartition(".")[0])) if file.endswith(".py") else ()
    source = Source(name, _digest(written), imports, spec if loaded else None)
    if loaded:
        _seen[file] = source
    return source


def _imports(written: bytes, package: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, names in a module among them. package: the one that the module is in."""
    try:
        tree = ast.parse(written)
    except (SyntaxError, ValueError):  # build reports it
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # more dots than there are packages
                module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                yield from (f"{module}.{alias.name}" for alias in node.names)


def _without_spec(name: str) -> Iterator[Source]:
    """Yield the code of a function or class of the script that is run, or of a notebook, which has no file."""
    module, _, attribute = name.rpartition(".")
    loaded = sys.modules.get(module)
    if loaded is None or loaded.__spec__ is not None:
        return
    with suppress(OSError, TypeError, KeyError):
        if file := getattr(loaded, "__file__", None):
            written = Path(file).read_bytes()
            yield Source(Path(file).name, _digest(written), tuple(_imports(written, "")), None)
        else:
            yield Source(name, _digest(_of_cell(vars(loaded)[attribute]).encode()), (), None)


def _of_cell(value: object) -> str:
    """Return the source of a function or class of a notebook. Of a class that is its methods', since the class has no file.

    Raises OSError or TypeError if there is none.
    """
    if not inspect.isclass(value):
        return inspect.getsource(value)  # type: ignore[arg-type]  # what is no code raises TypeError
    methods = [method for _, method in sorted(vars(value).items()) if inspect.isfunction(method)]
    settings = {
        key: text for key, text in sorted(vars(value).items()) if isinstance(text, (str, int, float)) and key[:2] != "__"
    }
    return "\n".join([value.__qualname__, *map(str, value.__mro__), repr(settings), *map(inspect.getsource, methods)])


def _digest(written: bytes) -> str:
    return hashlib.sha256(written).hexdigest()[:16]


@functools.cache
def _version(top: str) -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(top)
    names = importlib.metadata.packages_distributions().get(top, [])
    return ", ".join(importlib.metadata.version(name) for name in sorted(set(names)))
