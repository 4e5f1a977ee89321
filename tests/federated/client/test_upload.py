"""What travels back: by hand, merged by hand, whole runs of ZeroFL against numpy, and its bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.experiment.estimate import estimate
from fedprune.federated.client.upload import difference_on_top_weights, everything, greatest, top_difference, top_weights
from fedprune.federated.sampling import cohort
from fedprune.federated.server.accumulator import merged
from fedprune.federated.server.aggregate import OverlapMean, mean_with_zeros
from fedprune.local.regularisers.swat import used
from fedprune.pruning.mask import count
from fedprune.randomness import torch_stream
from fedprune.run_id import folder_hash
from fedprune.types import Subnet

ZEROFL = (
    "federated/aggregate=mean_with_zeros",
    "local/dropout=swat",
    "local.dropout.density=0.2",
    "local.optimizer.momentum=0",
)
UPLOADS = {"top_weights": top_weights, "difference_on_top_weights": difference_on_top_weights, "top_difference": top_difference}


# --- by hand ---------------------------------------------------------------------------------------------------------------

# Sent, and what two clients of 1 and 3 examples made of it; a density of 1/2 is two of four weights.
SENT = Subnet({"w": torch.tensor([4.0, -3.0, 2.0, 1.0]), "b": torch.tensor([0.0])}, {"w": torch.ones(4, dtype=torch.bool)})
FIRST = Subnet({"w": torch.tensor([5.0, -3.5, 0.0, 3.0]), "b": torch.tensor([4.0])}, SENT.mask)
SECOND = Subnet({"w": torch.tensor([4.5, 1.0, 2.0, -6.0]), "b": torch.tensor([8.0])}, SENT.mask)


def sent_back(option, client: Subnet) -> tuple[list[float], list[bool]]:
    packed = option(0.5).pack(SENT.params, client)
    assert packed.params["b"] is client.params["b"]  # travels whole
    return packed.params["w"].tolist(), packed.mask["w"].tolist()


def test_the_greatest_weights_by_hand():
    assert sent_back(top_weights, FIRST) == ([5.0, -3.5, 0, 0], [True, True, False, False])
    assert sent_back(top_weights, SECOND) == ([4.5, 0, 0, -6.0], [True, False, False, True])


def test_the_change_of_the_greatest_weights_by_hand():
    assert sent_back(difference_on_top_weights, FIRST) == ([1.0, -0.5, 0, 0], [True, True, False, False])
    assert sent_back(difference_on_top_weights, SECOND) == ([0.5, 0, 0, -7.0], [True, False, False, True])


def test_the_greatest_changes_by_hand():
    # Changes 1, -0.5, -2, 2 and 0.5, 4, 0, -7.
    assert sent_back(top_difference, FIRST) == ([0, 0, -2.0, 2.0], [False, False, True, True])
    assert sent_back(top_difference, SECOND) == ([0, 4.0, 0, -7.0], [False, True, False, True])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        # (1 x 5 + 3 x 4.5) / 4, (1 x -3.5 + 3 x 0) / 4, 0, (1 x 0 + 3 x -6) / 4
        (top_weights, [4.625, -0.875, 0.0, -4.5]),
        # 4 + (1 x 1 + 3 x 0.5) / 4, -3 + (1 x -0.5) / 4, 2, 1 + (3 x -7) / 4
        (difference_on_top_weights, [4.625, -3.125, 2.0, -4.25]),
        # 4, -3 + (3 x 4) / 4, 2 + (1 x -2) / 4, 1 + (1 x 2 + 3 x -7) / 4
        (top_difference, [4.0, 0.0, 1.5, -3.75]),
    ],
)
def test_what_the_server_makes_of_two_clients_by_hand(option, expected):
    def of_both(aggregate):
        arrived = [option(0.5).unpack(SENT, option(0.5).pack(SENT.params, client)) for client in (FIRST, SECOND)]
        return merged(aggregate, SENT.params, zip(arrived, (1.0, 3.0), strict=True))

    assert of_both(mean_with_zeros)["w"].tolist() == expected
    assert of_both(mean_with_zeros)["b"].tolist() == [7.0]  # (1 x 4 + 3 x 8) / 4
    if option is not top_weights:  # differences need no aggregate of their own
        assert of_both(OverlapMean())["w"].tolist() == expected


def test_all_travels_as_it_is():
    assert everything().pack(SENT.params, FIRST) is FIRST and everything().unpack(SENT, FIRST) is FIRST


@pytest.mark.parametrize("name", UPLOADS)
def test_the_dead_never_travel_and_nothing_is_written_to(name):
    torch.manual_seed(0)
    alive = {"w": torch.rand(6, 7) < 0.4, "v": torch.ones(5, dtype=torch.bool)}
    sent, after = ({n: torch.randn(m.shape) * m for n, m in alive.items()} for _ in range(2))
    before = {n: t.clone() for n, t in (sent | {f"{n} after": t for n, t in after.items()}).items()}
    option = UPLOADS[name](0.5)
    packed = option.pack(sent, Subnet(after, alive))
    back = option.unpack(Subnet(sent, alive), packed)
    living = int(alive["w"].sum())
    assert living < 21 and int(packed.mask["w"].sum()) == living  # fewer are alive than half of all
    assert int(packed.mask["v"].sum()) == 3  # 2.5
    for subnet in (packed, back):
        assert all(not (subnet.mask[n] & ~m).any() and not subnet.params[n][~subnet.mask[n]].any() for n, m in alive.items())
    assert all(torch.equal(t, before[n]) for n, t in (sent | {f"{n} after": t for n, t in after.items()}).items())
    assert torch.allclose(back.params["w"], after["w"], atol=1e-6)


def test_ties_go_to_the_lower_place():
    mask = {"w": torch.ones(5, dtype=torch.bool)}
    assert greatest({"w": torch.tensor([1.0, -2.0, 2.0, 2.0, 1.0])}, mask, 0.4)["w"].tolist() == [
        False,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("option", UPLOADS.values())
@pytest.mark.parametrize("density", [0.0, 1.5])
def test_a_density_out_of_range_is_refused(option, density):
    with pytest.raises(ConfigError, match=r"federated\.upload\.density=.* is the fraction of each layer that travels"):
        option(density)


# --- three rounds against numpy --------------------------------------------------------------------------------------------


def top(values: np.ndarray, density: float) -> np.ndarray:
    order = np.argsort(-np.abs(values).ravel(), kind="stable")
    keep = np.zeros(values.size, bool)
    keep[order[: int(np.floor(density * values.size + 0.5))]] = True
    return keep.reshape(values.shape)


def swat_gradients(params: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, density: float) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy of three linear layers with ReLU between them, run on their greatest weights."""
    layers, inputs = ("fc1", "fc2", "fc3"), [x]
    sparse = {layer: params[f"{layer}.weight"] * top(params[f"{layer}.weight"], density) for layer in layers}
    for layer in layers:
        z = inputs[-1] @ sparse[layer].T + params[f"{layer}.bias"]
        inputs.append(np.maximum(z, 0) if layer != "fc3" else z)
    p = np.exp(inputs[-1] - inputs[-1].max(1, keepdims=True))
    delta = (p / p.sum(1, keepdims=True) - np.eye(10)[y]) / len(y)
    found = {}
    for place in (2, 1, 0):
        kept = inputs[place] * top(inputs[place], density)
        found |= {f"{layers[place]}.weight": delta.T @ kept, f"{layers[place]}.bias": delta.sum(0)}
        delta = (delta @ sparse[layers[place]]) * (inputs[place] > 0)
    return found


