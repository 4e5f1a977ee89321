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


FLOORS = [
    *("fedprune.pruning.what", "fedprune.pruning.evidence", "fedprune.pruning.criterion", "fedprune.pruning"),
    *("fedprune.pruning.connectivity", "fedprune.compaction"),
]


def floor(name: str) -> int:
    """Return the floor of the room that a module is in; -1 of other rooms, which are not looked at."""
    room = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    return FLOORS.index(room) if room in FLOORS else -1


def test_no_room_of_pruning_imports_from_a_floor_above():
    upward = [(name, other) for name, others in IMPORTED.items() for other in others if -1 < floor(name) < floor(other)]
    assert upward == []


def test_the_rooms_of_local_import_nothing_of_what_stands_around_them():
    rooms = tuple(f"fedprune.local.{room}" for room in ("lightning", "regularisers", "state"))
    inner = {name: others for name, others in IMPORTED.items() if name.startswith(rooms)}
    around = [(name, other) for name, others in inner.items() for other in others if other.startswith("fedprune.local.")]
    assert [(name, other) for name, other in around if not other.startswith(rooms)] == []
