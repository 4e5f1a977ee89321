"""What all clients have alike stays as it is, bit for bit, in every aggregate, server step, encoding and file."""

from __future__ import annotations

import pytest
import torch

from fedprune.errors import RunError
from fedprune.federated.server.accumulator import merged
from fedprune.federated.server.aggregate import OverlapMean, intersection, mean_with_zeros
from fedprune.federated.server.optimizer import Average, FedAdam, FedAvgM
from fedprune.federated.server.robust import CoordinateMedian, TrimmedMean
from fedprune.local.memory_format import in_own_memory
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import Params, Subnet
from helpers.odd_networks import odd_tensors

MERGES = [OverlapMean(), OverlapMean("zero"), mean_with_zeros, intersection, CoordinateMedian(), TrimmedMean(0.3)]
BIG = 2**60 + 1  # no float64 is that: in one, it is 2^60


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().tobytes()


def merged_buffer(merge, tensors: list[torch.Tensor], weights=(1.0, 2.0, 5.0)) -> torch.Tensor:
    """What becomes of a buffer `b`, beside a weight that two of the clients have."""
    masks = [torch.tensor(alive) for alive in ([True, True], [True, False], [True, True])]
    params = [{"w": torch.where(alive, 1.5, 0.0), "b": tensor} for alive, tensor in zip(masks, tensors, strict=True)]
    updates = [(Subnet(own, {"w": alive}), weight) for own, alive, weight in zip(params, masks, weights, strict=True)]
    server = {"w": torch.zeros(2), "b": torch.zeros_like(tensors[0])}
    return merged(merge, server, updates)["b"]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("name", odd_tensors())
def test_what_all_have_alike_stays_bit_for_bit(name, merge):
    tensor = odd_tensors()[name]
    found = merged_buffer(merge, [tensor.clone() for _ in range(3)])
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert bits_of(found) == bits_of(tensor)


@pytest.mark.parametrize(
    ("merge", "mean"),
    # Of 0, 3 and 6 with the weights 1, 2 and 5: 36 / 8 = 4.5; robust ones ignore weights, and their middle is 3.
    [*((merge, 4.5) for merge in MERGES[:4]), *((merge, 3.0) for merge in MERGES[4:])],
)
def test_entries_that_are_alike_stay_beside_others_that_are_averaged(merge, mean):
    found = merged_buffer(merge, [torch.tensor([x, -torch.inf, torch.nan, torch.inf, 1.0]) for x in (0.0, 3.0, 6.0)])
    assert found[0] == mean
    assert found[1:].tolist()[0] == -torch.inf
    assert torch.isnan(found[2])
    assert found[3:].tolist() == [torch.inf, 1.0]


@pytest.mark.parametrize("merge", MERGES)
def test_whole_numbers_are_exact_where_they_are_equal_and_rounded_means_elsewhere(merge):
    # (0 + 2 x 3 + 5 x 6) / 8 = 4.5 is rounded to 4, the even one; the middle is 3.
    found = merged_buffer(merge, [torch.tensor([BIG, x, -BIG]) for x in (0, 3, 6)])
    assert found.tolist() == [BIG, 3 if merge in MERGES[4:] else 4, -BIG]


@pytest.mark.parametrize("merge", MERGES)
def test_complex_numbers_are_averaged_by_their_parts(merge):
    # Real parts 0, 3, 6 and imaginary parts 6, 3, 0: 4.5 and (6 + 6 + 0) / 8 = 1.5; the middles are 3 and 3.
    found = merged_buffer(merge, [torch.tensor([complex(x, 6 - x), 1j]) for x in (0, 3, 6)])
    assert found.tolist() == [3 + 3j if merge in MERGES[4:] else 4.5 + 1.5j, 1j]


def test_one_of_three_who_disagrees_is_heard():
    minus = torch.tensor([-torch.inf])
    found = merged_buffer(OverlapMean(), [minus, torch.tensor([0.0]), minus])
    assert not torch.isfinite(found).any()
    assert merged_buffer(OverlapMean(), [torch.tensor([BIG]), torch.tensor([BIG]), torch.tensor([BIG + 2**20])])[0] > BIG


def test_what_is_alike_and_dead_is_by_the_rule_of_what_nobody_has():
    # Infinite in the first entry, which all have; nobody has the second, where the server's 7 stays.
    alive = {"w": torch.tensor([True, False])}
    updates = [(Subnet({"w": torch.tensor([torch.inf, 0.0])}, alive), 1.0)] * 2
    server = {"w": torch.tensor([1.0, 7.0])}
    assert merged(OverlapMean(), server, updates)["w"].tolist() == [torch.inf, 7.0]
    assert merged(intersection, server, updates)["w"].tolist() == [torch.inf, 7.0]


