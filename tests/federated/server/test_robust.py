"""Medians and trimmed means under masks: by hand, against numpy over random masks, and against clients that send anything."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.federated.server import robust
from fedprune.federated.server.accumulator import merged
from fedprune.federated.server.aggregate import OverlapMean
from fedprune.federated.server.robust import CoordinateMedian, TrimmedMean
from fedprune.types import Job, Params, Subnet
from fedprune.wire.frame import Message
from helpers.spy import spied

SERVER = {"w": torch.tensor([10.0, 20.0, 30.0, 40.0]), "b": torch.tensor([1.0])}
ALL = [CoordinateMedian(), TrimmedMean(0.0), TrimmedMean(0.25), TrimmedMean(0.49)]


def client(w: list[float], alive: list[int], b: float = 0.0) -> tuple[Subnet, float]:
    params = {"w": torch.tensor(w, dtype=torch.float32), "b": torch.tensor([b], dtype=torch.float32)}
    return Subnet(params, {"w": torch.tensor(alive, dtype=torch.bool)}), 1.0


FOUR = [
    client([1, 5, 7, 0], [1, 1, 1, 0], b=8),
    client([2, 9, 0, 0], [1, 1, 0, 0], b=-3),
    client([-4, 1, 0, 0], [1, 1, 0, 0], b=0),
    client([90, 0, 3, 0], [1, 0, 1, 0], b=2),
]
"""Clients of five weights: had by four, by three, by two and by nobody, and one that no mask has."""


def test_the_median_by_hand():
    # had by four:   -4 1 2 90, an even number: (1 + 2) / 2 = 1.5
    # had by three:  1 5 9: 5.  The fourth's 0 is dead, and does not count: with it, it would be 3.
    # had by two:    3 7: 5
    # had by nobody: the server's 40
    # b, four:        -3 0 2 8: 1
    found = merged(CoordinateMedian(), SERVER, FOUR)
    assert found["w"].tolist() == [1.5, 5.0, 5.0, 40.0]
    assert found["b"].tolist() == [1.0]


def test_the_trimmed_mean_by_hand():
    # trim 0.3 leaves out, at each end, floor(0.3 x 4) = 1 of four, floor(0.9) = 0 of three, floor(0.6) = 0 of two.
    # had by four:   -4 (1 2) 90: 1.5
    # had by three:  (1 + 5 + 9) / 3 = 5
    # had by two:    (3 + 7) / 2 = 5
    # b, four:        -3 (0 2) 8: 1
    found = merged(TrimmedMean(0.3), SERVER, FOUR)
    assert found["w"].tolist() == [1.5, 5.0, 5.0, 40.0]
    assert found["b"].tolist() == [1.0]
    # trim 0.2 leaves out floor(0.8) = 0 of four: (-4 + 1 + 2 + 90) / 4 = 22.25; b: (-3 + 0 + 2 + 8) / 4 = 1.75.
    found = merged(TrimmedMean(0.2), SERVER, FOUR)
    assert (found["w"].tolist(), found["b"].tolist()) == ([22.25, 5.0, 5.0, 40.0], [1.75])
    # trim 0.34 leaves out floor(1.02) = 1 of three, whose middle is 5: as before.
    found = merged(TrimmedMean(0.34), SERVER, [*FOUR[:2], client([-4, 4, 0, 0], [1, 1, 0, 0])])
    assert found["w"].tolist() == [1.0, 5.0, 7.0, 40.0]


@pytest.mark.parametrize("option", [CoordinateMedian, TrimmedMean])
def test_what_nobody_has_is_the_servers_or_zero(option):
    assert merged(option(uncovered="keep"), SERVER, FOUR)["w"][3] == 40.0
    assert merged(option(uncovered="zero"), SERVER, FOUR)["w"][3] == 0.0


def random_clients(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(server, values, masks) of up to nine clients; many values are equal, some negative zeros."""
    random = np.random.default_rng(seed)
    shape = (1 + seed % 9, 4, 6)
    alive = random.random(shape) < random.uniform(0.2, 1.0)
    values = np.where(random.random(shape) < 0.3, random.choice([0.0, -0.0, 1.0], shape), random.normal(size=shape))
    return random.normal(size=(4, 6)).astype(np.float32), (values * alive).astype(np.float32), alive


