"""The words on a `_target_` that cannot be found: its module is not on the path, cannot be imported, or has no such name."""

from __future__ import annotations

import difflib
import importlib
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from fedprune.errors import place_of


def not_found(target: str) -> str | None:
    """Return why an object cannot be found, with what to type instead; None if it can be."""
    if not all(word.isidentifier() for word in target.split(".")) or "." not in target:
        return f"{target}: name the module and what is in it, such as my_module.{re.sub('[^0-9A-Za-z_]', '', target) or 'Mine'}"
    first, *names = target.split(".")
    if _spec(first) is None:
        return f"{target}: there is no module {first}: set PYTHONPATH={_folder(first)} in front of the command{_beside(first)}"
    try:
        module = importlib.import_module(first)
        for number, name in enumerate(names):
            path = ".".join([first, *names[: number + 1]])
            if not hasattr(module, name) and _spec(path) is not None:
                importlib.import_module(path)
            if not hasattr(module, name):
                return f"{target}: {'.'.join([first, *names[:number]])} has no {name}; {_others(module, name)}"
            module = getattr(module, name)
    except Exception as error:  # a module is anybody's code
        return f"{target}: importing it fails: {type(error).__name__}: {error} ({place_of(error)})"
    return None


def _spec(path: str) -> object:
    try:
        return find_spec(path)
    except (ImportError, ValueError):  # what stands before the dot is no package
        return None


def _folder(name: str) -> str:
    """Return the folder to put on the path: the working directory if the module is in it, else the word for one."""
    return "." if Path(f"{name}.py").exists() or Path(name).is_dir() else "FOLDER"


def _beside(name: str) -> str:
    """Return what a user needs to know of the folder, and how it is said in Python."""
    which = "" if _folder(name) == "." else f", the folder that {name}.py is in"
    return f"{which} (in Python: sys.path.append)"


def _others(module: ModuleType, name: str) -> str:
    """Return the names in a module, or in a class, that may be meant."""
    own = [each for each in vars(module) if not each.startswith("_")]
    near = difflib.get_close_matches(name, own, n=3, cutoff=0.6)
    made_here = [each for each in own if getattr(vars(module)[each], "__module__", None) == getattr(module, "__name__", None)]
    listed = made_here or own
    if near:
        return f"the nearest are {', '.join(near)}"
    more = ", ..." if len(listed) > 8 else ""
    return f"it has {', '.join(listed[:8])}{more}" if listed else "it has nothing in it"
