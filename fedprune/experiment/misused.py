"""The words on an object that is no option of its group: called too early or not at all, a bare formula, without a method."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from omegaconf import DictConfig

from fedprune.capabilities import missing
from fedprune.config.instantiate import make
from fedprune.experiment.group import Group, Holder, takes
from fedprune.pruning.evidence import needs

Node = Mapping[str, object]


def not_made(node: Node, group: Group, reason: str) -> str:
    """Return what to type if calling what a node names fails for the arguments that it is called with; reason: the words
    of the error. Empty if nobody knows."""
    function = make({"_target_": node["_target_"], "_partial_": True})
    if group.arguments and takes(function, group.arguments, [name for name in node if not name.startswith("_")]):
        plus = "" if "_partial_" in node else "+"
        return f": {group.called}: type {plus}{group.key}._partial_=true"
    if group.holder is not None and _is_formula(function, group.holder):
        return f": {_held(node, group.key, group.holder)}"
    if left_over := _of_the_replaced(node, group, reason):
        return f": {left_over}"
    if group.arguments and _is_function(function):
        return f": {group.called}: {group.see}"
    lacks = re.search(r"missing a required argument: '(\w+)'", reason)
    return f": type +{group.key}.{lacks[1]}=VALUE, or give `{lacks[1]}` in the yaml" if lacks else ""


def _of_the_replaced(node: Node, group: Group, reason: str) -> str | None:
    """Return what to type where an option does not take a key of the one that it replaces; None if that is not the problem."""
    key = re.search(r"unexpected keyword argument '(\w+)'", reason)
    if key is None or key[1] not in node or "did you mean" in reason:
        return None
    place = f"{group.key}.{key[1]}"
    below = node[key[1]]
    inside = isinstance(below, Mapping | DictConfig) and "_target_" in below
    instead = f"{place}._target_={node['_target_']} if it is to stand there, or " if inside else ""
    return f"{place} is a key of the option whose _target_ it takes: type {instead}~{place}"


def wrong(made: object, node: Node, group: Group) -> Iterator[str]:
    """Yield why an object is no option of its group, with what to type instead."""
    yield from _of_its_kind(made, node, group)
    yield from _uncalled(made, group.key)


def _of_its_kind(made: object, node: Node, group: Group) -> Iterator[str]:
    target, lacks, arguments = node["_target_"], missing(made, group.base), group.arguments
    if node.get("_partial_") and ((isinstance(made, type) and not _makes(made, arguments)) or lacks or not arguments):
        bare = group.holder is not None and _is_formula(made, group.holder)
        yield f"{target} is not called: {_held(node, group.key, group.holder) if bare else f'type {group.key}._partial_=false'}"
    elif lacks:
        yield f"{target} has no {', '.join(lacks)}: {group.see}"
    elif not arguments:
        return
    elif not callable(made):
        yield f"{target} gives {made!r:.60}: {group.called}: type +{group.key}._partial_=true"
    elif not takes(made, arguments):
        instead = f", or type {group.key}._partial_=false" if node.get("_partial_") and takes(made, ()) else ""
        other = f"{target}{inspect.signature(made)} takes other arguments"
        yield f"{other}: {group.called}: write one that is ({group.see}){instead}"


def _held(node: Node, key: str, holder: Holder | None) -> str:
    """Return what to type to put a bare formula, with the keys of its node, where it belongs."""
    assert holder is not None, "only groups whose options hold formulas have bare ones"
    place, target = f"{key}.{holder.role}", node["_target_"]
    own = {name: value for name, value in node.items() if not name.startswith("_")}
    if holder.role in own:  # the yaml's own holder, whose `_target_` was replaced
        there = f"type {place}._target_={target} if it is to stand there"
        return f"a formula is the `{holder.role}` of {holder.target}: {there}, and leave out {key}._target_"
    formula = [f"+{place}._target_={target}", f"+{place}._partial_=true", *(f"+{place}.{name}={own[name]}" for name in own)]
    moved = [f"~{key}.{name}" for name in (*own, *(["_partial_"] if "_partial_" in node else []))]
    typed = [f"{key}._target_={holder.target}", *formula, *(f"+{key}.{word}" for word in holder.besides), *moved]
    return f"a formula is the `{holder.role}` of {holder.target}: type {' '.join(typed)}, or write so in the yaml"


def _makes(kind: type, arguments: tuple[str, ...]) -> bool:
    """Return whether a class is called in the place of its objects, which cannot be: as that of an accumulator is."""
    return "__call__" not in dir(kind) and takes(kind, arguments)


def _uncalled(made: object, key: str) -> list[str]:
    """Return the classes that an option holds where it should hold an object of theirs."""
    if not is_dataclass(made):
        return []
    held = {field.name: vars(made).get(field.name) for field in fields(made)}
    named = {name: _function(value) for name, value in held.items()}
    return [
        f"{key}.{name} is the class {value.__name__} and no object of it: type {key}.{name}._partial_=false"
        for name, value in named.items()
        if isinstance(value, type)
    ]


def _function(made: object) -> object:
    return made.func if isinstance(made, functools.partial) else made


def _is_formula(made: object, holder: Holder) -> bool:
    """Return whether a node that is not called names a formula: a function that asks for a piece that its holder gives."""
    function = _function(made)
    return callable(function) and _is_function(made) and any(name in holder.pieces for name in needs(function))


def _is_function(made: object) -> bool:
    """Return whether a node that is not called names a function, and no class."""
    return callable(made) and not isinstance(_function(made), type)
