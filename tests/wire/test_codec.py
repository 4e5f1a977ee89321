"""Codecs: back to the bit, in the documented number of bytes, and nothing but ValueError on what is not an encoding."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fedprune.config.instantiate import make
from fedprune.pruning.mask import apply
from fedprune.types import Mask, Params
from fedprune.wire.codec import Layout, auto, bitmap, bits, decode, dense, gaps
from fedprune.wire.gaps import pack_gaps
from helpers.odd_networks import odd_tensors

CODECS = [dense, bitmap, gaps, auto]
MASKED = ("conv.weight", "fc.weight")
PRUNABLE = 2 * 3 * 3 * 3 + 5 * 7  # 89 entries: not a multiple of 8
REST = 4 * (5 + 2) + 2 * 8 + 3  # bytes of what no mask covers
DENSITIES = (0.0, 0.1, 0.5, 0.97, 1.0)


def network(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(2, 3, 3, 3, generator=generator),
        "fc.weight": torch.randn(5, 7, generator=generator),
        "fc.bias": torch.randn(5, generator=generator),
        "bn.running_mean": torch.randn(2, generator=generator),
        "bn.num_batches_tracked": torch.tensor(2**40 + seed),
        "offset": torch.tensor([-seed]),
        "flags": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
    }


LAYOUT = Layout.of(network(0), MASKED)


def random_mask(seed: int, density: float) -> Mask:
    generator = torch.Generator().manual_seed(seed + 1000)
    return {name: torch.rand(LAYOUT.shapes[name], generator=generator) < density for name in MASKED}


def living(mask: Mask) -> int:
    return sum(int(alive.sum()) for alive in mask.values())


def same_bits(a: Params, b: Params) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].numpy().tobytes() == b[n].numpy().tobytes() for n in a
    )


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_decoded_is_what_was_encoded_bit_for_bit(codec, density):
    for seed in range(6):
        mask = random_mask(seed, density)
        params = apply(network(seed), mask)
        for known in (None, mask, random_mask(seed + 1, density)):
            tensors, found = decode(codec(params, mask, known), LAYOUT, known)
            assert same_bits(tensors, params)
            assert same_bits(found, mask)


@pytest.mark.parametrize("codec", CODECS)
def test_a_layer_with_nothing_alive_comes_back_as_zeros(codec):
    mask = {"conv.weight": torch.ones(2, 3, 3, 3, dtype=torch.bool), "fc.weight": torch.zeros(5, 7, dtype=torch.bool)}
    params = apply(network(0), mask)
    tensors, found = decode(codec(params, mask, mask), LAYOUT, mask)
    assert same_bits(tensors, params)
    assert same_bits(found, mask)


@pytest.mark.parametrize("codec", CODECS)
def test_odd_numbers_keep_their_bits(codec):
    odd = torch.tensor([-0.0, math.nan, math.inf, -math.inf, 1e-45, 0.0])
    odd[1] = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)  # a NaN with a payload
    layout = Layout.of({"w": odd}, ("w",))
    for alive in ([True] * 6, [True, True, True, True, False, False]):
        mask = {"w": torch.tensor(alive)}
        params = apply({"w": odd}, mask)
        assert same_bits(decode(codec(params, mask, None), layout)[0], params)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8])
def test_other_types_of_numbers_travel_too(codec, dtype):
    params = {"w": torch.arange(12).to(dtype).view(3, 4), "scalar": torch.tensor(3).to(dtype)}
    mask = {"w": torch.arange(12).view(3, 4) % 3 != 0}
    params = apply(params, mask)
    tensors, _ = decode(codec(params, mask, None), Layout.of(params, ("w",)))
    assert all(tensors[n].dtype == dtype and torch.equal(tensors[n], params[n]) for n in params)


@pytest.mark.parametrize("codec", CODECS)
def test_without_prunable_tensors_the_mask_is_empty(codec):
    params = network(3)
    tensors, mask = decode(codec(params, {}, None), Layout.of(params, ()))
    assert same_bits(tensors, params)
    assert mask == {}


@pytest.mark.parametrize("codec", CODECS)
def test_tensors_that_are_not_contiguous_are_sent_in_their_own_order(codec):
    params = {"w": torch.arange(12.0).view(3, 4).t(), "b": torch.arange(10.0)[::2]}
    mask = {"w": torch.arange(12).view(3, 4).t() % 2 == 0}
    params["w"] = params["w"] * mask["w"]
    tensors, found = decode(codec(params, mask, None), Layout.of(params, ("w",)))
    assert all(torch.equal(tensors[n], params[n]) for n in params)
    assert torch.equal(found["w"], mask["w"])


# --- lengths: 2 bytes of head, ceil(n / 8) of mask (or 4 and its gaps), 4 a value, and what no mask covers -----------------


@pytest.mark.parametrize("density", DENSITIES)
def test_lengths_are_as_documented(density):
    for seed in range(4):
        mask = random_mask(seed, density)
        params = apply(network(seed), mask)
        bits = 0 if living(mask) == PRUNABLE else math.ceil(PRUNABLE / 8)
        distances = 0 if living(mask) == PRUNABLE else 4 + len(pack_gaps(mask))
        assert len(dense(params, mask, None)) == 2 + bits + 4 * PRUNABLE + REST
        assert len(bitmap(params, mask, None)) == 2 + bits + 4 * living(mask) + REST
        assert len(gaps(params, mask, None)) == 2 + distances + 4 * living(mask) + REST
        assert len(auto(params, mask, None)) == 2 + min(bits, distances) + 4 * living(mask) + REST
        assert len(auto(params, mask, mask)) == 2 + 4 * living(mask) + REST


def test_a_mask_of_the_dead_takes_its_length_and_no_more():
    """All dead is the way 0, and zeros are no bytes: 4 for the length, where bits would be 12."""
    mask = random_mask(0, 0.0)
    params = apply(network(0), mask)
    assert len(auto(params, mask, None)) == len(gaps(params, mask, None)) == 2 + 4 + REST == len(bitmap(params, mask, None)) - 8


def test_auto_leaves_out_the_mask_only_if_the_receiver_holds_the_very_same():
    mask = random_mask(0, 0.5)
    params = apply(network(0), mask)
    other = {name: alive.clone() for name, alive in mask.items()}
    assert auto(params, mask, other) == auto(params, mask, mask)
    other["fc.weight"][4, 6] ^= True
    for known in (other, {"fc.weight": mask["fc.weight"]}, {}, None):
        assert auto(params, mask, known) == bitmap(params, mask, None)


@pytest.mark.parametrize("density", DENSITIES)
def test_auto_is_never_longer_than_the_others(density):
    mask = random_mask(0, density)
    params = apply(network(0), mask)
    for known in (None, mask):
        assert len(auto(params, mask, known)) <= min(len(codec(params, mask, known)) for codec in CODECS)


# --- what is not an encoding -----------------------------------------------------------------------------------------------


def survives(data: bytes, known: Mask | None) -> bool:
    """Whether the bytes decode: to tensors of the layout that are zero where the mask is dead, or else to ValueError."""
    try:
        tensors, mask = decode(data, LAYOUT, known)
    except ValueError:
        return False
    assert {n: t.shape for n, t in tensors.items()} == LAYOUT.shapes
    assert {n: t.dtype for n, t in tensors.items()} == LAYOUT.dtypes
    assert {n: m.shape for n, m in mask.items()} == {n: LAYOUT.shapes[n] for n in MASKED}
    assert not any(bool(tensors[n][~mask[n]].any()) for n in MASKED)
    return True


def encodings() -> list[tuple[bytes, Mask | None]]:
    made = []
    for density in (0.0, 0.4, 1.0):
        mask = random_mask(7, density)
        params = apply(network(7), mask)
        made += [(codec(params, mask, None), None) for codec in (dense, bitmap, gaps)] + [(auto(params, mask, mask), mask)]
    return made


@pytest.mark.parametrize("case", range(12))
def test_cut_or_lengthened_bytes_are_refused_at_every_length(case):
    data, known = encodings()[case]
    assert survives(data, known)
    assert not any(survives(data[:length], known) for length in range(len(data)))
    assert not any(survives(data + bytes(extra), known) for extra in (1, 4, 1000))


@pytest.mark.parametrize("case", range(12))
def test_flipped_bits_decode_to_something_or_are_refused_and_never_crash(case):
    data, known = encodings()[case]
    random = np.random.default_rng(case)
    for place in [*range(16), *random.integers(len(data), size=60)]:
        for bit in range(8):
            garbled = bytearray(data)
            garbled[place] ^= 1 << bit
            survives(bytes(garbled), known)


def test_a_flipped_bit_of_the_mask_is_refused_for_the_values_no_longer_fit():
    mask = random_mask(7, 0.4)
    data = bitmap(apply(network(7), mask), mask, None)
    for bit in range(PRUNABLE):
        garbled = bytearray(data)
        garbled[2 + bit // 8] ^= 128 >> bit % 8
        assert not survives(bytes(garbled), None)


def test_foreign_bytes_are_refused():
    random = np.random.default_rng(0)
    for length in (0, 1, 2, 3, 100, 1000):
        assert not any(survives(random.bytes(length), None) for _ in range(50))
        assert not survives(bytes(length), None)
        assert not survives(b"\xff" * length, None)


def test_a_mask_that_was_left_out_cannot_be_made_up():
    mask = random_mask(0, 0.5)
    with pytest.raises(ValueError, match="the receiver holds none"):
        decode(auto(apply(network(0), mask), mask, mask), LAYOUT, None)


def test_an_encoding_of_another_network_is_refused():
    mask = {"w": torch.ones(3, 3, dtype=torch.bool)}
    for codec in CODECS:
        assert not survives(codec({"w": torch.ones(3, 3)}, mask, None), None)


# --- memory ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_decoded_tensors_are_writable_memory_of_their_own(codec):
    mask = random_mask(1, 0.5)
    params = apply(network(1), mask)
    data = bytearray(codec(params, mask, None))
    before = bytes(data)
    tensors, _ = decode(memoryview(data), LAYOUT)
    for tensor in tensors.values():
        tensor.fill_(1)
    assert bytes(data) == before
    assert same_bits(decode(data, LAYOUT)[0], params)
    places = [tensor.data_ptr() for tensor in tensors.values() if tensor.numel()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("codec", CODECS)
def test_encoding_changes_nothing(codec):
    mask, params = random_mask(2, 0.5), network(2)
    codec(params, mask, mask)
    assert same_bits(params, network(2))
    assert same_bits(mask, random_mask(2, 0.5))


@pytest.mark.parametrize("codec", CODECS)
def test_there_is_a_yaml_for_every_codec(codec):
    assert make(OmegaConf.load(Path(__file__).parents[2] / "conf" / "wire" / f"{codec.__name__}.yaml")) is codec


# --- bits ------------------------------------------------------------------------------------------------------------------


def test_zeros_and_ones_travel_as_one_bit_each_and_come_back_bit_for_bit():
    random = torch.Generator().manual_seed(0)
    sent = {"a": torch.rand(5, 7, generator=random).round(), "b": torch.rand(3, generator=random).round(), "c": torch.ones(1)}
    layout = Layout.of(sent, ())
    encoded = bits(sent, {})
    assert len(encoded) == 2 + math.ceil((35 + 3 + 1) / 8)
    found, mask = decode(encoded, layout)
    assert same_bits(found, sent)
    assert mask == {}


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, math.nan])
def test_what_is_neither_zero_nor_one_is_no_bit(value):
    with pytest.raises(ValueError, match="only zeros and ones"):
        bits({"a": torch.tensor([0.0, value])}, {})


def test_bits_that_are_too_few_or_too_many_are_no_encoding():
    sent = {"a": torch.ones(16)}
    encoded, layout = bits(sent, {}), Layout.of(sent, ())
    for damaged in (encoded[:-1], encoded + b"0"):
        with pytest.raises(ValueError, match="a mask of 16 entries takes 2 bytes"):
            decode(damaged, layout)


@pytest.mark.parametrize("codec", CODECS)
def test_every_type_and_shape_crosses_bit_for_bit(codec):
    tensors = odd_tensors()
    found, mask = decode(codec(tensors, {}), Layout.of(tensors, ()))
    assert mask == {}
    assert equal_bits(found, tensors)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128])
def test_every_type_crosses_under_a_mask(dtype, codec):
    alive = {"w": torch.tensor([[True, False], [False, True]])}
    tensors = {"w": torch.tensor([[1.5, 0.0], [0.0, -2.5]]).to(dtype)}
    found, mask = decode(codec(tensors, alive), Layout.of(tensors, ("w",)))
    assert torch.equal(mask["w"], alive["w"])
    assert equal_bits(found, tensors)


def equal_bits(a: Params, b: Params) -> bool:
    """As `same_bits`, of types that numpy does not have, too."""
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and torch.equal(words(a[n]), words(b[n])) for n in a
    )


def words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