def updates_of(values: np.ndarray, alive: np.ndarray) -> list[tuple[Subnet, float]]:
    pairs = zip(values, alive, strict=True)
    return [(Subnet({"w": torch.from_numpy(w)}, {"w": torch.from_numpy(m)}), 1.0) for w, m in pairs]


@pytest.mark.parametrize("chunk", [robust.CHUNK, 7])
@pytest.mark.parametrize("seed", range(18))
def test_it_is_python_s_statistics_entry_by_entry_over_random_masks(seed, chunk, monkeypatch):
    monkeypatch.setattr(robust, "CHUNK", chunk)  # 24 entries, so also in pieces, the last of them shorter
    server, values, alive = random_clients(seed)
    updates = updates_of(values, alive)
    tensors = {"w": torch.from_numpy(server)}
    found = {trim: merged(TrimmedMean(trim), tensors, updates)["w"].numpy() for trim in (0.0, 0.1, 0.25, 0.4)}
    medians = merged(CoordinateMedian(), tensors, iter(updates))["w"].numpy()
    for place in itertools.product(range(4), range(6)):
        held = sorted(float(w[place]) for w, m in zip(values, alive, strict=True) if m[place])
        if not held:
            assert medians[place] == server[place] and all(trimmed[place] == server[place] for trimmed in found.values())
            continue
        assert medians[place] == np.float32(statistics.median(held))
        for trim, trimmed in found.items():
            cut = int(len(held) * round(100 * trim)) // 100
            assert trimmed[place] == pytest.approx(statistics.fmean(held[cut : len(held) - cut]), rel=1e-6)


@pytest.mark.parametrize("merge", ALL)
@pytest.mark.parametrize("seed", range(3, 9))
def test_the_order_of_the_clients_does_not_matter_to_a_bit(merge, seed, equal):
    server, values, alive = random_clients(seed)
    updates, tensors = updates_of(values, alive), {"w": torch.from_numpy(server)}
    first = merged(merge, tensors, updates)
    for order in itertools.islice(itertools.permutations(updates), 1, None, 7 if seed < 6 else 997):
        assert equal(merged(merge, tensors, order), first)


@pytest.mark.parametrize("merge", ALL)
def test_the_sign_of_a_zero_does_not_depend_on_the_order(merge):
    for zeros in itertools.permutations([-0.0, 0.0, -0.0]):
        found = merged(merge, SERVER, [client([zero] * 4, [1, 1, 1, 1]) for zero in zeros])
        assert found["w"].view(torch.int32).tolist() == [0] * 4


@pytest.mark.parametrize("merge", ALL)
def test_the_weights_of_the_clients_play_no_part(merge, equal):
    assert equal(merged(merge, SERVER, [(subnet, 10.0**n) for n, (subnet, _) in enumerate(FOUR)]), merged(merge, SERVER, FOUR))


@pytest.mark.parametrize("merge", ALL)
@pytest.mark.parametrize("number", [1, 2, 3, 7, 10])
def test_networks_that_are_equal_come_out_as_they_are_bit_for_bit_and_as_the_mean_of_all(merge, number, equal):
    update, _ = client([0.1, math.pi, 1e-42, 0.0], [1, 1, 1, 0], b=-7.7)
    server = SERVER | {"w": torch.zeros(4)}
    found = merged(merge, server, [(update, 1.0)] * number)
    assert equal(found, update.params)
    assert equal(found, merged(OverlapMean(), server, [(update, 1.0)] * number))


def test_without_trimming_it_is_the_uniform_mean():
    server, values, alive = random_clients(8)
    updates, tensors = updates_of(values, alive), {"w": torch.from_numpy(server)}
    torch.testing.assert_close(merged(TrimmedMean(0.0), tensors, updates), merged(OverlapMean(), tensors, updates))


