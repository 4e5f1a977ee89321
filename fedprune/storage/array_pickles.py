"""Unpickle plain numpy arrays, in Python alone: no file can run code, or have numpy take its bytes for pointers.

numpy's own functions for pickles believe the state that a file names: of a type with objects in it, raw bytes become addresses.
Here a file makes stand-ins, whose state is checked; arrays are copied from the bytes that are there. A list of objects may be
an array, too, and comes back as a list. pickle's unpickler in C takes memory for any index of a file: it is not used.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from typing import ClassVar

import numpy as np

PLAIN = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU]\d{1,6})")
OBJECTS = ("O", "O8", "|O", "|O8")


class Type:
    """Stands for a dtype: numbers and texts of fixed length, or objects."""

    __slots__ = ("name",)

    def __init__(self, name: object, *_: object):
        text = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or not (PLAIN.fullmatch(text) or text in OBJECTS):
            raise pickle.UnpicklingError(f"it has an array of type {text!r:.40}, which is not plain")
        self.name = text

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Take the order of bytes. Raises UnpicklingError for fields, or a part of another type."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it has an array with fields, which is not plain")
        self.name = self.name if self.name in OBJECTS else f"{order}{self.name.lstrip('<>|=')}"


class Array:
    """Stands for an array until it is read: its type, its shape, its order, and its bytes or objects."""

    __slots__ = ("content", "fortran", "shape", "type")

    def __init__(self, *_: object):
        self.type, self.shape, self.fortran = Type("u1"), tuple[int, ...](), False
        self.content: object = b""

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Take what numpy writes: (version, shape, type, whether columns come first, content)."""
        _, shape, kind, fortran, content = state
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape) or type(kind) is not Type:
            raise pickle.UnpicklingError("it has an array without a shape or type")
        self.type, self.shape, self.fortran = kind, shape, bool(fortran)
        self.content = content.encode("latin1") if isinstance(content, str) else content

    def read(self) -> np.ndarray:
        """Return the array, in memory of its own. Raises ValueError if the bytes are not of its shape."""
        order = "F" if self.fortran else "C"
        if not isinstance(self.content, bytes):
            raise ValueError("it has an array whose content is no bytes")
        kind = np.dtype(self.type.name)
        flat: np.ndarray = np.frombuffer(self.content, kind) if self.content else np.empty(0, kind)
        return flat.reshape(self.shape, order=order).copy()  # type: ignore[call-overload,no-any-return]  # a text of two


def _latin1(text: str, encoding: str) -> bytes:
    """Encode text, as old pickle protocols write bytes. The real codecs.encode would load any codec that a file names."""
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): Array,  # as written by numpy 1
    ("numpy._core.multiarray", "_reconstruct"): Array,  # by numpy 2
    ("numpy", "ndarray"): None,  # an argument of _reconstruct
    ("numpy", "dtype"): Type,
    ("_codecs", "encode"): _latin1,
}

NEEDLESS = (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2)


class _ArraysOnly(pickle._Unpickler):
    """An unpickler that looks names up in a table and never imports one. It calls these alone, and sets no other's state."""

    stack: list[object]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        code: function for code, function in pickle._Unpickler.dispatch.items() if bytes([code]) not in NEEDLESS
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs and which was not run")
        return ALLOWED[module, name]

    def load_build(self) -> None:
        state, thing = self.stack.pop(), self.stack[-1]
        if not isinstance(thing, Array | Type) or not isinstance(state, tuple):
            raise pickle.UnpicklingError("it sets the state of something that is no array")
        thing.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def load(file: io.BytesIO, encoding: str = "ASCII") -> object:
    """Return what a pickle holds, arrays of objects as lists. Raises ValueError if there is more in it, or it is damaged."""
    try:
        return _read(_ArraysOnly(file, encoding=encoding).load(), {})
    except Exception as failure:  # a damaged pickle can raise anything at all
        raise ValueError(str(failure) or type(failure).__name__) from failure


def _read(value: object, done: dict[int, object]) -> object:
    """Return a value with its stand-ins read, each once. Raises RecursionError for one that is in itself."""
    if id(value) in done:
        return done[id(value)]
    found = value
    if isinstance(value, Array):
        found = _objects(value, done) if value.type.name in OBJECTS else value.read()
    elif isinstance(value, dict):
        found = {key: _read(each, done) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(_read(each, done) for each in value)
    done[id(value)] = found
    return found


def _objects(array: Array, done: dict[int, object]) -> object:
    """Return the objects in an array of one dimension as a list, and the one in an array of none."""
    if not isinstance(array.content, list) or array.shape not in ((), (len(array.content),)):
        raise ValueError("it has an array of objects that is no list")
    objects = [_read(each, done) for each in array.content]
    if array.shape == ():
        (objects[0],) = objects
    return objects if array.shape else objects[0]
