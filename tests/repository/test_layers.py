"""The rooms of the package stand on floors: whoever imports stands above, and nobody imports in a circle.

Read from the text of the modules: what is imported at load, `if TYPE_CHECKING` and imports inside functions left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import fedprune

ROOT = Path(fedprune.__file__).parent


def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package goes by its folder's."""
    named = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


MODULES = modules()


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that are run when a module is loaded."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            for part in ("body", "orelse", "finalbody"):
                yield from statements(getattr(statement, part, []))


def imported(name: str) -> set[str]:
    """The modules of the package that loading this one loads, but for the packages that it is in."""
    found = set()
    for statement in statements(ast.parse(MODULES[name].read_text()).body):
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").partition(".")[0] == "fedprune":
            names = [f"{statement.module}.{alias.name}" for alias in statement.names]
            found |= {one if one in MODULES else str(statement.module) for one in names}
        elif isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names if alias.name in MODULES}
    packages = {".".join(one.split(".")[:depth]) for one in found for depth in range(2, one.count(".") + 1)}
    return {one for one in found | packages if one != name and not f"{name}.".startswith(f"{one}.")}


IMPORTED = {name: imported(name) for name in MODULES}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Return a path that comes back to where it began; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(arrows.get(name, ())):
                if found := walk(other, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


def test_no_module_is_imported_in_a_circle():
    assert circle(IMPORTED) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


FLOORS = (
    ("errors",),
    ("amount", "capabilities", "parent_process", "phase_clock", "plain_layers", "precision", "randomness", "types"),
    ("device", "identity", "local/lightning", "storage", "tensors"),
    ("dashboard", "pruning/what", "run_id"),
    ("pruning/evidence", "data"),
    ("pruning/criterion",),
    ("pruning",),
    ("pruning/connectivity", "config", "federated/server", "local/state", "models", "wire"),
    ("command", "pruning/cost"),
    ("execution", "local/regularisers"),
    ("local",),
    ("compaction",),
    ("federated/client", "ticket"),
    ("federated/masks",),
    ("federated/metrics",),
    ("federated",),
    ("experiment/checks",),
    ("experiment", "running/loggers"),
    ("running",),
    ("analysis",),
    ("analysis/home", "sensitivity"),
    ("api",),
    ("__main__",),
    ("deployment",),
)
"""The rooms (folders, and modules in no folder), from the lowest floor up. On one floor nobody imports another room."""

MERGED = {
    "analysis/claims": "analysis",
    "analysis/figures": "analysis",
    "analysis/paper": "analysis",
    "data/own": "data",
    "federated/server_pruning": "federated",
}
"""Folders that are one room with another."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(name: str) -> str:
    """The folder of a module below the package; of a module in no folder, its own name."""
    folder = MODULES[name].parent.relative_to(ROOT).as_posix()
    return MODULES[name].stem if folder == "." else MERGED.get(folder, folder)


def upward(arrows: dict[str, set[str]]) -> list[str]:
    """Return the imports that do not go down to a lower floor."""
    pairs = [(name, other) for name, others in sorted(arrows.items()) for other in sorted(others)]
    return [
        f"{name} -> {other}" for name, other in pairs if room(name) != room(other) and FLOOR[room(name)] <= FLOOR[room(other)]
    ]


def test_every_room_has_a_floor():
    rooms = {room(name) for name in MODULES if name != "fedprune"}
    assert rooms == set(FLOOR)


def test_nobody_imports_from_the_floor_or_from_above():
    inside = {name: others for name, others in IMPORTED.items() if name != "fedprune"}
    assert upward(inside) == []


def test_an_import_from_above_is_found():
    assert upward({"fedprune.wire.frame": {"fedprune.running.run"}, "fedprune.running.run": {"fedprune.wire.frame"}}) == [
        "fedprune.wire.frame -> fedprune.running.run"
    ]


def test_tests_stand_in_the_room_of_their_subject():
    tests = Path(__file__).parents[1]
    elsewhere = {"campaign", "helpers", "repository", "whole_runs", "federated/methods"}
    rooms = {path.parent.relative_to(tests).as_posix() for path in tests.rglob("*.py")}
    assert {room for room in rooms - elsewhere if not (ROOT / room).is_dir()} == set()
