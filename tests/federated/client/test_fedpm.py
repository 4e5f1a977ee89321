"""FedPM: a posterior and the derivative of a sample by hand, and whole rounds against numpy with the same uniform draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import helpers.federation as small
from fedprune.amount import amount
from fedprune.errors import ConfigError, Incompatible
from fedprune.experiment.estimate import estimate
from fedprune.federated.client.fedpm import SampledMasks
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.server.accumulator import merged
from fedprune.federated.server.beta_mode import BetaMode
from fedprune.local.regularisers.sampled_masks import straight_through, times_probability
from fedprune.randomness import seeded, torch_seed, torch_stream
from fedprune.types import Job, Subnet
from fedprune.wire.frame import length
from helpers.federation import federation, inputs
from helpers.in_numpy import accuracy, gradient

FEDPM = ("federated/client=sampled_masks", "federated/aggregate=beta_mode", "how_often=never", "federated.weighting=uniform")
LAYERS = ("fc1.weight", "fc2.weight")


def scores_of(state) -> dict[str, np.ndarray]:
    """The state's scores, by the names of their weights."""
    return {name: state.server.params[f"{name}_score"].double().numpy() for name in LAYERS}


# --- by hand ---------------------------------------------------------------------------------------------------------------


def test_the_servers_scores_are_the_log_odds_of_a_beta_posteriors_mode():
    # Three clients; entries that 3, 2, 1 and 0 of them have. With a prior of 1: alpha = 4, 3, 2, 1 and beta = 1, 2, 3, 4, so
    # theta = (alpha - 1) / (alpha + beta - 2) = 3/3, 2/3, 1/3, 0/3, clipped to 0.99 and 0.01.
    # Log odds: ln 99, ln 2, -ln 2, -ln 99.
    bits = [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    updates = [(Subnet({"w_score": torch.tensor(row)}, {}), weight) for row, weight in zip(bits, (1.0, 1.0, 1.0), strict=True)]
    server = {"w": torch.tensor([7.0] * 4), "w_score": torch.tensor([0.5] * 4)}
    after = merged(BetaMode(), server, updates)
    assert after["w_score"].tolist() == pytest.approx([math.log(99), math.log(2), -math.log(2), -math.log(99)], abs=1e-6)
    assert after["w"] is server["w"]
    # With a prior of 2: alpha = 5, 4, 3, 2, beta = 2, 3, 4, 5, theta = 4/5, 3/5, 2/5, 1/5; odds 4, 3/2, 2/3, 1/4.
    after = merged(BetaMode(prior=2.0), server, updates)
    assert after["w_score"].tolist() == pytest.approx([math.log(x) for x in (4, 3 / 2, 2 / 3, 1 / 4)], abs=1e-6)
    assert merged(BetaMode(), server, []) == server


@pytest.mark.parametrize(("rule", "factor"), [(straight_through, lambda p: 1.0), (times_probability, lambda p: p)])
def test_a_sample_is_zero_or_one_and_has_the_derivative_that_its_rule_says(rule, factor):
    # theta = 0.25 and 0.75 with draws 0.3 and 0.3: the first is above (0), the second below (1). The loss 2 m_1 + 5 m_2 has
    # derivatives 2 and 5 by m; by theta, 1 or theta times as much: (2, 5) or (0.5, 3.75).
    theta = torch.tensor([0.25, 0.75], requires_grad=True)
    mask = rule(theta, torch.tensor([0.3, 0.3]))
    assert mask.tolist() == [0.0, 1.0]
    (mask * torch.tensor([2.0, 5.0])).sum().backward()
    assert theta.grad.tolist() == [2 * factor(0.25), 5 * factor(0.75)]


def test_a_federation_of_two_by_hand(play):
    """One linear layer: what the server makes of the very bits that the clients sent."""
    experiment = federation(*FEDPM, train=(range(0, 12), range(12, 30)), val=([36], [37]), test=([38], [39]), model=LINEAR)
    executor = experiment.executor()
    loop = experiment.loop(executor)
    start = loop.start()
    constant = math.e / math.sqrt(6)  # six inputs
    assert start.server.params["fc2.weight"].abs().flatten().tolist() == pytest.approx([constant] * 18)
    assert not start.server.params["fc2.bias"].any()
    sent = [
        update.subnet.params["fc2.weight_score"]
        for _, update in loop.exchange.train(loop._jobs(start, loop._cohort(start)), start, Tally())
    ]
    assert all(set(bits.unique().tolist()) <= {0.0, 1.0} for bits in sent)
    after, metrics = loop.round(start)
    odds = {0.0: math.log(0.01 / 0.99), 1.0: 0.0, 2.0: math.log(0.99 / 0.01)}  # of two clients: none, one, both
    expected = [odds[number] for number in sum(sent).flatten().tolist()]
    assert after.server.params["fc2.weight_score"].flatten().tolist() == pytest.approx(expected, abs=1e-5)
    assert set(expected) == set(odds.values())  # every case is there
    for name in ("fc2.weight", "fc2.bias"):
        assert torch.equal(after.server.params[name], start.server.params[name])
    theta = start.server.params["fc2.weight_score"].sigmoid()
    assert metrics["density/sampled"] == pytest.approx(float(theta.mean()), abs=1e-6)


LINEAR = {"_target_": "helpers.federation.mlp", "hidden": 0}


# --- against numpy ---------------------------------------------------------------------------------------------------------


SGD = ("local.optimizer.momentum=0.0",)


def sigmoid(s):
    return 1 / (1 + np.exp(-s))


def adam(moments, g, lr):
    """Kingma & Ba 2015 on one tensor; moments: (step, m, v)."""
    step, m, v = moments
    step, m, v = step + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return (step, m, v), lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)


