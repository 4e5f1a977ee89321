"""The attributes that an option declares about itself, and their defaults.

An option of a config group may be an object, a function or a partial of one, from this package or from outside. All that is
asked of it is a method or an attribute of the base class of its group (`Where.proxy`, `Rewind.round`). An option that inherits
from the base has the defaults; `complete` gives them to every other one, such as a function. No other module asks an option for
an attribute that it may not have.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar, cast

from fedprune.errors import in_user_code

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])

NOTHING = object()


def declares(**attributes: object) -> Callable[[F], F]:
    """Return a decorator that declares attributes of a function, as class attributes do of an object."""

    def declare(function: F) -> F:
        vars(function).update(attributes)
        return function

    return declare


def declared(option: object, name: str, otherwise: object = None) -> Any:
    """Return the attribute of an option, of a partial also a keyword that it binds or an attribute of its function; `otherwise`
    if there is none."""
    if isinstance(option, functools.partial):
        return option.keywords[name] if name in option.keywords else getattr(option.func, name, otherwise)
    return getattr(option, name, otherwise)


def complete(option: object, base: type[T]) -> T:
    """Return the option with all attributes of the base class of its group: its own, and defaults for those that it has not."""
    return option if isinstance(option, base) else cast(T, Completed(option, base))


def missing(option: object, base: type) -> list[str]:
    """Return what the base class requires and the option has not: abstract methods, without `__call__`, and fields that have no
    default."""
    required = sorted({*getattr(base, "__abstractmethods__", ())} - {"__call__"})
    if is_dataclass(base):
        required += [field.name for field in fields(base) if field.default is field.default_factory is MISSING]
    return [name for name in required if declared(option, name, NOTHING) is NOTHING]


def named(option: object) -> str:
    """Return the name of an option's function or class with its module, as `my_criteria.by_place`."""
    if isinstance(option, Completed):
        return named(option.option)
    if isinstance(option, functools.partial):
        return named(option.func)
    function = option if hasattr(option, "__qualname__") else type(option)
    return f"{function.__module__}.{function.__qualname__}"


def from_outside(option: object) -> bool:
    """Return whether an option's function or class is not of this package, but of a user's."""
    return not named(option).startswith("fedprune.")


@dataclass(frozen=True)
class Completed:
    """An option that does not inherit from the base class of its group, with the defaults of the base."""

    option: Any
    base: type

    def __call__(self, *args: object, **kwargs: object) -> object:
        with in_user_code(named(self.option)):
            return self.option(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the option, by which evidence and outcomes are asked for."""
        return inspect.signature(self.option)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # asked by copy and pickle, before there are fields
            raise AttributeError(name)
        own = declared(self.option, name, NOTHING)
        if own is not NOTHING:
            return own
        default = inspect.getattr_static(self.base, name)
        return default.__get__(self) if hasattr(default, "__get__") else default

    def __str__(self) -> str:
        return str(declared(self.option, "__name__") or self.option)
