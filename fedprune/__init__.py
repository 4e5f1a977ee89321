"""fedprune: which pruning recipe survives federated training? A method is a point on seven axes (see docs/concepts/axes.md).

From Python: `compose`, `run`, `sweep` and `load` (docs/howto/python.md). They are imported when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedprune.api.compose import Composition, compose
    from fedprune.api.launch import run, sweep
    from fedprune.api.result import Result, Sweep, load

__version__ = "0.1.0"

__all__ = ["Composition", "Result", "Sweep", "compose", "load", "run", "sweep"]

_ROOMS = {"compose": "compose", "Composition": "compose", "run": "launch", "sweep": "launch"}


def __getattr__(name: str) -> object:
    """Import what is asked for, so that `import fedprune` takes no time. Raises AttributeError for another name."""
    if name not in __all__:
        raise AttributeError(f"module fedprune has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    value: object = getattr(import_module(f"fedprune.api.{_ROOMS.get(name, 'result')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names to complete, in a notebook."""
    return sorted([*globals(), *__all__])
