"""Pickles of arrays: what numpy writes is read, and what would make its own unpickler read foreign memory is refused."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct

import numpy as np
import pytest

from fedprune.storage.array_pickles import load


class Crafted:
    """An array whose pickled state is what a file claims that it is."""

    def __init__(self, shape: object, kind: object, content: object, fortran: bool = False):
        self.state = (1, shape, kind, fortran, content)

    def __reduce__(self):  # type: ignore[no-untyped-def]
        reconstruct, arguments, _ = np.zeros(1).__reduce__()
        return reconstruct, arguments, self.state


class Kind:
    """A dtype of any name and state."""

    def __init__(self, name: object, state: tuple[object, ...] = (3, "<", None, None, None, -1, -1, 0)):
        self.name, self.state = name, state

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return np.dtype, (self.name, False, True), self.state


def read(value: object, protocol: int = 2) -> object:
    return load(io.BytesIO(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        np.array(["left", "right"]),
    ],
)
def test_plain_arrays_are_read(array, protocol):
    found = read({"a": array, "b": [array, 1]}, protocol)
    assert isinstance(found, dict)
    assert found["b"][1] == 1 and found["a"].dtype == array.dtype
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["b"][0], array)


def test_arrays_of_objects_come_as_lists():
    objects = np.empty(2, object)
    objects[:] = [np.arange(2), "text"]
    found = read(np.array({"x": objects}, dtype=object))
    assert isinstance(found, dict) and isinstance(found["x"], list) and found["x"][1] == "text"
    np.testing.assert_array_equal(found["x"][0], [0, 1])


FIELDS = (3, "|", None, ("f",), {"f": (np.dtype("u1"), 0)}, 8, 1, 27)
ADDRESS = struct.pack("<Q", 0x41414141)


@pytest.mark.parametrize(
    "value",
    [
        Crafted((1,), Kind("O8"), ADDRESS),  # bytes as the address of an object
        Crafted((1,), Kind("V8", FIELDS), ADDRESS),
        Crafted((1,), Kind("u1", FIELDS), b"1"),
        Crafted((10**12,), Kind("u1"), b"1"),
        Crafted((-1,), Kind("u1"), b"1"),
        Crafted((2,), Kind("u1"), [1, 2]),
        Crafted((1,), "u1", b"1"),
        Crafted("x", Kind("u1"), b"1"),
        Crafted((1,), Kind("S1000000000000"), b"1"),
        Crafted((1,), Kind("M8[s]"), bytes(8)),
        Kind("O8"),
        np.dtype,
    ],
)
def test_what_is_no_plain_array_is_refused_or_harmless(value):
    try:
        found = read(value)
    except ValueError:
        return
    assert not isinstance(found, np.ndarray | np.dtype)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02K\x01r\xff\xff\xff\xff.",  # a place in the memo for which C's unpickler would take 64 GB
        b"cnumpy\ndtype\n}(X\x01\x00\x00\x00aK\x01ub.",  # the state of a class
        b"c_codecs\nencode\n}(X\x01\x00\x00\x00aK\x01ub.",  # of a function
        b"cos\nsystem\n(S'true'\ntR.",
        b"ios\nsystem\n.",
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
        b"",
    ],
)
def test_crafted_pickles_end_with_a_value_error_or_nothing(content):
    with contextlib.suppress(ValueError):
        assert load(io.BytesIO(content)) == 1


def test_a_list_of_lists_of_lists_that_are_one_takes_no_longer_than_it_is_deep():
    nested: list[object] = [1]
    for _ in range(100):
        nested = [nested] * 10
    assert isinstance(read(nested), list)
