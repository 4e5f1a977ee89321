"""Texts and nulls that stand where a number or a function belongs, found before the object of a node is made of them."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig

NUMBERS = {int: "a whole number", float: "a number", bool: "true or false"}


def misfits(config: Mapping[str, object] | DictConfig, factory: Callable[..., object]) -> list[str]:
    """Return which values of a node cannot be what its object takes, by the object's annotations, with what to type instead."""
    bound = factory.keywords if isinstance(factory, functools.partial) else {}
    doubtful = {name: value for name, value in bound.items() if value is None or isinstance(value, str)}
    if not doubtful or not isinstance(factory, functools.partial):
        return []
    hints, defaults = _hints(factory.func), _defaults(factory.func)
    problems = []
    for name, value in doubtful.items():
        takes = _taken(hints.get(name))
        if takes and not (value is None and (defaults.get(name, 0) is None or type(None) in _parts(hints[name]))):
            key = config._get_full_key(name) if isinstance(config, DictConfig) else name
            problems.append(_problem(key, value, takes))
    return problems


def meant_for(error: TypeError, bind: Callable[..., object]) -> str:
    """Return which parameter a misspelt one is meant for, by the words of the error of `Signature.bind`; else nothing."""
    name = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    signature = getattr(bind, "__self__", None)  # of a bound method
    if name is None or not isinstance(signature, inspect.Signature):
        return ""
    known = [
        each.name for each in signature.parameters.values() if each.kind not in (each.POSITIONAL_ONLY, each.VAR_POSITIONAL)
    ]
    near = difflib.get_close_matches(name[1], known, n=1)
    return f": did you mean {near[0]}?" if near else f": it takes {', '.join(known) or 'nothing'}"


def _problem(key: str, value: object, takes: str) -> str:
    typed = f"{key}={'null' if value is None else value}"
    if takes == "a function":
        return f"{typed}: it takes a function: type {key}._target_=MODULE.FUNCTION, or leave it out"
    return f"{typed}: it takes {takes}"


def _taken(hint: object) -> str | None:
    """Return the words for what an annotation takes, if that is only numbers, or only functions; else None."""
    parts = [part for part in _parts(hint) if part is not type(None)]
    numbers = [part for part in parts if isinstance(part, type) and part in NUMBERS]
    if parts and len(numbers) == len(parts):
        return " or ".join(NUMBERS[part] for part in numbers if part is not int or float not in numbers)
    callables = [get_origin(part) is Callable or part is Callable for part in parts]
    return "a function" if parts and all(callables) else None


def _parts(hint: object) -> tuple[object, ...]:
    """Return the alternatives of an annotation."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _hints(made: Callable[..., object]) -> dict[str, object]:
    try:
        return get_type_hints(vars(made).get("__init__", made) if isinstance(made, type) else made)
    except Exception:  # annotations may name what is imported for the type checker only
        return {}


def _defaults(made: Callable[..., object]) -> dict[str, object]:
    try:
        return {name: parameter.default for name, parameter in inspect.signature(made).parameters.items()}
    except (TypeError, ValueError):
        return {}