def sgd(moments, g, lr):
    return moments, lr * g


def trained(constants, biases, scores, x, y, steps, lr, seed, optimizer, power):
    """A client's scores after `steps` full batches; power: of theta in the derivative of a sample."""
    scores, moments = dict(scores), dict.fromkeys(scores, (0, 0.0, 0.0))
    with seeded(seed, torch.device("cpu")):
        for _ in range(steps):
            theta = {name: sigmoid(s) for name, s in scores.items()}
            mask = {name: torch.rand(theta[name].shape).numpy() < theta[name] for name in LAYERS}
            g = gradient(biases | {name: constants[name] * mask[name] for name in LAYERS}, x, y)
            for name in LAYERS:
                t = theta[name]
                slope = g[name] * constants[name] * t**power * t * (1 - t)
                moments[name], step = optimizer(moments[name], slope, lr)
                scores[name] = scores[name] - step
    return scores


@pytest.mark.parametrize(
    ("overrides", "optimizer", "lr", "power"),
    [
        ((*SGD, "local.optimizer.lr=2.0"), sgd, 2.0, 0),
        (("local/optimizer=adam", "local.optimizer.lr=0.1"), adam, 0.1, 0),
        ((*SGD, "local.optimizer.lr=2.0", "federated.client.gradient=times_probability"), sgd, 2.0, 1),
    ],
    ids=["sgd", "adam", "times_probability"],
)
def test_rounds_are_what_numpy_makes_of_the_same_uniform_draws(overrides, optimizer, lr, power, play, monkeypatch):
    monkeypatch.setattr(small, "PLAIN", tuple(word for word in small.PLAIN if "optimizer" not in word))  # Adam has no momentum
    experiment = federation(*FEDPM, "local.epochs=3", "rounds=4", *overrides)
    loop = experiment.loop(experiment.executor())
    start = loop.start()
    scores, constants = scores_of(start), {name: start.init[name].double().numpy() for name in LAYERS}
    biases = {f"fc{n}.bias": np.zeros(size) for n, size in ((1, 5), (2, 3))}
    for round, (state, metrics) in enumerate(play(experiment)):
        there = dict.fromkeys(LAYERS, 0)
        for client, indices in enumerate(experiment.clients.train):
            seed = torch_seed(0, "training", round, client)
            local = trained(constants, biases, scores, *inputs(experiment, indices), 3, lr, seed, optimizer, power)
            for name in LAYERS:
                stream = torch_stream(0, f"sampled mask {name}_score", round, client)
                there[name] = there[name] + (torch.rand(local[name].shape, generator=stream).numpy() < sigmoid(local[name]))
        for name in LAYERS:  # alpha = 1 + sum, beta = 1 + 3 - sum
            theta = np.clip(there[name] / 3, 0.01, 0.99)
            scores[name] = np.log(theta / (1 - theta))
        assert all(np.abs(scores_of(state)[name] - scores[name]).max() < 1e-5 for name in LAYERS)
        assert metrics["test/accuracy"] == pytest.approx(evaluated(experiment, constants, biases, scores), abs=1e-6)


def evaluated(experiment, constants, biases, scores) -> float:
    """The mean accuracy of three sampled networks on the global test set."""
    x, y = experiment.dataset.test_x.numpy().reshape(9, -1) / 4.0, experiment.dataset.test_y.numpy()
    found = []
    for number in range(3):
        w = dict(biases)
        for name in LAYERS:
            stream = torch_stream(0, f"evaluated mask {name}_score", number)
            w[name] = constants[name] * (torch.rand(scores[name].shape, generator=stream).numpy() < sigmoid(scores[name]))
        found.append(accuracy(w, x, y))
    return float(np.mean(found))


# --- as a part of the house ------------------------------------------------------------------------------------------------


