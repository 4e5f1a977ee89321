"""Nested networks: who is sent what, what it costs, what becomes of entries that only some have, and what is refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError, Incompatible
from fedprune.execution import Processes
from fedprune.experiment.estimate import estimate
from fedprune.federated.masks.capacity import Tiers, of_all
from fedprune.federated.masks.nested import Nested
from fedprune.federated.metrics.tally import Tally
from fedprune.pruning.mask import apply, count, size, unpack
from helpers.spy import spied

LEVELS = (1.0, 0.5, 0.25)
NARROW = (
    *("whose=nested", "federated/capacity=tiers", f"federated.capacity.levels={list(LEVELS)}", "how_often=never"),
    *("federated.clients=6", "federated.cohort=6", "rounds=2", "partition.test=0.2"),
)
CAPACITIES = of_all(Tiers(LEVELS), 6, 0)
ONCE = ("how_often=one_shot", "when.start=0.5", "when.stop=1", "density=0.5")


def trained(spy) -> dict:
    """The last job of each client, with the lengths of the two messages."""
    found = {job.client: (job, down, up) for job, down, up in spy.seen if not job.measure}
    assert sorted(found) == [*range(6)]
    return found


def test_the_six_clients_of_these_tests_have_all_capacities():
    assert set(CAPACITIES) == set(LEVELS)


def test_each_client_trains_the_leading_units_that_it_can_carry(tiny, play):
    """On 64 pixels 64-300-100-10: capacity 1/2 has 150 and 50 units, 1/4 has 75 and 25."""
    spy = spied(tiny(*NARROW))
    play(tiny(*NARROW), spy, stop=1)
    for client, (job, *_) in trained(spy).items():
        first, second = math.ceil(300 * CAPACITIES[client]), math.ceil(100 * CAPACITIES[client])
        living = job.subnet.params
        assert not living["fc1.weight"][first:].any() and living["fc1.weight"][:first].all()
        assert not living["fc2.weight"][second:].any() and not living["fc2.weight"][:, first:].any()
        assert not living["fc3.weight"][:, second:].any() and living["fc3.weight"][:, :second].all()
        biases = first + second + 10 if job.kept_mask else 0  # whoever has everything is under the mask of the weights
        assert count(job.subnet.mask) == 64 * first + first * second + second * 10 + biases


def test_bytes_are_those_of_the_slice_and_no_mask_travels(tiny, play):
    """A value has 4 bytes; frame, headers and lengths are below 250; the mask of 50,000 weights would be 6 kB."""
    spy = spied(tiny(*NARROW))
    play(tiny(*NARROW), spy, stop=1)
    for job, down, up in trained(spy).values():
        values = 4 * count(job.subnet.mask)
        values += 4 * (300 + 100 + 10) * (not job.kept_mask)  # whoever has everything is under the mask of the weights
        assert values < down < values + 250
        assert values < up < values + 250


def test_an_entry_is_the_mean_over_those_who_have_it_and_stays_where_nobody_has_it(tiny, play):
    experiment = tiny(*NARROW, "federated.cohort=3")
    loop = experiment.loop(experiment.executor())
    state = loop.start()
    answers = list(loop.exchange.train(loop._jobs(state, loop._cohort(state)), state, tally := Tally()))
    fold = loop._fold(state)
    for job, update in answers:
        fold.add(job, update)
    after = loop._step(state, fold).server.params
    assert tally.dropped == []
    for name, before in state.server.params.items():
        above, below = np.zeros(before.shape), np.zeros(before.shape)
        for _, update in answers:
            held = update.subnet.mask.get(name, torch.ones(before.shape, dtype=torch.bool)).numpy()
            above += update.examples * held * update.subnet.params[name].numpy()
            below += update.examples * held
        expected = np.where(below > 0, above / np.maximum(below, 1), before.numpy())
        assert np.allclose(after[name], expected, atol=1e-6), name


@pytest.mark.parametrize("by", ["width", "magnitude"])
def test_neither_codec_nor_executor_nor_resuming_changes_a_result(by, tiny, play, differences):
    overrides = (*NARROW, f"whose.by={by}", *ONCE)
    whole = play(tiny(*overrides))
    for wire in ("dense", "bitmap"):
        assert differences(play(tiny(*overrides, f"wire={wire}"))[-1][0], whole[-1][0], ("up_bytes", "down_bytes")) == []
    experiment = tiny(*overrides)
    assert differences(play(experiment, state=whole[0][0])[-1][0], whole[-1][0]) == []
    processes = tiny(*overrides, "executor=processes", "executor.workers=2").executor()
    assert isinstance(processes, Processes)
    try:
        assert differences(play(experiment, processes)[-1][0], whole[-1][0]) == []
    finally:
        processes.close()


@pytest.mark.parametrize("by", ["width", "magnitude"])
def test_what_the_server_prunes_is_dead_for_everybody(by, tiny, play):
    experiment = tiny(*NARROW, f"whose.by={by}", *ONCE)
    spy = spied(experiment)
    (_, (state, metrics)) = play(experiment, spy)
    assert state.events == 1
    assert count(state.server.mask) == round(0.5 * size(state.server.mask))
    for job, *_ in trained(spy).values():
        for name, alive in state.server.mask.items():
            assert not (job.subnet.mask[name] & ~alive).any()
            if CAPACITIES[job.client] == 1:
                assert torch.equal(job.subnet.mask[name], alive)
        if by == "magnitude":  # of all 50,200 weights half live, and of these a client's capacity
            assert count(job.subnet.mask) == 25_100 * CAPACITIES[job.client]
    assert metrics["density/weights"] < 0.5


def test_the_largest_weights_by_sorting(tiny, play):
    """Per layer, at capacity x the server's density, exactly; whoever carries more has all that the others have. A mask that
    depends on the weights is sent: at its entropy, or less where there are patterns."""
    overrides = (*NARROW, "whose.by=magnitude", "what=weights_per_layer", "what.scope.rates={}")
    experiment = tiny(*overrides)
    spy = spied(experiment)
    states = [state for state, _ in play(experiment, spy)]
    weights = {name: states[0].server.params[name].numpy() for name in experiment.axes.what.names}
    of = {}
    for job, down, _ in trained(spy).values():
        capacity = CAPACITIES[job.client]
        of[capacity] = job.subnet.mask
        for name, w in weights.items():
            number = int(capacity * w.size + 0.5)
            cut = np.sort(np.abs(w), axis=None)[-number]
            assert np.array_equal(job.subnet.mask[name].numpy(), np.abs(w) >= cut), (capacity, name)
        values = 4 * (count(job.subnet.mask) + 410)
        entropy = -capacity * math.log2(capacity) - (1 - capacity) * math.log2(1 - capacity) if capacity < 1 else 0
        mask = size(job.subnet.mask) / 8 * entropy
        assert values + 0.8 * mask < down < values + mask + 250
    for wide, narrow in itertools.pairwise(LEVELS):
        assert all(not (alive & ~of[wide][name]).any() for name, alive in of[narrow].items())


def test_each_client_is_evaluated_on_what_it_carries(tiny, play):
    experiment = tiny(*NARROW)
    state, metrics = play(experiment)[-1]
    whose, data = experiment.options.whose, experiment.dataset
    found = []
    for client, part in enumerate(experiment.clients.test):
        bits = whose.client_mask(state, client)
        mask = unpack(bits, {n: state.server.params[n].shape for n in whose.mask_names}) if bits else {}
        experiment.net.load_state_dict(apply(state.server.params, mask))
        outputs = experiment.net.eval()(data.normalise(data.x[part]))
        found.append(float((outputs.argmax(1) == data.y[part]).float().mean()))
    assert len(set(found)) > 1
    assert metrics["client/accuracy_mean"] == pytest.approx(np.mean(found), abs=1e-6)
    assert metrics["client/accuracy_min"] == pytest.approx(min(found), abs=1e-6)


def test_batchnorm_goes_with_its_channels(tiny, play):
    experiment = tiny(*NARROW, "model=resnet20", "model.norm=batch", "federated.capacity.levels=[0.5]", "rounds=1")
    ((state, _),) = play(experiment)
    assert set(experiment.wire.mask_names) == {n for n in state.server.params if not n.endswith("num_batches_tracked")}
    for name, value in state.server.params.items():
        if ".norm" in name and "num_batches" not in name:
            half = len(value) // 2
            assert torch.equal(value[half:], state.init[name][half:]), name  # nobody had them
            assert not torch.equal(value[:half], state.init[name][:half]), name


@pytest.mark.parametrize(
    "changes",
    [
        ("model=resnet20", "model.norm=batch", "federated.batchnorm=local"),
        ("local/penalty=l0",),
        ("local/dropout=variational",),
        ("federated.optimizer_state=kept",),
        ("federated/aggregate=coordinate_median",),
        ("when.start=0", "how_often=dynamic", "how_often.every=1", "criterion=set", "when.stop=1"),
    ],
)
@pytest.mark.parametrize("by", ["width", "magnitude"])
def test_parts_go_with_what_else_clients_learn_keep_or_exchange(by, changes, tiny, play):
    """And what nobody has stays as it was: of the first layer the second half of the units, by width."""
    experiment = tiny(*NARROW, f"whose.by={by}", "federated.capacity.levels=[0.5]", "rounds=1", *changes)
    spy = spied(experiment)
    ((state, metrics),) = play(experiment, spy)
    assert metrics["clients/dropped"] == 0
    for job, *_ in trained(spy).values():
        assert metrics["density/weights"] <= 0.51
        assert all(not job.subnet.params[name][~alive].any() for name, alive in job.subnet.mask.items())
    first = experiment.axes.what.names[0]
    if by == "width" and "criterion=set" not in changes:
        half = len(state.init[first]) // 2
        assert torch.equal(state.server.params[first][half:], state.init[first][half:])
        assert not torch.equal(state.server.params[first][:half], state.init[first][:half])


def test_under_equal_capacities_everybody_has_the_servers_network(tiny, play, differences):
    shared = play(tiny("how_often=one_shot"))[-1][0]
    for by in ("width", "magnitude"):
        assert differences(play(tiny("how_often=one_shot", "whose=nested", f"whose.by={by}"))[-1][0], shared) == []


def test_training_operations_are_those_of_the_slices(tiny, play):
    experiment = tiny(*NARROW, "rounds=1")
    ((_, metrics),) = play(experiment)
    expected, densities = 0.0, []
    for capacity in CAPACITIES:
        a, b = math.ceil(300 * capacity) / 300, math.ceil(100 * capacity) / 100
        densities.append((a, a * b, b))
        layers = {"fc1": a, "fc2": a * b, "fc3": b, "": 1.0}
        expected += 3 * 16 * sum(experiment.flops[layer] * part for layer, part in layers.items() if layer in experiment.flops)
    assert metrics["flops/train"] == pytest.approx(expected)
    found = [metrics[f"density/layer/{layer}"] for layer in ("fc1", "fc2", "fc3")]
    assert found == pytest.approx(np.mean(densities, axis=0).tolist())


def test_densities_count_biases_that_go(tiny, play):
    """At 1/2: 64 x 150 + 150 x 50 + 50 x 10 = 17,600 of 50,200 weights, with 150 + 50 + 10 biases 17,810 of 50,610."""
    ((_, metrics),) = play(tiny(*NARROW, "federated.capacity.levels=[0.5]", "rounds=1"))
    assert metrics["density/weights"] == pytest.approx(17_600 / 50_200)
    assert metrics["density/params"] == pytest.approx(17_810 / 50_610)


def test_the_estimate_is_of_the_slices(tiny, play):
    """A cohort of all clients: what is foreseen for a round is what a round takes, but for the digits of its numbers."""
    experiment = tiny(*NARROW, "rounds=1")
    ((_, metrics),) = play(experiment)
    told = dict(estimate(experiment, experiment.config))
    for way in ("down", "up"):
        number, unit, *_ = told[f"bytes {way}"].split()
        assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(metrics[f"wire/{way}_bytes"], rel=0.01)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("how_often=one_shot", "criterion=snip"), "needs grads of the whole network, which under whose=nested not everybody"),
        (
            ("federated.control=scaffold",),
            "controls are of whole layers, and by=width cuts them",
        ),
        (("federated/upload=top_weights",), "top_weights chooses among weights, and by=width cuts biases too: choose"),
        (("what.skip=[first]",), "whose.by=width cuts every layer, and what leaves out fc1: choose what.skip=[]"),
        (("whose.by=magnitude", "what=weights_2of4"), "`what` has a density of its own: choose what=weights_per_layer"),
        (("model=resnet20", "model.norm=group"), "no whole number of the groups"),
    ],
)
def test_what_cannot_be_nested_is_refused(overrides, message, tiny):
    with pytest.raises(Incompatible) as error:
        tiny(*NARROW, *overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"by": "height"}, "whose.by=height: choose width or magnitude"),
        ({"labels": "mine"}, "whose.labels=mine: choose all or own"),
        ({"labels": "own", "by": "magnitude"}, "whose.labels=own leaves out units, and whose.by=magnitude does not"),
    ],
)
def test_what_is_no_answer_is_refused(values, message):
    with pytest.raises(ConfigError) as error:
        Nested(**values)
    assert message in str(error.value)
    assert replace(Nested(), by="magnitude").mask_names == ()