@pytest.mark.parametrize("value", [1e6, -1e6, 3.4e38])
@pytest.mark.parametrize("merge", [CoordinateMedian(), TrimmedMean(0.2)])
def test_one_client_that_sends_anything_moves_it_within_what_the_others_sent(merge, value):
    generator = torch.Generator().manual_seed(1)
    full = {"w": torch.ones(200, dtype=torch.bool)}
    honest = [(Subnet({"w": torch.randn(200, generator=generator)}, full), 1.0) for _ in range(4)]
    liar = (Subnet({"w": torch.full((200,), value)}, full), 1e9)
    sent = torch.stack([subnet.params["w"] for subnet, _ in honest])
    server = {"w": torch.zeros(200)}
    found = merged(merge, server, [*honest[:2], liar, *honest[2:]])["w"]
    assert bool(((found >= sent.min(0).values) & (found <= sent.max(0).values)).all())
    assert merged(OverlapMean(), server, [*honest, (liar[0], 1.0)])["w"].abs().min() > 1e5  # which is what it withstands


# Three honest clients have 1, 2 and 3 in the first entry. Beside each kind of liar there is one that sends the constant 7.
#   sign flip, -2:   ranked -2 1 2 3 7: the middle one is 2; without the ends (1 + 2 + 3) / 3 = 2; the mean of all is 11 / 5
#   scaling, 2e6:    ranked 1 2 3 7 2e6: the middle one is 3; without the ends (2 + 3 + 7) / 3 = 4; the mean is 2000013 / 5
#   constant, 7:     ranked 1 2 3 7 7: the middle one is 3; without the ends (2 + 3 + 7) / 3 = 4; the mean is 20 / 5
@pytest.mark.parametrize(
    ("liar", "median", "trimmed", "mean"), [(-2.0, 2.0, 2.0, 2.2), (2e6, 3.0, 4.0, 400002.6), (7.0, 3.0, 4.0, 4.0)]
)
def test_two_liars_of_five_by_hand(liar, median, trimmed, mean):
    clients = [client([value] * 4, [1, 1, 1, 1]) for value in (1.0, 2.0, 3.0, 7.0, liar)]
    found = [merged(merge, SERVER, clients)["w"] for merge in (CoordinateMedian(), TrimmedMean(0.25), OverlapMean())]
    for tensor, value in zip(found, (median, trimmed, mean), strict=True):
        torch.testing.assert_close(tensor, torch.full((4,), value))


def test_two_liars_are_more_than_a_trimmed_mean_of_one_withstands():
    liars = [client([1e6] * 4, [1, 1, 1, 1])] * 2
    honest = [client([0] * 4, [1, 1, 1, 1])] * 3
    assert merged(TrimmedMean(0.2), SERVER, honest + liars)["w"].min() > 1e5
    assert merged(TrimmedMean(0.4), SERVER, honest + liars)["w"].tolist() == [0.0] * 4
    assert merged(CoordinateMedian(), SERVER, honest + liars)["w"].tolist() == [0.0] * 4


@pytest.mark.parametrize(("trim", "number", "cut"), [(0.29, 100, 29), (0.1, 10, 1), (0.1, 9, 0), (0.3, 10, 3), (0.499, 3, 1)])
def test_how_many_are_trimmed_is_exact_where_floats_are_not(trim, number, cut):
    # The clients send the squares from 0 on: nothing but what is left in can sum to what it should.
    assert int(0.29 * 100) == 28  # what floats make of it
    values = [float(n**2) for n in range(number)]
    left = values[cut : number - cut]
    updates = [(Subnet({"b": torch.tensor([v], dtype=torch.float64)}, {}), 1.0) for v in values]
    found = merged(TrimmedMean(trim), {"b": torch.zeros(1, dtype=torch.float64)}, updates)["b"]
    assert found.item() == pytest.approx(sum(left) / len(left), rel=1e-12)


@pytest.mark.parametrize("merge", ALL)
def test_without_updates_the_server_stays_and_nothing_is_written_to(merge):
    assert merged(merge, SERVER, []) == SERVER
    before = [{name: tensor.clone() for name, tensor in params.items()} for params in (SERVER, FOUR[0][0].params)]
    for tensor in merged(merge, SERVER, FOUR[:1]).values():
        tensor.fill_(99)
    after: list[Params] = [SERVER, FOUR[0][0].params]
    assert all(torch.equal(new[name], old[name]) for new, old in zip(after, before, strict=True) for name in new)


