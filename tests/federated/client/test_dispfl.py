"""DisPFL: a meeting of three clients by hand, whole rounds against numpy, and what a run without a server has to keep to."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError, Incompatible
from fedprune.experiment.estimate import estimate
from fedprune.federated.decentralised import message
from fedprune.pruning.mask import density, pack
from fedprune.randomness import torch_stream
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import ClientState, Mask, Personal, State
from fedprune.wire.frame import length
from helpers.federation import arrays, federation, inputs, published
from helpers.in_numpy import accuracy, gradient, largest, train

NEIGHBOURS = (
    *("what=weights_erk", "when=during_training", "when.start=0.0", "when.stop=1.0", "whose=personal", "whose.at=end"),
    *("federated/client=evolving_mask", "federated/round=neighbours", "federated.weighting=uniform"),
)
DISPFL = (*NEIGHBOURS, "criterion=rigl", "how_often=dynamic", "how_often.every=1", "how_often.swap=0.5")
LAYERS = ("fc1.weight", "fc2.weight")


def unpacked(loop, state: State, bits: bytes) -> Mask:
    return loop._mask(state, bits)


def trained_mask(loop, state: State, client: int) -> Mask:
    return loop._mask(state, state.kept[client].mask)


# --- by hand ---------------------------------------------------------------------------------------------------------------


def test_three_clients_meet_by_hand():
    experiment = federation(
        *DISPFL,
        *("federated/round=neighbours_full", "density=0.75"),
        **{"train": ([0, 1], [2, 3], [4, 5]), "val": ([6], [7], [8]), "test": ([9], [10], [11])},
        model={"_target_": "helpers.federation.mlp", "hidden": 0},
        number=12,
        features=2,
        classes=2,
    )
    loop = experiment.loop(experiment.executor())
    state = loop.start()
    #            what they have trained      under which mask
    networks = [
        ([2.0, 4.0, 0.0, 0.0], [1, 1, 0, 0]),
        ([6.0, 0.0, 1.0, 0.0], [1, 0, 1, 0]),
        ([0.0, 0.0, 3.0, 0.0], [0, 0, 1, 1]),
    ]
    following = [[1, 0, 1, 1], [1, 0, 1, 0], [0, 1, 1, 0]]
    kept, personal = {}, {}
    for client, (weights, alive) in enumerate(networks):
        params = {"fc2.weight": torch.tensor(weights).view(2, 2), "fc2.bias": torch.tensor([client, 3.0 * client])}
        mask = {"fc2.weight": torch.tensor(alive, dtype=torch.bool).view(2, 2)}
        kept[client] = ClientState(weights=params, mask=pack(mask))
        personal[client] = Personal(pack({"w": torch.tensor(following[client], dtype=torch.bool)}), 1)
    state = replace(state, kept=kept, personal=personal)
    heard = {0: (1, 2), 1: (0,), 2: ()}
    sent = {client: message(loop.exchange.wire, client, loop._network(state, client)) for client in range(3)}
    first, second, third = loop._meet(state, heard, sent)
    # Client 0 hears both. Entry 0: (2 + 6) / 2 = 4. Entry 1: only it has one, 4, but its next mask has not. Entry 2 it grows,
    # from what the others have: (1 + 3) / 2 = 2. Entry 3 it grows too; client 2 has it, as a zero: 0 / 1 = 0. The biases are
    # the means of 0, 1, 2 and of 0, 3, 6.
    assert first.subnet.params["fc2.weight"].flatten().tolist() == [4.0, 0.0, 2.0, 0.0]
    assert first.subnet.params["fc2.bias"].tolist() == [1.0, 3.0]
    assert first.subnet.mask["fc2.weight"].flatten().tolist() == [True, False, True, True]
    # Client 1 hears client 0. Entry 0: 4 again. Entry 2: client 0 has none, so it is its own 1, and not half of it.
    assert second.subnet.params["fc2.weight"].flatten().tolist() == [4.0, 0.0, 1.0, 0.0]
    assert second.subnet.params["fc2.bias"].tolist() == [0.5, 1.5]
    # Client 2 hears nobody. Entry 1 it grows, and nobody there has it: 0.
    assert third.subnet.params["fc2.weight"].flatten().tolist() == [0.0, 0.0, 3.0, 0.0]
    assert loop.round(state)[1]["wire/up_bytes"] == 2 * sum(map(length, sent.values()))  # everyone to both others


def test_the_fraction_that_is_exchanged_falls_as_a_cosine():
    # zeta_r = (alpha / 2)(1 + cos(pi r / R)), alpha = 0.5, R = 4: 0.25 (1 + cos(pi / 4)) = 0.4268 in round 1, 0.25 in round 2,
    # 0.25 (1 - cos(pi / 4)) = 0.0732 in round 3.
    plan = federation(*DISPFL, "rounds=4").plan
    assert [event.round for event in plan.events] == [0, 1, 2, 3]
    assert [event.swap for event in plan.events] == pytest.approx([0, 0.4268, 0.25, 0.0732], abs=1e-4)


# --- against numpy ---------------------------------------------------------------------------------------------------------


def met(networks, own_mask):
    """sum_j w_j / sum_j m_j under the client's own mask; 0 where nobody has it. networks: (w, m) each."""
    found = {}
    for name in networks[0][0]:
        total = sum(w[name] for w, _ in networks)
        cover = sum(m.get(name, np.ones_like(total)).astype(float) for _, m in networks)
        found[name] = np.where(cover > 0, total / np.maximum(cover, 1), 0) * own_mask.get(name, 1.0)
    return found


