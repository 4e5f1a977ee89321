"""A config node -> the object that it names by `_target_`. The one place that calls Hydra's `instantiate`."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.nn.parameter import is_lazy

from fedprune.config.located import not_found
from fedprune.config.typed import meant_for, misfits
from fedprune.errors import ConfigError, FedpruneError, in_user_code
from fedprune.pruning.evidence.network import blank, evaluated
from fedprune.types import Function

Node = Mapping[str, object] | DictConfig
"""A part of the configuration that names an object by `_target_`."""


def make(config: Node, *args: object, **kwargs: object) -> Any:
    """Return the object that a config node names by `_target_`, called with these arguments too (a `_partial_` one is not
    called).

    Raises ConfigError for what the user can mend, instead of Hydra's traceback.
    """
    factory = _factory(config)
    if config.get("_partial_"):
        return factory
    return _made(config, factory, args, kwargs)


def maker(config: Node) -> Function:
    """Return what makes the object of a config node again and again. The node is read once, which takes most of the time of
    `make`, and no two objects share what the node names below it."""
    factory = _factory(config)
    function, bound = (factory.func, factory.keywords) if isinstance(factory, functools.partial) else (factory, {})

    def made(*args: object, **kwargs: object) -> object:
        return _made(config, functools.partial(function, **copy.deepcopy(bound)), args, kwargs)

    return made


def _factory(config: Node) -> Callable[..., object]:
    problems = misfits(config)
    if problems:
        raise ConfigError(problems)
    try:
        return cast(Callable[..., object], _plain(instantiate(config, _partial_=True, _convert_="all")))
    except InstantiationException as error:
        cause = _known(error) or error.__cause__ or error
        raise _mendable(cause, config.get("_target_", config), _to_type(cause, str(error))) from error


def _made(config: Node, factory: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    _check_arguments(inspect.signature(factory).bind, config.get("_target_"), *args, **kwargs)
    with in_user_code(str(config.get("_target_"))):
        return _plain(factory(*args, **kwargs))


def _to_type(cause: BaseException, text: str) -> str:
    """Return what to type if a node below was called with too little, as one without `_partial_` is; else nothing. text:
    Hydra's, which says which node it was."""
    key = re.search(r"full_key: ([\w.]+)", text)
    too_few = isinstance(cause, TypeError) and "missing" in str(cause)
    return f": if it is called later, type +{key[1]}._partial_=true" if key and too_few else ""


def make_network(config: Node, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the network that a model's config gives for inputs of this shape and so many classes; layers without a size
    (nn.LazyLinear and the like) get theirs from one pass over zeros.

    Raises ConfigError if it is called with other arguments, gives no network, or does not run on zeros where it has to.
    """
    try:
        net = _called(config, shape, classes)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise ConfigError([f"{config.get('_target_')}: there is not enough memory for so large a network"]) from error
    except ConfigError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        called = (
            "a model is called with those of shape=(C, H, W), of text (T,), classes=N and num_classes=N that it takes, and the "
            f"values of its yaml (none with model=lenet_300_100 model._target_={config.get('_target_')})"
        )
        lacks = re.search(r"missing a required argument: '(\w+)'", str(error))
        more = f"type +model.{lacks[1]}=VALUE, or " if lacks else ""
        raise ConfigError([f"{error}: {called}; {more}write a function of these that returns yours"]) from error
    if not isinstance(net, nn.Module):
        gives = f"{config['_target_']} gives {'a function' if callable(net) else f'{net!r:.60}'} and no torch.nn.Module"
        raise ConfigError([f"{gives}: name a function that returns one, and leave out model._partial_"])
    if _lazy(net):
        _give_sizes(net, shape)
    return net


def _called(config: Node, shape: tuple[int, ...], classes: int) -> object:
    """Return what a model's config makes, called with those of `shape`, `classes` and `num_classes` that it names.

    A function that takes any keyword (**kwargs) and names none of them is called with `num_classes`, as those of torchvision
    and timm are.
    """
    factory = _factory(config)
    if config.get("_partial_"):
        return factory
    parameters = inspect.signature(factory).parameters
    offered: dict[str, object] = {"shape": shape, "classes": classes, "num_classes": classes}
    bound = factory.keywords if isinstance(factory, functools.partial) else {}
    named = {name: value for name, value in offered.items() if name in parameters and name not in bound}
    if not named and not {*offered} & {*bound} and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        named = {"num_classes": classes}
    return _made(config, factory, (), named)


def _lazy(net: nn.Module) -> list[str]:
    """Return the layers that wait for data to know their size."""
    return [
        f"{name or 'the network'} ({type(part).__name__})"
        for name, part in net.named_modules()
        if any(is_lazy(tensor) for tensor in (*part._parameters.values(), *part._buffers.values()))
    ]


def _give_sizes(net: nn.Module, shape: tuple[int, ...]) -> None:
    reason = "they are not called"
    with torch.no_grad(), evaluated(net):
        try:
            net(blank(net, shape))
        except Exception as error:  # a forward is anybody's code
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if _lazy(net):
        layers = ", ".join(_lazy(net)[:3])
        raise ConfigError([f"model: {layers} get no size from one pass over zeros ({reason}): give them their sizes"])


def _check_arguments(bind: Callable[..., object], target: object, /, *args: object, **kwargs: object) -> None:
    try:
        bind(*args, **kwargs)
    except TypeError as error:
        raise _mendable(error, target, meant_for(error, bind)) from error


def _known(error: BaseException | None) -> BaseException | None:
    """Return the error among the causes that has been put into words already, as by a module that misses a package; else
    None."""
    while error and not isinstance(error, FedpruneError):
        error = error.__cause__
    return error


def _mendable(cause: BaseException, target: object, instead: str = "") -> FedpruneError:
    if isinstance(cause, FedpruneError):
        return cause
    named = re.search(r"Error (?:loading|locating target) '([^']+)'", str(cause))  # which may be a node below
    sought = named[1] if named else str(target)
    missing = not_found(sought) if named or isinstance(cause, ImportError) else None
    return ConfigError([missing or f"{target}: {' '.join(str(cause).split())}{instead}"])


def _plain(made: object) -> object:
    """Hydra's own partials cost 0.1 ms a call and need not pickle: plain ones instead, also in the fields of what was made."""
    if isinstance(made, functools.partial):
        bound = {name: _plain(value) for name, value in made.keywords.items()}
        name = f"{made.func.__module__}.{made.func.__qualname__}"
        _check_arguments(inspect.signature(made.func).bind_partial, name, *made.args, **bound)
        return functools.partial(made.func, *made.args, **bound) if made.args or bound else made.func
    if is_dataclass(made) and not isinstance(made, type):
        values = {field.name: getattr(made, field.name) for field in fields(made)}
        changed = {name: _plain(value) for name, value in values.items() if isinstance(value, functools.partial)}
        return replace(made, **changed) if changed else made
    return made
