"""Streams are a function of (seed, purpose, round, client) alone, and independent of each other."""

from itertools import product

import numpy as np
import pytest
import torch

from fedprune.randomness import numpy_stream, seeded, torch_seed, torch_stream

KEYS = list(product((0, 1, 7, 2**40), ("cohort", "batches", ""), (0, 1, 2), (-1, 0, 1, 2)))
CPU = torch.device("cpu")


def test_the_same_key_gives_the_same_stream_in_any_order_of_asking():
    first = {key: (numpy_stream(*key).random(3).tolist(), torch.rand(3, generator=torch_stream(*key)).tolist()) for key in KEYS}
    np.random.seed(1)
    torch.manual_seed(1)
    for key in reversed(KEYS):
        assert numpy_stream(*key).random(3).tolist() == first[key][0]
        assert torch.rand(3, generator=torch_stream(*key)).tolist() == first[key][1]


def test_different_keys_give_different_streams():
    assert len({torch_seed(*key) for key in KEYS}) == len(KEYS)
    assert len({numpy_stream(*key).bytes(8) for key in KEYS}) == len(KEYS)


def test_arguments_do_not_stand_in_for_each_other():
    # Sums, concatenations and permutations of the same numbers must not meet.
    keys = [(a, "p", b, c) for a, b, c in product(range(12), repeat=3)]
    assert len({torch_seed(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize("changed", ["seed", "purpose", "round", "client"])
def test_neighbouring_streams_are_uncorrelated(changed):
    # 20,000 draws: correlation 0 with a standard deviation of 0.007.
    key = {"seed": 3, "purpose": "batches", "round": 5, "client": 2}
    other = key | {changed: "batches2" if changed == "purpose" else key[changed] + 1}
    for draw in (
        lambda k: numpy_stream(**k).random(20_000),
        lambda k: torch.rand(20_000, generator=torch_stream(**k)).numpy(),
    ):
        assert abs(np.corrcoef(draw(key), draw(other))[0, 1]) < 0.035


def test_streams_are_those_of_every_release():
    # Pinned: with other numbers nobody could repeat a published run.
    assert torch_seed(0, "training", 0, 0) == 2103678563474126257
    assert numpy_stream(0, "cohort", 0).integers(1000, size=4).tolist() == [965, 709, 485, 236]


def test_seeds_are_what_torch_takes():
    for key in KEYS:
        assert 0 <= torch_seed(*key) < 2**63
        torch.Generator().manual_seed(torch_seed(*key))


def test_the_server_is_client_minus_1():
    assert torch_seed(0, "x", 2) == torch_seed(0, "x", 2, -1) != torch_seed(0, "x", 2, 0)


def test_streams_leave_the_global_generators_alone():
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    numpy_stream(0, "x").random(5)
    torch.rand(5, generator=torch_stream(0, "x"))
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_seeded_is_a_function_of_its_seed_inside_and_leaves_no_trace_outside():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn = []
    for seed in (1, 2, 1):
        with seeded(seed, CPU):
            drawn.append(torch.nn.functional.dropout(torch.ones(100)).tolist())
        assert torch.equal(torch.get_rng_state(), before)
    assert drawn[0] == drawn[2] != drawn[1]


def test_seeded_leaves_no_trace_of_an_error_either():
    def draw_and_fail():
        torch.rand(3)
        raise RuntimeError("inside")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), seeded(1, CPU):
        draw_and_fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_draws_what_torch_draws_after_manual_seed():
    with seeded(11, CPU):
        inside = torch.rand(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        assert torch.equal(torch.rand(5), inside)