def evolved(w, mask, swap, x, y):
    """Of each layer the smallest ceil(swap n) go, and as many of the greatest gradients come, of those dead by then."""
    g, found = gradient(w, x, y), {}
    for name in LAYERS:
        alive = int(mask[name].sum())
        gone = math.ceil(swap * alive - 1e-9)
        stays = largest(w[name], mask[name], alive - gone)
        found[name] = stays | largest(g[name], ~stays, gone)
    return found


@pytest.mark.parametrize("topology", ["neighbours_full", "neighbours_ring", "neighbours"])
def test_rounds_are_what_numpy_makes_of_them(topology, play):
    one = ("federated.round.topology.number=1",) if topology == "neighbours" else ()
    sizes = {"train": [range(6 * k, 6 * k + 6) for k in range(5)], "val": [[30 + k] for k in range(5)]}
    experiment = federation(
        *DISPFL,
        *(
            f"federated/round={topology}",
            *one,
            "density=0.5",
            "rounds=5",
            "local.epochs=3",
            "where.examples=null",
            "federated.tuned=5",
        ),
        **sizes,
        test=[[35 + k, 40 + k, 45 + k] for k in range(5)],
        cohort=4,
    )
    loop = experiment.loop(experiment.executor())
    start = loop.start()
    w = {k: arrays(start.kept[k].weights) for k in range(5)}
    held = {k: arrays(trained_mask(loop, start, k)) for k in range(5)}
    following, done, exchanged = dict(held), dict.fromkeys(range(5), 1), 0
    for number, (state, metrics) in enumerate(play(experiment)):
        before = start if number == 0 else previous  # noqa: F821
        active = tuple(sorted(loop._cohort(before)))
        assert len(active) == 4
        sent = {k: (w[k], held[k]) for k in active}
        for k in active:
            others = loop.topology(k, active, 0, number)
            x, y = inputs(experiment, experiment.clients.train[k])
            w[k] = train(met([sent[j] for j in (k, *others)], following[k]), following[k], x, y, steps=3)
            held[k] = following[k]
            due = [event for event in experiment.plan.events[done[k] :] if event.round <= number]
            if due:
                following[k] = evolved(w[k], held[k], due[-1].swap, x, y)
                done[k] += len(due)
                exchanged += int(any((following[k][n] != held[k][n]).any() for n in LAYERS))
        for k in range(5):
            assert all(np.abs(state.kept[k].weights[n].numpy() - w[k][n]).max() < 1e-5 for n in w[k])
            assert all((trained_mask(loop, state, k)[n].numpy() == held[k][n]).all() for n in LAYERS)
            assert all((loop._mask(state, state.personal[k].mask)[n].numpy() == following[k][n]).all() for n in LAYERS)
        # The next round would begin with the mean of what its neighbours, and the client, have by now.
        own, tuned, others = [], [], loop._cohort(state)
        for k in range(5):
            hears = loop.topology(k, tuple(sorted({*others, k})), 0, number + 1)
            begins = met([(w[j], held[j]) for j in (k, *hears)], following[k])
            x, y = inputs(experiment, experiment.clients.train[k])
            ends = train(begins, following[k], x, y, steps=3)
            own.append(accuracy(begins, *inputs(experiment, experiment.clients.test[k])))
            tuned.append(accuracy(ends, *inputs(experiment, experiment.clients.test[k])))
        assert metrics["client/accuracy_mean"] == pytest.approx(np.mean(own), abs=1e-6)
        assert metrics["client/accuracy_tuned_mean"] == pytest.approx(np.mean(tuned), abs=1e-6)
        mean = met([(w[k], held[k]) for k in range(5)], {})
        x, y = experiment.dataset.test_x.numpy().reshape(9, -1) / 4.0, experiment.dataset.test_y.numpy()
        assert metrics["test/accuracy"] == pytest.approx(accuracy(mean, x, y), abs=1e-6)
        previous = state  # noqa: F841
    assert exchanged > 8


