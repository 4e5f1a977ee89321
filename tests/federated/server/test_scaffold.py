"""SCAFFOLD in whole rounds: two clients by hand, three rounds against numpy, bytes, masks, resuming, rewinding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedprune.capabilities import complete
from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients
from fedprune.errors import ConfigError, Incompatible
from fedprune.execution import Serial
from fedprune.experiment.estimate import estimate
from fedprune.federated.client.context import Context
from fedprune.federated.client.round import ClientRound
from fedprune.federated.masks import PruneContext, prune_server
from fedprune.federated.sampling import cohort
from fedprune.federated.server.optimizer import ServerStep
from fedprune.federated.server.scaffold import sent, start, stepped, summed
from fedprune.local.module import LocalModule
from fedprune.local.recipe import Recipe
from fedprune.pruning.criterion import Criterion, magnitude
from fedprune.pruning.event import Axes
from fedprune.pruning.mask import count
from fedprune.pruning.rewind import Draws, Early, Keep, LearningRate, Rewind
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.randomness import torch_stream
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import ClientState, Plan, PruneEvent, ServerState, State, Subnet, Update
from fedprune.wire.codec import Layout, auto
from fedprune.wire.message import Wire

SCAFFOLD = ("federated=scaffold", "local.optimizer.momentum=0")
CENTRAL = ("federated.clients=1", "federated.cohort=1")
EXCHANGE = ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "rounds=4", "when.stop=1")


# --- by hand ---------------------------------------------------------------------------------------------------------------


class Halves(LocalModule):
    """Half the square of (output - label)."""

    def loss(self, outputs, labels, reduction):
        errors = (outputs[:, 0] - labels).square() / 2
        return errors.mean() if reduction == "mean" else errors


def by_hand(tiny) -> tuple:
    """A federation of two clients with one example each, x = 1, of label 4 and 0; the network is w x + b, from w = b = 0."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1))
    nn.init.zeros_(net[1].weight), nn.init.zeros_(net[1].bias)
    x, y = torch.ones(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([4, 0])
    data, none = Dataset("two", x, y, x, y, 1, (0.0,), (1.0,)), torch.zeros(0, dtype=torch.int64)
    clients = Clients((torch.tensor([0]), torch.tensor([1])), (none, none), (none, none), none)
    experiment = tiny(*SCAFFOLD, "federated.clients=2")
    what = experiment.axes.what.bind(net)
    wire = Wire(auto, Layout.of(net.state_dict(), what.names))
    module = Halves(net, lambda parameters: torch.optim.SGD(parameters, lr=0.25))
    executor = Serial(lambda: ClientRound(Context(module, data, clients, Recipe(epochs=None, steps=2, batch_size=1), wire)))
    init = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    axes = Axes(what, experiment.axes.criterion)
    own = replace(
        experiment, net=net, dataset=data, clients=clients, wire=wire, axes=axes, controlled=tuple(init), flops={"": 1.0}
    )
    loop = replace(own.loop(executor), fresh=lambda number: init)
    return loop, loop.start()


def test_two_rounds_of_two_clients_by_hand(tiny):
    # The gradients by w and b are the same: w + b - label. Both steps of a round move w and b by -1/4 of the corrected ones.
    # Round 0, c = c_1 = c_2 = 0.
    #   client 1 (label 4): gradients -4, -2: w = b = 1, 1.5.  c_1 = (0 - 1.5) / (2/4) = -3, the mean of the two
    #   client 2 (label 0): gradients 0, 0: w = b = 0.         c_2 = 0
    #   server: w = b = 0.75, c = 0 + 2/2 mean(-3, 0) = -1.5
    # Round 1.
    #   client 1, correction -1.5 + 3 = 1.5: -2.5 + 1.5 = -1, w = b = 1; -2 + 1.5 = -0.5, w = b = 1.125
    #     c_1 = -3 + 1.5 + (0.75 - 1.125) / (2/4) = -2.25, the mean of -2.5 and -2
    #   client 2, correction -1.5 - 0: 1.5 - 1.5 = 0, twice: w = b = 0.75.  c_2 = 0 + 1.5 + 0 = 1.5, the mean of 1.5 and 1.5
    #   server: w = b = 0.9375, c = -1.5 + mean(0.75, 1.5) = -0.375, the mean of -2.25 and 1.5
    loop, state = by_hand(tiny)
    for w, c, own in ((0.75, -1.5, (-3.0, 0.0)), (0.9375, -0.375, (-2.25, 1.5))):
        state, _ = loop.round(state)
        for name in ("1.weight", "1.bias"):
            assert state.server.params[name].item() == w
            assert state.server_state.control[name].item() == c
            assert tuple(state.kept[client].control[name].item() for client in (0, 1)) == own


def test_the_servers_control_moves_by_the_sum_of_changes_over_all_clients():
    # Five clients, of which two trained: c = 1 + 2/5 mean(2, 3) = 1 + (2 + 3) / 5 = 2
    changes = {}
    for change in (2.0, 3.0):
        changes = summed(changes, Update(0, None, 1, control={"w": torch.tensor([change])}))
    assert stepped({"w": torch.tensor([1.0])}, changes, 5)["w"].tolist() == [2.0]
    assert stepped({}, changes, 5)["w"].tolist() == [1.0]
    assert stepped({"w": torch.tensor([1.0])}, {}, 5)["w"].tolist() == [1.0]  # nobody's update arrived
    assert stepped({}, summed({}, Update(0, None, 1)), 5) == {}


# --- against numpy ---------------------------------------------------------------------------------------------------------


def gradients(params: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy of a network of three linear layers with ReLU between them."""
    layers, inputs = ("fc1", "fc2", "fc3"), [x]
    for layer in layers:
        z = inputs[-1] @ params[f"{layer}.weight"].T + params[f"{layer}.bias"]
        inputs.append(np.maximum(z, 0) if layer != "fc3" else z)
    p = np.exp(inputs[-1] - inputs[-1].max(1, keepdims=True))
    delta = (p / p.sum(1, keepdims=True) - np.eye(10)[y]) / len(y)
    found = {}
    for place in (2, 1, 0):
        found |= {f"{layers[place]}.weight": delta.T @ inputs[place], f"{layers[place]}.bias": delta.sum(0)}
        delta = (delta @ params[f"{layers[place]}.weight"]) * (inputs[place] > 0)
    return found


def scaffold(experiment, first: State, momentum: float, rounds: int, clients: int, size: int, lr: float, decay: float):
    """Straight-line SCAFFOLD in float64. A control is the mean of gradients, each counted by how far it moved the weights."""
    w = {n: t.double().numpy() for n, t in first.server.params.items()}
    alive = {n: first.server.mask[n].numpy() if n in first.server.mask else np.array(True) for n in w}
    c = {n: np.zeros_like(v) for n, v in w.items()}
    own = [{n: np.zeros_like(v) for n, v in w.items()} for _ in range(clients)]
    data = experiment.dataset
    for r in range(rounds):
        ys, change = [], {n: np.zeros_like(v) for n, v in w.items()}
        for k in cohort(0, r, clients, size):
            generator, part = torch_stream(0, "batches", r, k), experiment.clients.train[k]
            order = part[torch.randperm(len(part), generator=generator)]
            y, v, weighed, total = dict(w), dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0), 0.0
            for t, batch in enumerate(order[: 3 * 16].split(16)):
                g = gradients(y, data.normalise(data.x[batch]).double().flatten(1).numpy(), data.y[batch].numpy())
                act = sum(momentum**j for j in range(3 - t))
                total += act
                for n in y:
                    weighed[n] = weighed[n] + act * g[n] * alive[n]
                    v[n] = momentum * v[n] + (g[n] - own[k][n] + c[n]) * alive[n]
                    y[n] = y[n] - lr * decay**r * v[n]
            for n in y:
                change[n] += weighed[n] / total - own[k][n]
                own[k][n] = weighed[n] / total
            ys.append(y)
        w = {n: sum(y[n] for y in ys) / size for n in w}
        c = {n: c[n] + size / clients * change[n] / size for n in w}
    return w, c, own


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    "pruning", [("how_often=never",), ("how_often=one_shot", "when=before_training")], ids=["dense", "pruned"]
)
def test_three_rounds_are_those_of_a_straight_line_in_numpy(momentum, pruning, tiny, play):
    words = ("federated=scaffold", f"local.optimizer.momentum={momentum}", "local.lr_decay=0.9", "local.optimizer.lr=0.1")
    experiment = tiny(*words, *pruning)
    states = [state for state, _ in play(experiment)]
    first = replace(states[0], server=Subnet(states[0].ticket, states[0].server.mask))
    w, c, own = scaffold(experiment, first, momentum, rounds=3, clients=4, size=2, lr=0.1, decay=0.9)
    last = states[-1]
    for name in w:
        np.testing.assert_allclose(last.server.params[name].numpy(), w[name], atol=1e-6)
        np.testing.assert_allclose(last.server_state.control[name].numpy(), c[name], atol=1e-6)
        for client, kept in last.kept.items():
            np.testing.assert_allclose(kept.control[name].numpy(), own[client][name], atol=2e-6)
    assert 2 < len(last.kept) <= 4 and any(np.abs(own[k]["fc1.bias"]).max() > 1e-3 for k in last.kept)


# --- masks -----------------------------------------------------------------------------------------------------------------


def dead_are_zero(state: State) -> bool:
    def zero(params: dict) -> bool:
        return not any(params[name][~alive].any() for name, alive in state.server.mask.items())

    kept = all(zero(own.control) for own in state.kept.values())
    return zero(state.server.params) and zero(state.server_state.control) and kept


@pytest.mark.parametrize("words", [("how_often=gradual", "rounds=4", "when.stop=1"), EXCHANGE], ids=["gradual", "rigl"])
@pytest.mark.parametrize("rate", ["local.clip_norm=null", "local.clip_norm=0.5"])
def test_dead_entries_have_no_weight_and_no_control_at_either_end(words, rate, tiny, play):
    experiment = tiny(*SCAFFOLD, *words, rate)
    for state, _ in play(experiment):
        assert dead_are_zero(state)
        everybodys, own = state.server_state.control, list(state.kept.values())
        for name, c in everybodys.items():  # the mean of all clients' own, those that have not trained too
            assert torch.allclose(c, sum(k.control[name] for k in own) / 4, atol=1e-6)
    assert count(state.server.mask) == 15_060 and state.events > 1


def pruned(rewind: Rewind) -> tuple[State, State]:
    """A state before and after an event that leaves the first of two weights, by magnitude."""
    server = Subnet({"w": torch.tensor([[2.0, 1.0]])}, {"w": torch.tensor([[True, True]])})
    kept = {
        0: ClientState(control={"w": torch.tensor([[5.0, 6.0]])}, batchnorm={"bn": torch.ones(2)}),
        7: ClientState(control={"w": torch.tensor([[1.0, 2.0]])}),
    }
    server_state = ServerState({"v": {"w": torch.ones(1, 2)}}, control={"w": torch.tensor([[3.0, 4.0]])})
    before = State(server, server.params, server.params, anchors={0: server.params}, server_state=server_state, kept=kept)
    axes = Axes(What(weights, globally, names=("w",)), Criterion(magnitude, None))
    draws = Draws(lambda: server.params, lambda name: torch.Generator())
    event = PruneEvent(0, 0.5)
    terms = PruneContext(Plan((event,), 1), axes, rewind, draws)
    return before, prune_server(before, event, terms, lambda names, subnet, about: {"params": subnet.params})


@pytest.mark.parametrize(("rewind", "momentum"), [(Keep(), {"v": [[1.0, 0.0]]}), (LearningRate(0), {})])
def test_an_event_takes_the_controls_of_the_dead_from_everybody(rewind, momentum):
    before, after = pruned(rewind)
    assert {kind: values["w"].tolist() for kind, values in after.server_state.momentum.items()} == momentum
    assert after.server_state.control["w"].tolist() == [[3.0, 0.0]]
    assert [after.kept[client].control["w"].tolist() for client in (0, 7)] == [[[5.0, 0.0]], [[1.0, 0.0]]]
    assert after.kept[0].batchnorm["bn"].tolist() == [1.0, 1.0]
    assert before.kept[0].control["w"].tolist() == [[5.0, 6.0]]


def test_where_clients_have_forgotten_their_controls_the_server_forgets_too():
    _, after = pruned(Early(0))
    assert (after.server_state, after.kept) == (ServerState(), {})


@pytest.mark.parametrize("controlled", [True, False])
def test_a_server_optimizer_has_a_buffer_of_its_own_whatever_its_name(controlled, tiny, play):
    """One that counts its steps in a buffer named `c`, as SCAFFOLD names its control: 1, 2 and 3 after three rounds."""

    def counting(server, mean, momentum, trained):
        steps = momentum.get("c", {}).get("fc1.bias", torch.zeros_like(server["fc1.bias"]))
        return mean, {"c": {"fc1.bias": steps + 1}}

    words = ("how_often=one_shot", "when.stop=1")  # an event before the third round, which keeps the momentum
    experiment = tiny(*(SCAFFOLD if controlled else words[:0]), *words)
    executor = experiment.executor()
    loop = replace(experiment.loop(executor), server_step=complete(counting, ServerStep))
    state, expected = loop.start(), play(experiment)
    for number in (1, 2, 3):
        state, _ = loop.round(state)
        assert state.server_state.momentum["c"]["fc1.bias"].unique().tolist() == [number]
        assert bool(state.server_state.control) is controlled
        assert torch.equal(state.server.params["fc1.weight"], expected[number - 1][0].server.params["fc1.weight"])


@pytest.mark.parametrize("rewind", ["init", "learning_rate", "none"])
def test_after_a_rewind_both_ends_agree(rewind, tiny, play):
    words = ("when=after_training", "how_often=one_shot", f"rewind={rewind}", "rounds=2")
    for state, _ in play(tiny(*SCAFFOLD, *words)):
        for name, c in state.server_state.control.items():
            assert torch.allclose(c, sum(k.control[name] for k in state.kept.values()) / 4, atol=1e-6)
        assert dead_are_zero(state)
    assert state.events == 1


# --- whole runs ------------------------------------------------------------------------------------------------------------


def test_controls_are_sent_and_counted_both_ways(tiny, play):
    # 50,610 parameters of 4 bytes, all of them controlled; a block's length, the codec's head, and the header's text.
    text = len(',"carried":{"c":[0,1,2,3,4,5]}')
    (_, plain), (_, more) = (play(tiny(*words))[1] for words in (("federated.weighting=uniform", SCAFFOLD[1]), SCAFFOLD))
    assert more["wire/down_bytes"] - plain["wire/down_bytes"] == 2 * (4 + 2 + 50_610 * 4 + text)
    up = more["wire/up_bytes"] - plain["wire/up_bytes"] - 2 * (4 + 2 + 50_610 * 4 + text)
    assert abs(up) < 10  # the digits of the losses


def test_the_estimate_counts_the_controls(tiny):
    plain, more = (dict(estimate(e, e.config)) for e in (tiny(SCAFFOLD[1]), tiny(*SCAFFOLD)))
    assert plain["bytes down"].split()[0] == "1.21" and more["bytes down"].split()[0] == "2.43"


def test_a_pruned_network_sends_fewer_controls(tiny, play):
    words = (*SCAFFOLD, "how_often=one_shot", "when=before_training", "density=0.1")
    metrics = play(tiny(*words))[1][1]
    # 5,020 living weights and 410 biases, of 4 bytes, twice; beside them a mask down, of 50,200 entries at the entropy of 0.1,
    # 0.469 bits each: 2,943 bytes; and less than 500 bytes.
    assert 0 < metrics["wire/down_bytes"] / 2 - (2 * 4 * 5_430 + 2_943) < 500
    assert 0 < metrics["wire/up_bytes"] / 2 - 2 * 4 * 5_430 < 500


def test_the_first_round_is_fedavgs_and_the_later_ones_are_not(tiny, play, equal):
    runs = [
        [s.server.params for s, _ in play(tiny(*words))] for words in (("federated.weighting=uniform", SCAFFOLD[1]), SCAFFOLD)
    ]
    assert equal(runs[0][0], runs[1][0]) and not equal(runs[0][2], runs[1][2])


def test_a_single_clients_correction_is_nothing(tiny, play):
    runs = [play(tiny(SCAFFOLD[1], *CENTRAL, *words))[-1][0].server.params for words in ((), ("federated.control=scaffold",))]
    assert all(torch.allclose(tensor, runs[1][name], atol=1e-7) for name, tensor in runs[0].items())


@pytest.mark.parametrize("words", [(), EXCHANGE], ids=["dense", "rigl"])
def test_resumed_or_in_processes_it_is_the_same_run_bit_for_bit(words, tiny, play, differences, tmp_path):
    experiment = tiny(*SCAFFOLD, *words)
    reference = [state for state, _ in play(experiment)]
    assert differences(play(tiny(*SCAFFOLD, *words, "executor=processes", "executor.workers=2"))[-1][0], reference[-1]) == []
    save_state(reference[1], tmp_path / "state.safetensors")
    resumed = play(experiment, state=load_state(tmp_path / "state.safetensors"))
    assert differences(resumed[-1][0], reference[-1]) == []


@pytest.mark.parametrize("words", [("federated.server._target_=fedprune.federated.server.optimizer.Average",), ()])
def test_it_goes_with_a_server_optimizer_and_with_local_batchnorm(words, tiny, play):
    server = words or ("federated.server={_target_: fedprune.federated.server.optimizer.FedAvgM, lr: 1.0, beta: 0.9}",)
    small = ("model=resnet20", "model.norm=batch", "federated.batchnorm=local", "local.steps=1", "rounds=2")
    experiment = tiny(*SCAFFOLD, *server, *small)
    state = play(experiment)[-1][0]
    assert set(state.server_state.control) == {n for n, _ in experiment.net.named_parameters() if n not in experiment.private}
    assert ("v" in state.server_state.momentum) is not bool(words)
    assert state.kept and experiment.private
    assert all(
        name not in kept.control and name in kept.batchnorm for kept in state.kept.values() for name in experiment.private
    )


def test_the_control_that_is_sent_before_anybody_has_trained_is_zero():
    state = State(Subnet({"w": torch.ones(2), "n": torch.tensor(3)}, {}), {}, {})
    assert sent(("w",), state)["w"].tolist() == [0.0, 0.0]
    assert sent((), state) == start((), state.server.params) == {}


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (("local/optimizer=adam",), Incompatible, "Adam takes others"),
        (("local.optimizer.nesterov=true",), Incompatible, "nesterov=false"),
        (("federated.optimizer_state=kept",), Incompatible, r"federated\.optimizer_state=fresh"),
        (("federated.control=mine",), ConfigError, r"federated\.control=mine: choose one of none, scaffold"),
    ],
)
def test_what_means_nothing_is_refused_by_name(words, kind, message, tiny):
    with pytest.raises(kind, match=message):
        tiny("federated=scaffold", *words)