def test_one_update_alone_is_what_comes_out():
    tensors = odd_tensors()
    found = merged(OverlapMean(), tensors, [(Subnet(dict(tensors), {}), 3.0)])
    assert {name: bits_of(value) for name, value in found.items()} == {name: bits_of(t) for name, t in tensors.items()}


@pytest.mark.parametrize("step", [Average(), FedAvgM(), FedAdam()])
def test_a_server_step_moves_what_is_trained_and_nothing_else(step):
    server: Params = {"w": torch.zeros(2), **odd_tensors()}
    mean = {**server, "w": torch.ones(2)}
    after, momentum = step(server, mean, {}, ("w",))
    after, _ = step(after, {**after, "w": torch.ones(2)}, momentum, ("w",))
    assert (after["w"] > 0).all()
    assert all(bits_of(after[name]) == bits_of(tensor) for name, tensor in odd_tensors().items())


def test_complex_parameters_step_by_their_parts():
    # As torch's Adam: each part by itself. With beta1 = beta2 = 0 and tau = 1 the step is delta / (|delta| + 1).
    after, momentum = FedAdam(1.0, 0.0, 0.0, 1.0)({"w": torch.zeros(1) + 0j}, {"w": torch.tensor([1 - 3j])}, {}, ("w",))
    assert after["w"].tolist() == [0.5 - 0.75j]
    again, _ = FedAvgM(1.0, 0.0)({"w": torch.zeros(1) + 0j}, {"w": torch.tensor([1 - 3j])}, {}, ("w",))
    assert again["w"].tolist() == [1 - 3j]
    assert momentum["m"]["w"].tolist() == [[1.0, -3.0]]


def test_entries_that_share_memory_get_their_own():
    net = torch.nn.Linear(3, 2)
    net.weight = torch.nn.Parameter(torch.arange(2.0).view(2, 1).expand(2, 3))
    net.register_buffer("b", torch.ones(1).expand(4))
    assert in_own_memory(net) is net
    net.b.copy_(torch.arange(4.0))
    assert net.b.tolist() == [0, 1, 2, 3]
    with torch.no_grad():
        net.weight += torch.arange(3.0)
    assert net.weight.tolist() == [[0, 1, 2], [1, 2, 3]]


# --- whole runs ------------------------------------------------------------------------------------------------------------

ODD = "model._target_=helpers.odd_networks.Odd"


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("federated=fedavgm",),
        ("federated=fedadam", "executor=processes", "executor.workers=1"),
        ("federated=scaffold", "federated/aggregate=trimmed_mean"),
        ("federated/aggregate=mean_with_zeros", "federated/upload=top_difference"),
        ("federated/aggregate=intersection", "wire=dense", "criterion=snip"),
        ("federated/aggregate=coordinate_median", "federated.batchnorm=local", "whose=personal"),
        ("how_often=iterative", "when=after_training", "rewind=init", "rounds=1"),
        ("federated.batchnorm=frozen", "executor=batched"),
        ("how_often=never", "federated/round=neighbours_full", "federated/client=evolving_mask", "whose=personal"),
    ],
    ids=lambda overrides: " ".join(overrides) or "fedavg",
)
def test_what_nobody_trains_is_after_a_run_what_it_was(overrides, tiny, play):
    more = {"federated/round": ("whose.at=end", "federated.weighting=uniform"), "federated/upload": ()}
    extra = [word for override in overrides for word in more.get(override.partition("=")[0], ())]
    played = play(tiny(ODD, *overrides, *extra))
    state = played[-1][0]
    start, end = state.init, state.server.params
    still = [*odd_tensors(), "places"]
    assert {name: bits_of(end[name]) for name in still} == {name: bits_of(start[name]) for name in still}
    if "neighbours" not in " ".join(overrides):
        assert not torch.equal(start["last.weight"], end["last.weight"])
    for kept in state.kept.values():
        tensors = kept.batchnorm | kept.weights
        assert all(bits_of(tensors[name]) == bits_of(start[name]) for name in still if name in tensors)


def test_a_run_with_such_tensors_resumes_from_its_checkpoint(tiny, play, differences, tmp_path):

    whole = play(tiny(ODD, "federated=fedavgm"))
    save_state(whole[0][0], tmp_path / "state.safetensors")
    resumed = play(tiny(ODD, "federated=fedavgm"), state=load_state(tmp_path / "state.safetensors"))
    assert differences(whole[-1][0], resumed[-1][0]) == []


def test_weights_that_become_infinite_have_diverged_all_the_same(tiny, play):

    with pytest.raises(RunError, match="diverged"):
        play(tiny(ODD, "local.optimizer.lr=1e30"))
