"""Codecs: named tensors under a mask <-> bytes. Lossless: decode(encode(x)) == x, bit for bit.

Every codec is (tensors, mask, known) -> bytes. `mask` covers some of the tensors (their dead entries are zero); `known` is
the mask that both ends have already, if any. Sender and receiver build the same network, so names, shapes and types do
not travel: both sides hold the `Layout`. The first byte says which codec it was, so that one `decode` reads them all.

    dense    the mask as bits, and every value, dead or alive
    bitmap   the mask as bits, and the values of the living
    gaps     the mask near its entropy, its length in bytes before it, and the values of the living
    known    the values of the living, under the mask that both ends have
    auto     the smallest of these
    bits     one bit for each value, all of which are 0 or 1; of every entry, masked or not

A mask without a dead entry takes no bytes (it is the flag 0 after the codec's number).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import DTypeLike

from fedprune.pruning.mask import all_alive, apply, full, pack, places, unpack
from fedprune.types import Mask, Params
from fedprune.wire.frame import Piece
from fedprune.wire.gaps import pack_gaps, unpack_gaps

Codec = Callable[[Params, Mask, Mask | None], bytes]

DENSE, BITMAP, KNOWN, BITS, GAPS = range(5)
LENGTH = struct.Struct("<I")  # of a mask in gaps


@dataclass(frozen=True)
class Layout:
    """Names, shapes and types of the tensors that travel, which both ends of the wire have. masked: those under a mask."""

    shapes: Mapping[str, torch.Size]
    dtypes: Mapping[str, torch.dtype]
    masked: tuple[str, ...]

    @staticmethod
    def of(tensors: Params, masked: tuple[str, ...]) -> Layout:
        """Return the layout of these tensors."""
        return Layout({n: t.shape for n, t in tensors.items()}, {n: t.dtype for n, t in tensors.items()}, masked)

    def only(self, names: Sequence[str]) -> Layout:
        """Return the layout of these tensors alone, in their order. Raises KeyError for one that is not there."""
        covered = tuple(name for name in self.masked if name in names)
        return Layout({n: self.shapes[n] for n in names}, {n: self.dtypes[n] for n in names}, covered)


def dense(tensors: Params, mask: Mask, known: Mask | None = None) -> bytes:
    """Encode every value, as a framework that knows no masks would send it, and the mask."""
    return _joined(_head(DENSE, mask), map(_raw, tensors.values()))


def bitmap(tensors: Params, mask: Mask, known: Mask | None = None) -> bytes:
    """Encode one bit per entry, and the values of the living."""
    return _joined(_head(BITMAP, mask), _living(tensors, mask))


def gaps(tensors: Params, mask: Mask, known: Mask | None = None) -> bytes:
    """Encode the distances between the living, near their entropy, and the values of the living."""
    return _joined(_head_gaps(mask), _living(tensors, mask))


def auto(tensors: Params, mask: Mask, known: Mask | None = None) -> bytes:
    """The smallest: without the mask if the receiver knows it, else with it as bits or as gaps. (Dense is never smaller.)"""
    if known is not None and _same(mask, known):
        return _joined(bytes([KNOWN, 0]), _living(tensors, mask))
    return _joined(min(_head(BITMAP, mask), _head_gaps(mask), key=len), _living(tensors, mask))


def bits(tensors: Params, mask: Mask, known: Mask | None = None) -> bytes:
    """Encode values that are 0 or 1, as bits. Raises ValueError if there are others."""
    if not all(bool(((tensor == 0) | (tensor == 1)).all()) for tensor in tensors.values()):
        raise ValueError("only zeros and ones can be sent as bits")
    return bytes([BITS, 0]) + pack({name: tensor == 1 for name, tensor in tensors.items()})


def decode(data: Piece, layout: Layout, known: Mask | None = None) -> tuple[Params, Mask]:
    """Return the tensors and their mask, which is of the tensors of `known`, or else of the layout. Raises ValueError if the
    bytes are not an encoding of this layout."""
    view = memoryview(data)
    if len(view) < 2 or view[0] not in (DENSE, BITMAP, KNOWN, BITS, GAPS):
        raise ValueError("not an encoding of tensors")
    codec, place = view[0], 2
    if codec == BITS:  # of tensors without a mask, which are all there
        there = unpack(bytes(view[place:]), dict(layout.shapes))
        return {name: bit.to(layout.dtypes[name]) for name, bit in there.items()}, {}
    shapes = {name: layout.shapes[name] for name in (layout.masked if known is None else known)}
    if codec == KNOWN:
        if known is None:
            raise ValueError("the mask was left out, but the receiver holds none")
        mask = known
    elif view[1] and codec == GAPS:
        mask, place = _read_gaps(view, place, shapes)
    elif view[1]:
        length = (sum(shape.numel() for shape in shapes.values()) + 7) // 8
        mask, place = unpack(bytes(view[place : place + length]), shapes), place + length
    else:
        mask = unpack(all_alive(shapes), shapes)
    if codec == DENSE:
        return apply(_values(view[place:], layout, {}), mask), mask
    return _values(view[place:], layout, mask), mask


def _head(codec: int, mask: Mask) -> bytes:
    return bytes([codec, 0]) if full(mask) else bytes([codec, 1]) + pack(mask)


def _head_gaps(mask: Mask) -> bytes:
    if full(mask):
        return bytes([GAPS, 0])
    packed = pack_gaps(mask)
    return bytes([GAPS, 1]) + LENGTH.pack(len(packed)) + packed


def _read_gaps(view: memoryview, place: int, shapes: dict[str, torch.Size]) -> tuple[Mask, int]:
    """Return the mask, and the offset at which it ends."""
    start = place + LENGTH.size
    if start > len(view):
        raise ValueError("the bytes end before the mask")
    end = start + LENGTH.unpack_from(view, place)[0]
    if end > len(view):
        raise ValueError("the bytes end within the mask")
    return unpack_gaps(bytes(view[start:end]), shapes), end


def _same(mask: Mask, known: Mask) -> bool:
    if mask.keys() != known.keys():
        return False
    return all(alive is known[name] or torch.equal(alive, known[name]) for name, alive in mask.items())


def _living(tensors: Params, mask: Mask) -> Iterator[np.ndarray]:
    """Yield the values of the living, tensor by tensor: without a copy where all live."""
    return (_raw(tensor)[places(mask[name])] if name in mask else _raw(tensor) for name, tensor in tensors.items())


def _joined(head: bytes, values: Iterable[Piece]) -> bytes:
    return b"".join((head, *values))


WORDS: dict[int, DTypeLike] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.dtype("V16")}
"""Values travel as words of their size, so that every type of number can, and no bit changes."""


def _raw(tensor: torch.Tensor) -> np.ndarray:
    """Return the tensor's values as a flat array of words, without a copy where they lie contiguous."""
    # Not reshape(-1): it leaves tensors of no entry or one with whatever stride they have.
    flat = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return flat.view(WORDS[tensor.dtype.itemsize])


def _values(view: memoryview, layout: Layout, mask: Mask) -> Params:
    """Read the tensors in the layout's order; under `mask`, only the living are there and the dead are zero."""
    tensors, place = {}, 0
    for name, shape in layout.shapes.items():
        dtype = layout.dtypes[name]
        where = places(mask[name]) if name in mask else slice(None)
        number = shape.numel() if isinstance(where, slice) else len(where)
        end = place + number * dtype.itemsize
        if end > len(view):
            raise ValueError(f"{len(view)} bytes end before tensor {name}")
        there = np.frombuffer(view[place:end], WORDS[dtype.itemsize])
        words = there.copy() if isinstance(where, slice) else np.zeros(shape.numel(), there.dtype)
        if not isinstance(where, slice):
            words[where] = there
        numbers = words.view(np.uint64) if dtype.itemsize > 8 else words  # torch has no words of 16 bytes
        tensors[name] = torch.from_numpy(numbers).view(dtype).view(shape)
        place = end
    if place != len(view):
        raise ValueError(f"{len(view) - place} bytes too many after the last tensor")
    return tensors