# --- as a part of the house ------------------------------------------------------------------------------------------------

SMALL = ("density=0.3", "rounds=4", "federated.clients=5", "federated.cohort=4", "federated.round.topology.number=2")
TINY = (*DISPFL, *SMALL)


@pytest.fixture(scope="module")
def played(tiny, play):
    experiment = tiny(*TINY)
    return experiment, play(experiment)


def test_counts_are_exact_layer_by_layer_and_grown_and_living_are_disjoint(played):
    experiment, rounds = played
    loop = experiment.loop(experiment.executor())
    first = loop.start()
    counts = {name: int(alive.sum()) for name, alive in trained_mask(loop, first, 0).items()}
    assert sum(counts.values()) == 15_060  # 0.3 x 50,200
    different = {first.personal[k].mask for k in range(5)}
    assert len(different) == 5
    grown = 0
    for state, metrics in rounds:
        assert metrics["density/weights"] == pytest.approx(0.3, abs=1e-12)
        for client in range(5):
            was, goes_on = trained_mask(loop, state, client), loop._mask(state, state.personal[client].mask)
            for name, number in counts.items():
                assert int(was[name].sum()) == int(goes_on[name].sum()) == number
                assert not state.kept[client].weights[name][~was[name]].any()
                grown += int((goes_on[name] & ~was[name]).sum())
    assert grown > 1000
    assert density(was) == 0.3


def test_every_message_between_clients_is_counted_at_its_length(played):
    experiment, rounds = played
    loop = experiment.loop(experiment.executor())
    before, total = loop.start(), 0
    for state, metrics in rounds:
        active = tuple(sorted(loop._cohort(before)))
        heard = {client: loop.topology(client, active, 0, before.clock) for client in active}
        sizes = {client: length(message(experiment.wire, client, loop._network(before, client))) for client in active}
        # The frame and header, the mask as bits, 15,060 weights and the 310 + 0 biases of 4 bytes each.
        assert all(50_200 / 8 + 4 * 15_060 < size < 50_200 / 8 + 4 * (15_060 + 410) + 200 for size in sizes.values())
        assert metrics["wire/up_bytes"] == sum(sizes[other] for others in heard.values() for other in others)
        assert metrics["wire/down_bytes"] == 0
        busiest = [sum(sizes[o] for o in heard[k]) + sizes[k] * sum(k in heard[o] for o in active) for k in active]
        assert metrics["wire/busiest_bytes"] == max(busiest)
        total += metrics["wire/up_bytes"]
        assert metrics["wire/total_bytes"] == total == state.up_bytes
        before = state


def test_the_estimate_is_what_is_sent(played):
    experiment, rounds = played
    rows = dict(estimate(experiment, experiment.config))
    assert rows["bytes down"] == "0 B for training"
    # Headers tell of the client, and masks are of other entries: as long, but for a digit.
    assert rounds[-1][0].up_bytes == pytest.approx(float(rows["bytes up"].split()[0]) * 1e6, rel=0.01)


def test_who_does_not_take_part_stays_as_it_is(played, equal):
    experiment, rounds = played
    loop = experiment.loop(experiment.executor())
    before = loop.start()
    for state, _ in rounds:
        (absent,) = set(range(5)) - set(loop._cohort(before))
        assert equal(state.kept[absent], before.kept[absent])
        assert state.personal[absent] == before.personal[absent]
        before = state


def test_executors_resuming_and_checkpoints_change_no_bit(played, tiny, play, differences, tmp_path):
    experiment, rounds = played
    others = play(tiny(*TINY, "executor=processes", "executor.workers=2"))
    for (state, metrics), (other, more) in zip(rounds, others, strict=True):
        assert differences(state, other) == []
        assert state.personal == other.personal
        assert {k: v for k, v in metrics.items() if "time" not in k} == {k: v for k, v in more.items() if "time" not in k}
    save_state(rounds[1][0], tmp_path / "state.safetensors")
    loaded = load_state(tmp_path / "state.safetensors")
    assert differences(loaded, rounds[1][0]) == []
    assert loaded.personal == rounds[1][0].personal
    resumed = play(experiment, state=loaded)
    assert differences(resumed[-1][0], rounds[-1][0]) == []
    assert resumed[-1][0].personal == rounds[-1][0].personal


