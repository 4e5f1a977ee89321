"""A config node -> the object that it names by `_target_`. The one place that calls Hydra's `instantiate`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from importlib.util import find_spec
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fedprune.errors import ConfigError, FedpruneError


def make(config: Any, *args: Any, **kwargs: Any) -> Any:
    """The object that a config node names by `_target_`, called with these arguments too (a `_partial_` one is not called).

    Raises ConfigError for what the user can mend, instead of Hydra's traceback.
    """
    try:
        factory = _plain(instantiate(config, _partial_=True, _convert_="all"))
    except InstantiationException as error:
        raise _mendable(_known(error) or error.__cause__ or error, config.get("_target_", config)) from error
    if config.get("_partial_"):
        return factory
    _check_arguments(inspect.signature(factory).bind, config.get("_target_"), *args, **kwargs)
    return _plain(factory(*args, **kwargs))


def _check_arguments(bind: Callable[..., Any], target: object, *args: Any, **kwargs: Any) -> None:
    try:
        bind(*args, **kwargs)
    except TypeError as error:
        raise _mendable(error, target) from error


def _known(error: BaseException | None) -> BaseException | None:
    """Of what led to an error, what has been put into words already: by a module, say, that misses a package."""
    while error and not isinstance(error, FedpruneError):
        error = error.__cause__
    return error


def _mendable(cause: BaseException, target: object) -> FedpruneError:
    if isinstance(cause, FedpruneError):
        return cause
    module = str(target).partition(".")[0]
    if isinstance(cause, ImportError) and module.isidentifier() and find_spec(module) is None:
        return ConfigError(
            [f"{target}: there is no module {module}: set PYTHONPATH=FOLDER in front of the command, the folder that it is in"]
        )
    return ConfigError([f"{target}: {' '.join(str(cause).split())}"])


def _plain(made: Any) -> Any:
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
