"""Clients that are in no cohort: nobody trains or asks them, and they are evaluated apart; and clients that train alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedprune.data.federate import federate
from fedprune.errors import ConfigError
from fedprune.execution import employed
from fedprune.experiment.estimate import estimate
from fedprune.federated.sampling import cohort, sampled, unseen_clients
from fedprune.federated.where import AllClients, Cohort, OneClient, Server, asked
from fedprune.local.train import load
from fedprune.pruning.mask import apply
from helpers.federation import arrays, federation, inputs
from helpers.in_numpy import accuracy, dense, train
from helpers.spy import spied

TENTH = ("federated.clients=10", "federated.cohort=4", "federated.unseen=0.2", "eval_every=1", "partition.test=0.3")


# --- who they are ----------------------------------------------------------------------------------------------------------


def test_cohorts_are_drawn_uniformly_from_the_others():
    unseen = unseen_clients(seed=0, clients=10, size=3, fraction=0.2)
    assert len(unseen) == 2 and list(unseen) == sorted(unseen) and unseen == unseen_clients(0, 10, 3, 0.2)
    counts = np.bincount([client for clock in range(2000) for client in cohort(0, clock, 10, 3, unseen)], minlength=10)
    assert not counts[list(unseen)].any()
    assert abs(counts[sampled(10, unseen)] - 2000 * 3 / 8).max() < 5 * np.sqrt(750)
    assert [cohort(1, clock, 10, 3, ()) for clock in range(20)] == [cohort(1, clock, 10, 3) for clock in range(20)]
    assert len({unseen_clients(seed, 10, 3, 0.2) for seed in range(9)}) > 3


@pytest.mark.parametrize(
    ("clients", "size", "fraction", "told"),
    [
        (10, 9, 0.2, "federated.unseen=0.2 of federated.clients=10 leaves 8 for federated.cohort=9: type federated.cohort=8"),
        (4, 2, 0.1, "federated.unseen=0.1 of federated.clients=4 is nobody: type federated.unseen=0.25"),
    ],
)
def test_where_there_can_be_none_that_is_said(clients, size, fraction, told, caplog):
    assert unseen_clients(0, clients, size, fraction) == ()
    assert told in caplog.text and caplog.text.count("client/*_unseen_mean is left out") == 1
    assert unseen_clients(0, clients, size, 0.0) == ()
    assert caplog.text.count("left out") == 1


def test_a_fraction_out_of_range_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"federated\.unseen=1\.0 is the fraction"):
        tiny("federated.unseen=1.0")


def test_every_place_of_evidence_asks_the_others_alone():
    unseen, drawn = (1, 4), (0, 3, 5)
    assert asked(AllClients(), drawn, 6, 0, unseen) == (0, 2, 3, 5)
    assert asked(Cohort(), drawn, 6, 0, unseen) == drawn
    assert asked(Server(proxy=3), drawn, 6, 0, unseen) == (-1,)
    assert {asked(OneClient(), drawn, 6, seed, unseen) for seed in range(40)} == {(0,), (2,), (3,), (5,)}
    assert asked(AllClients(), drawn, 6, 0) == tuple(range(6))


def test_of_many_clients_those_are_evaluated_that_are_drawn_for_it(tiny):
    experiment = tiny(*TENTH, "federated.evaluated=7")
    clients = experiment.clients
    assert len(clients.seen) + len(clients.newcomers) == 7
    assert set(clients.newcomers) <= set(clients.unseen) and not set(clients.seen) & set(clients.unseen)
    again = federate(experiment.dataset, experiment.options.partition, 10, 0, evaluated=7)
    assert sorted({*clients.seen, *clients.newcomers}) == list(again.seen)  # of all clients, whoever is unseen


# --- a run -----------------------------------------------------------------------------------------------------------------

ONE_SHOT = ("when=before_training", "how_often=one_shot", "density=0.4", "criterion=snip", "where=all_clients")
METHODS = {
    "shared": ONE_SHOT,
    "personal": ("whose=personal", "when=during_training", "when.stop=0.4", "how_often=one_shot", "density=0.4"),
    "nested": ("whose=nested", "federated/capacity=tiers", "federated.capacity.levels=[1.0,0.5,0.25]", "local/dropout=scaled"),
    "private BatchNorm": ("federated.batchnorm=local", "model=resnet20", "model.norm=batch", "local.steps=1"),
    "scaffold": ("federated=scaffold", "local.optimizer.momentum=0.0"),
}


@pytest.mark.parametrize("method", METHODS)
def test_they_are_never_asked_and_are_evaluated_with_what_they_would_be_sent(method, tiny, play):
    experiment = tiny(*TENTH, *METHODS[method])
    unseen = experiment.clients.unseen
    spy = spied(experiment)
    with employed(spy) as executor:
        state, metrics = play(experiment, executor=executor)[-1]
        loop, worker = experiment.loop(executor), spy._inner._client_round
        asked_for = {job.client for job, *_ in spy.seen}
        assert len(unseen) == 2 and not asked_for & {*unseen} and not {*state.kept, *state.personal} & {*unseen}
        assert not {*loop.tuned.clients} & {*unseen}
        each = {}
        for client in range(10):
            own = loop._own(state, client)
            params = state.server.params if own is None else apply(state.server.params, own)
            load(worker.context.module, params | loop.exchange.kept_by(state, client).batchnorm)
            part = experiment.clients.test[client]
            x, y = experiment.dataset.normalise(experiment.dataset.x[part]), experiment.dataset.y[part]
            with worker.context.as_trained(own or state.server.mask), torch.no_grad():
                each[client] = float((worker.context.module.net.eval()(x).argmax(1) == y).float().mean())
    assert metrics["client/accuracy_unseen_mean"] == pytest.approx(np.mean([each[k] for k in unseen]), abs=1e-6)
    assert metrics["client/accuracy_unseen_min"] == pytest.approx(min(each[k] for k in unseen), abs=1e-6)
    assert metrics["client/accuracy_mean"] == pytest.approx(np.mean([v for k, v in each.items() if k not in unseen]), abs=1e-6)
    if method == "shared":
        assert {job.client for job, *_ in spy.seen if job.measure} == {*range(10)} - {*unseen}


def test_the_control_of_scaffold_is_the_mean_over_those_who_may_take_part(tiny, play):
    state, _ = play(tiny(*TENTH, *METHODS["scaffold"]))[-1]
    for name, control in state.server_state.control.items():
        mean = sum(kept.control[name] for kept in state.kept.values()) / 8
        torch.testing.assert_close(control, mean, rtol=1e-4, atol=1e-6)


def test_without_a_server_they_would_begin_with_the_mean_of_themselves_and_their_neighbours(tiny, play):
    neighbours = (
        *("what=weights_erk", "whose=personal", "whose.at=end", "federated/client=evolving_mask", "how_often=never"),
        *("federated/round=neighbours", "federated.round.topology.number=2", "federated.weighting=uniform"),
    )
    experiment = tiny(*TENTH, *neighbours)
    spy = spied(experiment)
    state, metrics = play(experiment, executor=spy)[-1]
    assert not {job.client for job, *_ in spy.seen} & {*experiment.clients.unseen}
    loop = experiment.loop(spy)
    for client in experiment.clients.unseen:
        assert all(torch.equal(loop.start().kept[client].weights[n], w) for n, w in state.kept[client].weights.items())
    assert 0 < metrics["client/accuracy_unseen_mean"] < 1


def test_gates_ask_none_of_them_and_executors_and_resuming_change_no_bit(tiny, play, differences):
    gated = ("when=once_accurate", "when.accuracy=0.2", "how_often=stepwise", "how_often.rate=0.3", "rounds=5")
    words = (*TENTH, *gated, "criterion=magnitude", "partition.val=0.2")
    experiment = tiny(*words)
    serial, others = play(experiment), play(tiny(*words, "executor=processes", "executor.workers=2"))
    resumed = play(experiment, state=serial[1][0])
    for (state, metrics), (other, more) in [*zip(serial, others, strict=True), *zip(serial[2:], resumed, strict=True)]:
        assert differences(state, other) == []
        assert {k: v for k, v in metrics.items() if "time" not in k} == {k: v for k, v in more.items() if "time" not in k}
    assert serial[-1][0].events and "client/accuracy_unseen_p10" in serial[-1][1]


# --- nobody sends anything -------------------------------------------------------------------------------------------------

ALONE = (
    *("whose=personal", "whose.at=end", "federated/client=evolving_mask", "federated/round=alone", "how_often=never"),
    *("federated.weighting=uniform", "federated.tuned=3"),
)


def test_standalone_clients_train_for_themselves_as_in_numpy_and_send_nothing(play):
    experiment = federation(*ALONE, "rounds=4", "local.epochs=3", cohort=2, test=(range(36, 48), range(40, 54), range(44, 60)))
    loop = experiment.loop(experiment.executor())
    start = loop.start()
    w = {client: arrays(start.init) for client in range(3)}
    for number, (state, metrics) in enumerate(play(experiment)):
        for client in cohort(0, number, 3, 2):
            w[client] = train(w[client], dense(w[client]), *inputs(experiment, experiment.clients.train[client]), steps=3)
        own, tuned = [], []
        for client in range(3):
            assert all(np.abs(state.kept[client].weights[n].numpy() - w[client][n]).max() < 1e-5 for n in w[client])
            after = train(w[client], dense(w[client]), *inputs(experiment, experiment.clients.train[client]), steps=3)
            own.append(accuracy(w[client], *inputs(experiment, experiment.clients.test[client])))
            tuned.append(accuracy(after, *inputs(experiment, experiment.clients.test[client])))
        assert metrics["client/accuracy_mean"] == pytest.approx(np.mean(own), abs=1e-6)
        assert metrics["client/accuracy_tuned_mean"] == pytest.approx(np.mean(tuned), abs=1e-6)
        assert (metrics["wire/up_bytes"], metrics["wire/down_bytes"], metrics["wire/total_bytes"]) == (0, 0, 0)
        assert metrics["density/weights"] == 1.0
    rows = dict(estimate(experiment, experiment.config))
    assert (rows["bytes down"], rows["bytes up"]) == ("0 B for training", "0 B for training")
    assert "3 clients train once more at each of 4 evaluations" in rows["tuned evaluation"]


def test_a_single_client_of_a_round_may_be_alone(tiny, play):
    *_, (_, metrics) = play(tiny(*ALONE, "federated.cohort=1"))
    assert metrics["wire/total_bytes"] == 0
