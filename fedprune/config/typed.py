"""Values that cannot be what an option takes, by the option's annotations, found before its object is made.

An option from outside the package is checked by its own annotations in the same way; what has none takes anything.
"""

from __future__ import annotations

import collections.abc as abc
import difflib
import functools
import inspect
import math
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

WORDS: Mapping[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    type(None): "null",
}

LISTS = (list, tuple, set, frozenset, abc.Sequence, abc.Iterable, abc.Collection, abc.Set)

MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)

CLASSES = ("fedprune", "torch")
"""Packages whose objects no plain value can be. What other classes are made of is not known here."""


def misfits(config: Mapping[str, object] | DictConfig) -> list[str]:
    """Return which values of a node, and of the nodes below it, cannot be what their objects take, and what to type."""
    return list(_misfits(config, ""))


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


def _misfits(config: Mapping[str, object] | DictConfig, above: str) -> Iterator[str]:
    takes = parameters(str(config["_target_"])) if "_target_" in config else {}
    for name in filter(lambda name: not str(name).startswith("_"), config):
        key = config._get_full_key(name) if isinstance(config, DictConfig) else f"{above}{name}"
        value = config[name]
        if isinstance(value, Mapping | DictConfig) and "_target_" in value:
            yield from _misfits(value, f"{key}.")
            continue
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        hint, default = takes.get(str(name), (object, None))
        if not fits(plain, hint) and not (plain is None and default is None):
            yield _problem(key, plain, hint)


def fits(value: object, hint: object) -> bool:
    """Return whether a plain value (a number, a text, null, a list or a mapping of such) can be what an annotation says.

    A whole number is a number; true is no number; nan is none either. In a list of texts a number is the name of a layer.
    """
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(fits(value, part) for part in inner)
    if kind is Annotated:
        return fits(value, inner[0])
    if kind is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if kind in (None, type(None)):
        return value is None
    if kind in (int, float):
        return type(value) is int or (kind is float and isinstance(value, float) and not math.isnan(value))
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind is Path:
        return isinstance(value, str | Path)
    if kind in LISTS:
        return isinstance(value, list | tuple) and _all_fit(value, inner, fixed=kind is tuple)
    if kind in MAPPINGS:
        return isinstance(value, Mapping) and all(fits(each, inner[1]) for each in value.values() if inner)
    return kind is not abc.Callable and not (isinstance(kind, type) and kind.__module__.partition(".")[0] in CLASSES)


def _all_fit(values: list[object] | tuple[object, ...], inner: tuple[object, ...], fixed: bool) -> bool:
    if fixed and inner and inner[-1] is not Ellipsis:
        return len(values) == len(inner) and all(map(fits, values, inner))
    return not inner or all(fits(value, inner[0]) or (inner[0] is str and fits(value, float)) for value in values)


def _problem(key: str, value: object, hint: object) -> str:
    typed = f"{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"
    if isinstance(value, str) and fits([value], hint):
        return f"{typed} is no list: type {key}=[{value}]"
    takes = list(dict.fromkeys(_words(hint)))
    if takes == ["a function"]:
        return f"{typed}: it takes a function: type {key}._target_=MODULE.FUNCTION, or leave it out"
    return f"{typed}: it takes {' or '.join(takes)}"


def _words(hint: object) -> Iterator[str]:
    """Yield the words for the alternatives of an annotation."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        parts = sorted(inner, key=lambda part: part is type(None))
        yield from (word for part in parts if part is not int or float not in inner for word in _words(part))
    elif kind is Annotated:
        yield from _words(inner[0])
    elif kind is Literal:
        yield from map(str, inner)
    elif kind in LISTS:
        of = [part for part in inner if part is not Ellipsis]
        number = f"{len(of)} " if kind is tuple and of and of == list(inner) else ""
        each = {word.removeprefix("a ") for part in of for word in _words(part)}
        yield f"a list of {number}{' or '.join(sorted(f'{word}s' for word in each)) or 'values'}, such as [a,b]"
    elif kind in MAPPINGS:
        yield "pairs such as {a: 1}"
    elif kind is abc.Callable:
        yield "a function"
    else:
        yield WORDS.get(kind, f"an object ({getattr(kind, '__name__', kind)}), which `_target_` names")


@functools.cache
def parameters(target: str) -> Mapping[str, tuple[object, object]]:
    """Return (annotation, default) of each parameter of what a `_target_` names; of what cannot be found, nothing."""
    try:
        made = get_object(target)
        signature = inspect.signature(made)
    except Exception:  # a module of anybody's may fail in any way; its error is told where the object is made
        return {}
    hints = _hints(made)
    return {name: (hints.get(name, object), each.default) for name, each in signature.parameters.items()}


def _hints(made: Callable[..., object]) -> dict[str, object]:
    """Return the annotations of parameters, those of a class from its fields or its `__init__`."""
    if not isinstance(made, type):
        return _resolved(made.__annotations__, made.__module__) if hasattr(made, "__annotations__") else {}
    found: dict[str, object] = {}
    for kind in reversed(made.__mro__):
        found |= _resolved(vars(kind).get("__annotations__", {}), kind.__module__)
        found |= _resolved(getattr(vars(kind).get("__init__"), "__annotations__", {}), kind.__module__)
    return found


def _resolved(annotations: Mapping[str, object], module: str) -> dict[str, object]:
    return {name: _known(hint, vars(sys.modules[module])) for name, hint in annotations.items()}


def _known(hint: object, names: dict[str, object]) -> object:
    """Return an annotation as an object: one that names what only a type checker imports takes anything."""
    try:
        known = eval(hint, names) if isinstance(hint, str) else hint  # as typing.get_type_hints does, but one by one
    except Exception:
        return object
    known = getattr(known, "__value__", known)
    return object if isinstance(known, TypeVar) else known