def zerofl(experiment, init, upload: str, density: float, rounds: int = 3) -> dict[str, np.ndarray]:
    """Straight-line ZeroFL in float64: four clients, two a round, three steps of 16 each."""
    w = {n: t.double().numpy() for n, t in init.items()}
    data = experiment.dataset
    for r in range(rounds):
        total, sums = 0, {n: np.zeros_like(v) for n, v in w.items()}
        for k in cohort(0, r, 4, 2):
            part = experiment.clients.train[k]
            order = part[torch.randperm(len(part), generator=torch_stream(0, "batches", r, k))]
            y = dict(w)
            for batch in order[: 3 * 16].split(16):
                x = data.normalise(data.x[batch]).double().flatten(1).numpy()
                g = swat_gradients(y, x, data.y[batch].numpy(), 0.2)
                y = {n: y[n] - 0.05 * g[n] for n in y}
            total += len(part)
            for n in y:
                difference = y[n] - w[n]
                if n.endswith("bias"):
                    sums[n] += len(part) * y[n]
                elif upload == "top_weights":
                    sums[n] += len(part) * y[n] * top(y[n], density)
                else:
                    chosen = top(y[n], density) if upload == "difference_on_top_weights" else top(difference, density)
                    sums[n] += len(part) * difference * chosen
        merged = {n: s / total for n, s in sums.items()}
        w = {n: merged[n] if upload == "top_weights" or n.endswith("bias") else w[n] + merged[n] for n in w}
    return w


