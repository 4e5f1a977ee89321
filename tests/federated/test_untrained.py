"""What nobody trains goes down once to each client and never comes up; it is not pruned unless that is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedprune.errors import ConfigError, Incompatible
from fedprune.experiment.estimate import estimate
from fedprune.federated.sampling import cohort
from fedprune.federated.untrained import untrained_names
from fedprune.running.display import plan_text
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import Job, Subnet
from fedprune.wire.codec import dense

FROZEN = ("model._target_=helpers.odd_networks.Frozen", "wire=dense", "rounds=5")
DENSE = (*FROZEN, "how_often=never")
NORM = ("+model.norm=true",)
NAMES = ("backbone.weight", "backbone.bias")

# The backbone has 6 filters of 3 x 3 and 6 biases: 60 numbers of 4 bytes. To them come the block's two bytes (codec, flag), its
# length (4 bytes) and `,"newcomer":true` in the header (16).
ONCE = 60 * 4 + 2 + 4 + 16
# The head has 10 x 216 weights and 10 biases for digits of 8 x 8.
HEAD = (10 * 216 + 10) * 4


def newcomers(seen: set[int], clients) -> int:
    found = len(set(clients) - seen)
    seen |= set(clients)
    return found


@pytest.mark.parametrize("executor", ["serial", "processes", "batched"])
def test_a_clients_first_job_brings_what_nobody_trains_and_no_other_does(executor, tiny, play):
    experiment = tiny(*DENSE, f"executor={executor}")
    played, seen = play(experiment), set[int]()
    usual = next(m["wire/down_bytes"] for _, m in played if newcomers(seen, cohort(0, m["round"], 4, 2)) == 0)
    assert 2 * HEAD < usual < 2 * (HEAD + 200)
    seen = set()
    for state, metrics in played:
        new = newcomers(seen, cohort(0, metrics["round"], 4, 2))
        assert metrics["wire/down_bytes"] == usual + new * ONCE
        assert 2 * HEAD < metrics["wire/up_bytes"] < 2 * (HEAD + 200)
        assert state.reached == seen
    assert len(seen) == 4


def test_what_is_trained_does_not_depend_on_who_has_it(tiny, play, equal):
    # The head that comes out is that of clients who are sent everything in every round.
    experiment = tiny(*DENSE)
    whole = replace(experiment, wire=whole_wire(experiment), untrained={})
    (a, m), (b, n) = play(experiment)[-1], play(whole)[-1]
    assert equal(a.server.params, b.server.params)
    assert m["test/accuracy"] == n["test/accuracy"]
    assert n["wire/up_bytes"] - m["wire/up_bytes"] > 2 * 60 * 4 - 10  # the loss is written in a few digits more or less


def whole_wire(experiment):
    layout = experiment.wire.layout.of(experiment.net.state_dict(), experiment.axes.what.names)
    return replace(experiment.wire, layout=layout, untrained=experiment.wire.untrained.only(()))


def test_what_nobody_trains_stays_bit_for_bit(tiny, play):
    for state, _ in play(tiny(*FROZEN, "when=after_training", "how_often=iterative", "rewind=random_reinit", "rounds=1")):
        assert all(torch.equal(state.server.params[name], state.init[name]) for name in NAMES)
        assert state.server.params["backbone.weight"].any()


def test_a_resumed_run_sends_as_many_bytes(tiny, play, differences, tmp_path):
    path = tmp_path / "state.safetensors"
    whole = play(tiny(*DENSE))
    assert len(whole[0][0].reached) == 2
    save_state(whole[0][0], path)
    resumed = play(tiny(*DENSE), state=load_state(path))
    assert differences(whole[-1][0], resumed[-1][0]) == []
    assert [m["wire/down_bytes"] for _, m in whole[1:]] == [m["wire/down_bytes"] for _, m in resumed]


def test_who_has_measured_evidence_has_it(tiny, play):
    # All four measure in round 0, so that all have it before anybody trains: the two who train are sent the head alone.
    experiment = tiny(*FROZEN, "criterion=snip", "how_often=one_shot", "when=before_training", "where=all_clients")
    state, metrics = play(experiment, stop=1)[0]
    assert state.reached == {0, 1, 2, 3}
    sent = 4 * (HEAD + ONCE) + 2 * (HEAD + 2160 // 8)  # those who train are sent the bits of a new mask, too
    assert sent < metrics["wire/down_bytes"] < sent + 6 * 200


def test_a_client_that_does_not_answer_is_sent_it_again(tiny, play):
    experiment = tiny(*DENSE, "federated/availability=dropout", "federated.cohort=4", "federated.availability.rate=0.5")
    heard = set[int]()
    for state, metrics in play(experiment):
        clock = metrics["round"]
        rest = metrics["wire/down_bytes"] - len({0, 1, 2, 3} - heard) * ONCE
        assert 4 * HEAD < rest < 4 * (HEAD + 200)
        heard |= {client for client in range(4) if experiment.options.fates(client, clock).name == "ANSWERS"}
        assert state.reached == heard
    assert len(heard) > 0


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("criterion=snip", "how_often=one_shot", "when=before_training"),
        ("federated/availability=dropout", "federated.availability.rate=0.3"),
    ],
    ids=lambda overrides: " ".join(overrides) or "dense",
)
def test_the_estimate_has_it(overrides, tiny, play):
    experiment = tiny(*DENSE, *overrides)
    rows = dict(estimate(experiment, experiment.config))
    seen, sent = set[int](), 0
    fates = experiment.options.fates
    for clock in range(5):
        asked = cohort(0, clock, 4, 2)
        sent += len(set(asked) - seen) * ONCE
        seen |= {client for client in asked if fates(client, clock).name == "ANSWERS"}
    assert float(rows["frozen"].split()[0]) * 1000 == pytest.approx(sent, rel=0.01)


def test_the_estimate_of_a_dense_run_is_what_it_sends(tiny, play):
    experiment = tiny(*DENSE)
    sent = sum(metrics["wire/down_bytes"] for _, metrics in play(experiment))
    told = dict(estimate(experiment, experiment.config))["bytes down"]
    assert float(told.split()[0]) * 1000 == pytest.approx(sent, rel=0.01)
    assert "frozen" not in dict(estimate(tiny(), tiny().config))


@pytest.mark.parametrize(
    ("overrides", "once"),
    [
        (("federated.batchnorm=average",), NAMES),
        (("federated.batchnorm=local",), NAMES),
        # The statistics of the start are those of every round.
        (("federated.batchnorm=frozen",), (*NAMES, "norm.running_mean", "norm.running_var", "norm.num_batches_tracked")),
    ],
)
def test_batchnorms_statistics_are_among_it_where_they_are_frozen(overrides, once, tiny, play):
    experiment = tiny(*DENSE, *NORM, *overrides)
    assert tuple(experiment.wire.untrained.shapes) == once == tuple(experiment.untrained)
    state = play(experiment)[-1][0]
    assert all(torch.equal(state.server.params[name], state.init[name]) for name in once)


def test_of_our_own_networks_everything_travels(tiny):
    experiment = tiny("model=resnet20", "model.norm=batch")
    assert tuple(experiment.wire.untrained.shapes) == () == tuple(experiment.untrained)
    assert list(experiment.wire.layout.shapes) == list(experiment.net.state_dict())
    assert untrained_names(experiment.net, "average", ()) == ()


def test_neighbours_have_it_from_the_start(tiny, play):
    own = ("federated/client=evolving_mask", "whose=personal", "whose.at=end", "federated.weighting=uniform")
    experiment = tiny(*DENSE, "federated/round=neighbours_full", *own)
    for state, metrics in play(experiment):
        # Two clients hear each other: two heads, and nothing of the backbone.
        assert 2 * HEAD < metrics["wire/up_bytes"] < 2 * (HEAD + 200)
        assert "test/accuracy" in metrics or metrics["round"] < 4
        assert all(not set(NAMES) & set(kept.weights) for kept in state.kept.values())
    assert "frozen" not in dict(estimate(experiment, experiment.config))


def test_controls_are_of_what_is_trained(tiny):
    assert tiny(*DENSE, "federated=scaffold").controlled == ("head.weight", "head.bias")


def test_a_message_to_a_newcomer_is_decoded_to_what_was_sent(tiny, equal):
    wire = tiny(*DENSE).wire
    params = {name: torch.randn(shape) for name, shape in (wire.layout.shapes | wire.untrained.shapes).items()}
    subnet = Subnet(params, {"head.weight": torch.ones(10, 216, dtype=torch.bool)})
    job = Job(0, 0, 0, 0, subnet, newcomer=True)
    found = wire.decode_job(wire.encode_job(job, wire.subnet_block(subnet), wire.untrained_block(params)))
    assert found.newcomer
    assert equal(found.subnet.params, params)
    again = wire.decode_job(wire.encode_job(job, wire.subnet_block(subnet)))
    assert not again.newcomer
    assert tuple(again.subnet.params) == tuple(wire.layout.shapes)
    assert wire.codec is dense


# --- what is pruned --------------------------------------------------------------------------------------------------------

ONE_SHOT = (*FROZEN, "how_often=one_shot", "when=before_training", "density=0.5")


def test_a_frozen_layer_is_not_pruned_and_the_plan_says_so(tiny, play):
    experiment = tiny(*ONE_SHOT)
    what = experiment.axes.what
    assert (what.names, what.untouched) == (("head.weight",), ("backbone.weight",))
    assert "not pruned (what.frozen=true prunes them, too): backbone" in plan_text(
        experiment.plan, "", untouched=what.untouched
    )
    assert play(experiment)[-1][0].server.params["backbone.weight"].all()


def test_it_is_pruned_if_that_is_asked_for(tiny, play):
    experiment = tiny(*ONE_SHOT, "what.frozen=true", "what=weights_uniform")
    assert experiment.axes.what.names == ("backbone.weight", "head.weight")
    assert experiment.axes.what.untouched == ()
    state = play(experiment)[-1][0]
    alive, start = state.server.mask["backbone.weight"], state.init["backbone.weight"]
    assert int(alive.sum()) == 27  # half of 54
    assert torch.equal(state.server.params["backbone.weight"], torch.where(alive, start, 0.0))


def test_the_plan_of_other_networks_says_nothing_of_it(tiny):
    experiment = tiny("how_often=one_shot", "when=before_training")
    assert "frozen" not in plan_text(experiment.plan, "", untouched=experiment.axes.what.untouched)


@pytest.mark.parametrize("skip", ["[head]", "[last]"])
def test_what_is_left_may_all_be_frozen(skip, tiny):
    with pytest.raises(Incompatible, match=r"nobody trains backbone \(requires_grad=False\).*set what.frozen=true"):
        tiny(*ONE_SHOT, f"what.skip={skip}")
    assert tiny(*ONE_SHOT, f"what.skip={skip}", "what.frozen=true").axes.what.names == ("backbone.weight",)


def test_a_frozen_layer_may_be_skipped_by_name(tiny):
    assert tiny(*ONE_SHOT, "what.skip=[backbone]").axes.what.names == ("head.weight",)


def test_clients_of_a_width_need_all_layers_to_be_prunable(tiny, play):
    tiers = "federated.capacity={_target_: fedprune.federated.masks.capacity.Tiers, levels: [1.0, 0.5]}"
    width = (*DENSE, "whose=nested", tiers)
    with pytest.raises(Incompatible, match=r"what leaves out backbone: set what.frozen=true"):
        tiny(*width)
    experiment = tiny(*width, "what.frozen=true")  # then all of it is cut, and travels with the mask
    assert tuple(experiment.wire.untrained.shapes) == ()
    play(experiment, stop=1)


class Still(torch.nn.Linear):
    """Nothing in it is trained."""

    def __init__(self, shape, classes):
        super().__init__(torch.Size(shape).numel(), classes)
        self.requires_grad_(False)

    def forward(self, inputs):
        return super().forward(inputs.flatten(1))


def test_a_network_with_nothing_to_train_is_refused(tiny):
    with pytest.raises(ConfigError, match="nothing to train: set requires_grad=True"):
        tiny(f"model._target_={__name__}.Still", "what.frozen=true")