def test_counters_and_other_types_stay_what_they_are():
    # Counters 3, 4, 6 and 7: the median is 5; with 3, 4, 7 and 9 it is 5.5, rounded to the even 6. A scalar stays one.
    for numbers, middle in (((7, 3, 4, 6), 5), ((9, 3, 4, 7), 6)):
        updates = [(Subnet({"n": torch.tensor(n), "half": torch.tensor([0.5 * n]).bfloat16()}, {}), 1.0) for n in numbers]
        server: Params = {"n": torch.tensor(0), "half": torch.zeros(1).bfloat16()}
        for merge in (CoordinateMedian(), TrimmedMean(0.25)):
            found = merged(merge, server, updates)
            assert (found["n"].item(), found["n"].dtype, found["n"].shape) == (middle, torch.int64, ())
            assert found["half"].dtype == torch.bfloat16


@pytest.mark.parametrize("trim", [-0.1, 0.5, 1.0, math.nan])
def test_what_is_trimmed_leaves_something(trim):
    with pytest.raises(ConfigError, match=r"federated\.aggregate\.trim=.* 0 or more, less than 0\.5"):
        TrimmedMean(trim)


@pytest.mark.parametrize("option", [CoordinateMedian, TrimmedMean])
def test_a_rule_for_what_nobody_has_is_keep_or_zero(option):
    with pytest.raises(ConfigError, match=r"federated\.aggregate\.uncovered=drop: choose one of keep, zero"):
        option(uncovered="drop")


# --- in a run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["coordinate_median"], ["trimmed_mean", "federated.aggregate.trim=0.34"]])
def test_a_round_ends_with_the_middle_of_what_three_clients_trained(words, tiny, play):
    experiment = tiny("federated.clients=3", "federated.cohort=3", "rounds=1", f"federated/aggregate={words[0]}", *words[1:])
    ((state, _),) = play(experiment)
    executor = experiment.executor()
    start = experiment.loop(executor).start().server
    trained = [executor._client_round.train(Job(client, 0, 0, 0, start)).subnet.params for client in range(3)]
    for name, tensor in state.server.params.items():
        np.testing.assert_array_equal(tensor.numpy(), np.median([params[name].numpy() for params in trained], axis=0))


def test_a_run_with_a_client_that_sends_nan_and_one_that_scales_stays_among_the_honest(tiny, play):
    experiment = tiny(
        *("federated.clients=5", "federated.cohort=5", "rounds=1", "how_often=never", "federated.broken=drop"),
        "federated/aggregate=coordinate_median",
    )

    def lie(job: Job, answer: Message) -> Message:
        factor = {0: math.nan, 1: 1e6}.get(job.client, 1.0)
        update = experiment.wire.decode_update(answer, job.subnet.mask)
        assert update.subnet is not None
        params = {name: tensor * factor for name, tensor in update.subnet.params.items()}
        return experiment.wire.encode_update(replace(update, subnet=Subnet(params, update.subnet.mask)), job.subnet.mask)

    ((state, metrics),) = play(experiment, spied(experiment, lie))
    assert metrics["clients/dropped"] == metrics["clients/dropped/0"] == 1
    executor = experiment.executor()
    start = experiment.loop(executor).start().server
    honest = [executor._client_round.train(Job(client, 0, 0, 0, start)).subnet.params for client in (2, 3, 4)]
    for name, tensor in state.server.params.items():
        stacked = torch.stack([params[name] for params in honest])
        # Of four values the median is the mean of the middle two, and one beyond all others leaves these among the honest.
        assert bool(((stacked.amin(0) <= tensor) & (tensor <= stacked.amax(0))).all())


@pytest.mark.parametrize("aggregate", ["mean_with_zeros", "intersection"])
def test_under_one_mask_for_all_these_are_the_usual_mean(aggregate, tiny, play, differences):
    words = ("how_often=dynamic", "criterion=rigl", "how_often.every=1", "rounds=3")
    runs = [play(tiny(*words, f"federated/aggregate={option}"))[-1][0] for option in (aggregate, "overlap_mean")]
    assert differences(*runs) == []