@pytest.mark.parametrize("upload", UPLOADS)
def test_three_rounds_of_zerofl_are_those_of_a_straight_line_in_numpy(upload, tiny, play):
    experiment = tiny(*ZEROFL, f"federated/upload={upload}", "federated.upload.density=0.4", "partition=quantity_skew")
    last = play(experiment)[-1][0]
    expected = zerofl(experiment, last.init, upload, 0.4)
    for name, tensor in last.server.params.items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], atol=1e-6)


# --- whole runs ------------------------------------------------------------------------------------------------------------


def test_the_network_that_is_evaluated_is_the_sparse_one(tiny, play):
    experiment = tiny(*ZEROFL, "federated/upload=top_weights", "federated.upload.density=0.4", "rounds=1")
    state, metrics = play(experiment)[-1]
    data, names = experiment.dataset, tuple(state.server.mask)

    def accuracy(params) -> float:
        experiment.net.load_state_dict(params)
        with torch.no_grad():
            return float((experiment.net(data.normalise(data.test_x)).argmax(1) == data.test_y).float().mean())

    assert metrics["test/accuracy"] == pytest.approx(accuracy(used(state.server.params, names, 0.2)))
    assert metrics["test/accuracy"] != pytest.approx(accuracy(state.server.params))


@pytest.mark.parametrize("upload", UPLOADS)
def test_an_upload_takes_a_mask_at_its_entropy_and_the_values_that_travel(upload, tiny, play):
    experiment = tiny(*ZEROFL, f"federated/upload={upload}", "federated.upload.density=0.1")
    state, metrics = play(experiment)[0]
    assert count(state.server.mask) == 50_200  # the server's network stays dense
    values = 4 * (1_920 + 3_000 + 100) + 4 * 410  # a tenth of 19,200, 30,000 and 1,000 weights, and the biases
    # The mask is of 50,200 entries of which a tenth travels: at random 0.469 bits each, 2,943 bytes, and less with patterns.
    assert 1_000 < metrics["wire/up_bytes"] / 2 - values < 2_943 + 200
    assert metrics["wire/down_bytes"] / 2 > 50_610 * 4


def test_the_estimate_knows_what_travels(tiny):
    # Three rounds of two clients: 50,610 values of 4 bytes; or 5,020 and 410 of them, a mask of 50,200 entries at 0.469 bits
    # each, and about 150 bytes of headers and tables: 6 x (21,720 + 2,943 + 150).
    rows = [
        dict(estimate(e, e.config))["bytes up"]
        for e in (tiny(), tiny("federated/upload=top_difference", "federated.upload.density=0.1"))
    ]
    assert rows[0].startswith("1.22 MB") and rows[1].startswith("149 kB")


@pytest.mark.parametrize("upload", ["all", *UPLOADS])
@pytest.mark.parametrize("control", ["none", "scaffold"])
def test_it_goes_with_pruning_in_processes_and_with_controls(upload, control, tiny, play, differences):
    words = (*ZEROFL, f"federated/upload={upload}", f"federated.control={control}", "how_often=gradual", "when.stop=1")
    words += ("how_often.every=1",)
    last = play(tiny(*words))[-1][0]
    assert all(not last.server.params[name][~alive].any() for name, alive in last.server.mask.items())
    assert count(last.server.mask) == 15_060
    assert differences(play(tiny(*words, "executor=processes", "executor.workers=2"))[-1][0], last) == []


def test_by_default_what_travels_is_the_density_of_the_run_and_all_is_the_run_without(assemble, tiny, play, differences):
    config, _ = assemble("federated/upload=top_weights", "density=0.7")
    assert config.federated.upload.density == 0.7
    assert differences(play(tiny())[-1][0], play(tiny("federated/upload=all"))[-1][0]) == []
    default, other = (assemble(*words)[0] for words in ((), ("federated/upload=top_weights",)))
    assert folder_hash(default) != folder_hash(other)