def test_a_client_sends_one_bit_for_each_weight_and_is_sent_four_bytes(tiny, play):
    experiment = tiny(*FEDPM)
    ((state, metrics),) = play(experiment, stop=1)
    wire, weights = experiment.wire, 50_200
    loop = experiment.loop(experiment.executor())
    start = loop.start()
    block = wire.subnet_block(start.server)
    assert len(block) == 2 + 4 * weights
    job = wire.encode_job(Job(0, 0, 0, 0, start.server), block)
    assert metrics["wire/down_bytes"] == 2 * length(job)
    framing = 300  # magic, checksum, who, how many examples, loss, steps
    assert 2 * (weights // 8 + 2) < metrics["wire/up_bytes"] < 2 * (weights // 8 + framing)
    sent = [
        wire.encode_update(update, {})
        for _, update in loop.exchange.train(loop._jobs(start, loop._cohort(start)), start, Tally())
    ]
    assert metrics["wire/up_bytes"] == sum(map(length, sent))
    assert list(state.server.params) == list(start.server.params)


def test_the_estimate_is_what_is_sent(tiny, play):
    experiment = tiny(*FEDPM, "rounds=2")
    rows = dict(estimate(experiment, experiment.config))
    state, _ = play(experiment)[-1]
    assert rows["bytes down"] == f"{amount(state.down_bytes)} for training"
    assert state.up_bytes == pytest.approx(float(rows["bytes up"].split()[0]) * 1000, rel=0.01)


def test_who_does_not_answer_is_not_counted(tiny, play):
    silent = ("federated/availability=dropout", "federated.availability.rate=0.5", "rounds=6", "federated.cohort=4")
    rows = [metrics for _, metrics in play(tiny(*FEDPM, *silent))]
    assert 0 < sum(row["clients/silent"] for row in rows) < 6 * 4
    for row in rows:
        assert row["density/sampled"] == pytest.approx(0.5, abs=0.05)


def test_executors_and_resuming_change_no_bit(tiny, play, differences):
    experiment = tiny(*FEDPM)
    played = play(experiment)
    others = play(tiny(*FEDPM, "executor=processes", "executor.workers=2"))
    for (state, metrics), (other, more) in zip(played, others, strict=True):
        assert differences(state, other) == []
        assert {k: v for k, v in metrics.items() if "time" not in k} == {k: v for k, v in more.items() if "time" not in k}
    resumed = play(experiment, state=played[0][0])
    assert differences(resumed[-1][0], played[-1][0]) == []


def test_the_run_learns(tiny, play):
    learning = ("rounds=15", "federated.cohort=4", "local.steps=20", "local/optimizer=adam", "local.optimizer.lr=0.1")
    first, *_, last = (metrics for _, metrics in play(tiny(*FEDPM, *learning, "eval_every=1")))
    assert last["test/accuracy"] > first["test/accuracy"] + 0.2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("how_often=one_shot",), "how_often=one_shot prunes, and federated/client=sampled_masks has another mask"),
        (("rewind=init",), "rewind=init: federated/client=sampled_masks never changes weights: choose rewind=none"),
        (("whose=personal",), "whose=personal: federated/client=sampled_masks has probabilities that all share"),
        (
            ("what=filters_global", "model=cnn_fedavg"),
            "what=filters_global: federated/client=sampled_masks samples single weights",
        ),
        (("federated/aggregate=overlap_mean",), "choose federated/aggregate=beta_mode"),
        (("federated.weighting=examples",), "set federated.weighting=uniform"),
        (("federated.optimizer_state=kept",), "set federated.optimizer_state=fresh"),
        (("federated/upload=top_weights",), "choose federated/upload=all"),
        (("federated.control=scaffold",), "set federated.control=none"),
        (("federated.server._target_=fedprune.federated.server.optimizer.FedAvgM",), "probabilities are not moved by steps"),
        (("local/penalty=l1",), "set local/penalty=none and local/dropout=none"),
        (("model=resnet20", "model.norm=batch"), "model=resnet20 has BatchNorm"),
        (("federated/client=trained_weights",), "federated/aggregate=beta_mode counts bits, and clients send weights"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused_by_name(overrides, message, tiny):
    with pytest.raises(Incompatible) as refused:
        tiny(*FEDPM, *overrides)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("federated.client.gradient=exact", "federated.client.gradient=exact: choose one of straight_through"),
        ("federated.client.masks=0", "federated.client.masks=0 must be at least 1"),
        ("federated.client.gain=0.0", "federated.client.gain=0.0 scales all weights"),
        ("federated.aggregate.prior=0.5", "federated.aggregate.prior=0.5"),
        ("federated.aggregate.clip=0.5", "federated.aggregate.clip=0.5"),
    ],
)
def test_single_values_out_of_range_are_refused(override, message, tiny):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        tiny(*FEDPM, override)


def test_layers_that_it_does_not_sample_are_refused_by_name():
    net = torch.nn.Sequential(torch.nn.LSTM(2, 3), torch.nn.Linear(3, 2))
    with pytest.raises(Incompatible, match=r"not 0 \(LSTM\): choose what\.layers=\[conv,linear\]"):
        SampledMasks().prepare(net, ("0.weight_ih_l0", "1.weight"))