def test_masks_that_only_shrink_and_networks_that_stay_dense_go_among_neighbours_too(tiny, play):
    halving = ("criterion=magnitude", "how_often=iterative", "how_often.rate=0.5", "density=0.25")
    *_, (state, _) = play(tiny(*NEIGHBOURS, *SMALL, *halving))
    alive = [int(np.unpackbits(np.frombuffer(own.mask, np.uint8)).sum()) for own in state.personal.values()]
    assert alive == [12_550] * 5  # 0.25 x 50,200
    *_, (_, metrics) = play(tiny(*NEIGHBOURS, *SMALL, "criterion=magnitude", "how_often=never"))
    assert metrics["density/weights"] == 1.0


def test_growing_at_random_is_an_option(tiny, play):
    state, metrics = play(tiny(*TINY, "criterion=set"))[-1]
    assert metrics["density/weights"] == pytest.approx(0.3, abs=1e-12)
    assert len({own.mask for own in state.personal.values()}) == 5


def test_the_experiment_grows_at_random_as_its_authors_script_does(compose):
    """`+experiment=dispfl criterion=set`, of three clients on a network 6 - 5 - 3, to half of its weights.

    From each layer's n living the smallest ceil(swap n) are dropped, and as many of all that are dead then grow: those with the
    largest random numbers, which follow from the seed, the client and its event, and so from the round.
    """
    words = ("criterion=set", "density=0.5", "federated.round.topology.number=2", "rounds=4")
    experiment = published(compose, "dispfl", *words)
    loop = experiment.loop(experiment.executor())
    state, drawn = loop.round(loop.start())[0], set()  # the first exchange is in the second round
    for _ in range(3):
        state, _ = loop.round(state)
        for client, own in state.personal.items():
            was, goes_on = trained_mask(loop, state, client), loop._mask(state, own.mask)
            swap, event = experiment.plan.events[own.events - 1].swap, own.events - 1
            for name in LAYERS:
                alive, size = was[name].flatten().numpy(), np.abs(state.kept[client].weights[name].flatten().numpy())
                gone = math.ceil(swap * alive.sum() - 1e-9)
                stays = np.isin(np.arange(alive.size), np.argsort(np.where(alive, size, np.inf))[gone : alive.sum()])
                stream = torch_stream(0, f"criterion dead {name}", event, client)
                numbers = torch.rand(was[name].shape, generator=stream).flatten().numpy()
                grown = np.argsort(np.where(stays, np.inf, -numbers))[:gone]
                right = stays | np.isin(np.arange(alive.size), grown)
                assert (goes_on[name].flatten().numpy() == right).all()
                assert gone
                drawn.add(numbers.tobytes())
    assert len(drawn) == 3 * 3 * 2  # nobody draws what another has drawn, or itself before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("federated/client=trained_weights",), "federated/round=neighbours: each client chooses its next mask itself"),
        (("whose.at=start",), "choose whose=personal with whose.at=end"),
        (("rewind=init",), "rewind=init: federated/round=neighbours never goes back"),
        (("federated=fedavgm", "federated/client=evolving_mask", "federated/round=neighbours"), "no server that takes steps"),
        (("federated.weighting=examples",), "set federated.weighting=uniform"),
        (("federated.optimizer_state=kept",), "set federated.optimizer_state=fresh"),
        (("federated/upload=top_weights",), "choose federated/upload=all"),
        (("federated.control=scaffold",), "set federated.control=none"),
        (("federated.regrown=server",), "set federated.regrown=zero"),
        (("federated/availability=dropout", "federated.availability.rate=0.1"), "choose federated/availability=always"),
        (("federated.batchnorm=frozen", "model=resnet20", "model.norm=batch"), "set federated.batchnorm=average"),
        (("federated.cohort=1",), "set federated.cohort=2"),
        (("whose.uncommon=own",), "set whose.uncommon=server"),
        (("what=neurons_global",), "what=neurons_global: federated/round=neighbours exchanges single weights"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused_by_name(overrides, message, tiny):
    with pytest.raises(Incompatible) as refused:
        tiny(*TINY, *overrides)
    assert message in str(refused.value)


def test_a_mask_of_ones_own_and_neighbours_go_together(tiny):
    with pytest.raises(Incompatible, match="goes on with a mask that no server knows"):
        tiny("federated/client=evolving_mask")
    with pytest.raises(Incompatible, match="whose=shared: with federated/round=neighbours there is nobody to share"):
        tiny("federated/client=evolving_mask", "federated/round=neighbours", "federated.weighting=uniform")


def test_a_number_of_neighbours_out_of_range_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"federated\.round\.topology\.number=0 is how many neighbours"):
        tiny(*TINY, "federated.round.topology.number=0")
