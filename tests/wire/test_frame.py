"""Frames: in one piece or in several, what is inside comes out; and what is damaged is noticed, long parts too."""

import random
import struct
import zlib

import numpy as np
import pytest

from fedprune.wire.frame import FRAME, ROW, checksum, framed, length, unframed

HEADER = {"client": 3, "names": ["a", "b"]}
SIZES = [
    (),
    (0,),
    (5,),
    (0, 0),
    (ROW, 3),
    (2 * ROW,),
    (2 * ROW + 1, 7),
    (0, 5 * ROW + 13, 0),
    (3 * ROW, 4 * ROW, 1, 3 * ROW),
]


def blocks_of(sizes: tuple[int, ...]) -> list[bytes]:
    return [random.Random(place).randbytes(size) for place, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", SIZES)
def test_header_and_blocks_come_out_of_the_pieces_and_of_these_joined(sizes):
    blocks = blocks_of(sizes)
    message = framed(HEADER, blocks)
    whole = b"".join(message)
    assert length(message) == length(whole) == len(whole)
    for form in (message, whole, bytearray(whole), np.frombuffer(whole, np.uint8), (whole,)):
        header, found = unframed(form)
        assert header == HEADER and [bytes(block) for block in found] == blocks


def test_a_long_block_is_a_piece_of_its_own_which_is_not_copied():
    block = bytes(10 * ROW)
    before, piece, after = framed(HEADER, [block, b"rest"])
    assert np.shares_memory(piece, np.frombuffer(block, np.uint8)) and len(piece) == len(block)
    assert len(before) < 100 and after.endswith(b"rest")


@pytest.mark.parametrize("sizes", SIZES)
def test_any_byte_that_differs_is_noticed(sizes):
    whole = b"".join(framed(HEADER, blocks_of(sizes)))
    places = range(len(whole)) if len(whole) < 300 else random.Random(0).sample(range(len(whole)), 300)
    for place in places:
        garbled = bytearray(whole)
        garbled[place] ^= 1 << (place % 8)
        with pytest.raises((ValueError, struct.error)):
            unframed(garbled)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_message_that_ends_too_early_is_refused_wherever_it_ends(sizes):
    whole = b"".join(framed(HEADER, blocks_of(sizes)))
    ends = range(len(whole)) if len(whole) < 300 else random.Random(1).sample(range(len(whole)), 100)
    for end in ends:
        with pytest.raises((ValueError, struct.error)):
            unframed(whole[:end])
    with pytest.raises(ValueError, match=r"."):
        unframed(framed(HEADER, [bytes(3 * ROW)])[:1])


def test_rows_in_another_order_are_noticed():
    rows = [bytes([number]) * ROW for number in range(4)]
    assert checksum([b"".join(rows)]) != checksum([b"".join([rows[1], rows[0], *rows[2:]])])


def test_the_checksum_of_a_long_part_by_hand():
    """Three rows of words 1, 2 and 3 sum to a row of 6, and their columns to 1, 2 and 3 times the length of a row; then nine
    bytes are left over."""
    part = b"".join(number.to_bytes(8, "little") * (ROW // 8) for number in (1, 2, 3)) + b"left over"
    sums = (6).to_bytes(8, "little") * (ROW // 8) + b"".join((number * ROW // 8).to_bytes(8, "little") for number in (1, 2, 3))
    expected = zlib.crc32((len(part)).to_bytes(4, "little") + sums + b"left over")
    assert checksum([part]) == expected
    assert FRAME.unpack_from(framed({}, [])[0])[1] == zlib.crc32(b"\x02\0\0\0{}")
