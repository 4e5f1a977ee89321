"""The metrics after one local training: against numpy, against what the next round trains, and what they may not change."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fedprune.execution import employed
from fedprune.federated.client.state_arrays import of_arrays
from fedprune.federated.metrics.tuned import chosen_clients
from fedprune.local.train import load
from fedprune.wire.message import answered_under
from helpers.federation import arrays, federation, inputs
from helpers.in_numpy import accuracy, dense, masked, train

TESTS = (range(36, 45), range(45, 54), range(50, 60))
"""Test parts of nine and ten examples."""


# --- by hand ---------------------------------------------------------------------------------------------------------------


def test_a_dense_network_is_trained_once_more_and_evaluated_as_in_numpy(play):
    experiment = federation("rounds=3", "local.epochs=4", "how_often=never", test=TESTS)
    for state, metrics in play(experiment):
        server, each = arrays(state.server.params), []
        for client in range(3):
            w = train(server, dense(server), *inputs(experiment, experiment.clients.train[client]), steps=4)
            each.append(accuracy(w, *inputs(experiment, experiment.clients.test[client])))
        assert metrics["client/accuracy_tuned_mean"] == pytest.approx(np.mean(each), abs=1e-6)
        assert metrics["client/accuracy_tuned_p10"] == pytest.approx(np.percentile(each, 10), abs=1e-6)
        assert metrics["client/accuracy_tuned_min"] == pytest.approx(min(each), abs=1e-6)
        assert metrics["time/tuned_s"] > 0


def test_a_personal_mask_is_trained_under_as_in_numpy_and_nothing_is_pruned_for_it(play):
    halving = ("whose=personal", "how_often=iterative", "how_often.rate=0.5", "density=0.25", "when=during_training")
    experiment = federation(*halving, "rewind=init", "rounds=4", "local.epochs=4", test=TESTS)
    loop, densities = experiment.loop(experiment.executor()), []
    for state, metrics in play(experiment):
        server, each = arrays(state.server.params), []
        for client in range(3):
            own = loop._own(state, client)
            mask = dense(server) if own is None else arrays(own)
            densities.append(float(np.mean([alive.mean() for alive in mask.values()])))
            x, y = inputs(experiment, experiment.clients.train[client])
            w = train(masked(server, mask), mask, x, y, steps=4)
            each.append(accuracy(w, *inputs(experiment, experiment.clients.test[client])))
        assert metrics["client/accuracy_tuned_mean"] == pytest.approx(np.mean(each), abs=1e-6)
    assert min(densities) < 0.3 < max(densities)


# --- the next round --------------------------------------------------------------------------------------------------------


class Answers:
    """Passes tasks on, and keeps what clients train in each round: by client, the whole network and its mask."""

    def __init__(self, experiment):
        self.inner, self.wire = experiment.executor(), experiment.wire
        self.trained: dict[int, tuple[dict, dict]] = {}

    def map(self, tasks: Sequence[Any], sizes: Sequence[int]) -> Iterator[Any]:
        for (method, arguments), answer in zip(tasks, self.inner.map(tasks, sizes), strict=True):
            if method == "run":
                job = self.wire.decode_job(arguments[0], arguments[2])
                update, kept = self.wire.decode_update(answer[0], answered_under(job)), of_arrays(answer[1])
                self.trained[job.client] = (update.subnet.params | kept.batchnorm, update.subnet.mask)
            yield answer

    def close(self, now: bool = False) -> None:
        self.inner.close(now)


def accuracies(experiment, worker, trained) -> list[float]:
    """Return each client's accuracy on its own test part with the network that it has trained, in eval mode."""
    each = []
    for client, (params, mask) in sorted(trained.items()):
        load(worker.context.module, worker.context.in_use(params, tuple(experiment.axes.what.names)))
        net, part = worker.context.module.net.eval(), experiment.clients.test[client]
        x, y = experiment.dataset.normalise(experiment.dataset.x[part]), experiment.dataset.y[part]
        with worker.context.as_trained(mask), torch.no_grad():
            each.append(float((net(x).argmax(1) == y).float().mean()))
    return each


ALL = ("federated.clients=4", "federated.cohort=4", "federated.tuned=4", "eval_every=1", "partition.test=0.3", "rounds=3")
EARLY = ("when=during_training", "when.start=0.0", "when.stop=0.3", "how_often=one_shot", "density=0.4")
TIERS = ("federated/capacity=tiers", "federated.capacity.levels=[1.0,0.5,0.25]")

METHODS = {
    "dense": (),
    "two optimizers' worth of state": ("federated.optimizer_state=kept", "local.optimizer.momentum=0.9"),
    "proximal, clipped, decaying": ("local.proximal_mu=0.1", "local.clip_norm=0.5", "local.lr_decay=0.5"),
    "penalty": ("local/penalty=l1",),
    "dropout with noise": ("local/dropout=targeted",),
    "scaffold": ("federated=scaffold", "local.optimizer.momentum=0.0"),
    "personal masks": ("whose=personal", *EARLY, "rewind=init"),
    "values of their own": ("whose=personal", *EARLY, "whose.uncommon=own", "whose.at=end", "partition=dirichlet"),
    "voted": ("whose=voted", *EARLY),
    "neurons that are gone": ("whose=shared", *EARLY, "what=neurons_global"),
    "heterofl": ("whose=nested", "local/dropout=scaled", *TIERS),
    "nested by magnitude": ("whose=nested", "whose.by=magnitude", *TIERS),
    "labels of their own": ("whose=nested", "whose.labels=own", "local/dropout=scaled", *TIERS, "partition=shards"),
    "private BatchNorm": ("federated.batchnorm=local", "model=resnet20", "model.norm=batch", "local.steps=2"),
    "dispfl": (
        *("what=weights_erk", "whose=personal", "whose.at=end", "federated/client=evolving_mask", "criterion=rigl"),
        *("federated/round=neighbours", "federated.round.topology.number=2", "federated.weighting=uniform"),
        *(*EARLY, "how_often=dynamic", "how_often.every=1", "how_often.swap=0.5", "when.stop=0.4"),
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_it_is_of_the_networks_that_the_next_round_trains(method, tiny):
    """All clients take part in each round, so the networks after one local training are those of the next round's updates; its
    event, where there is one at the start, makes others."""
    experiment, compared = tiny(*ALL, *METHODS[method]), 0
    answers = Answers(experiment)
    with employed(answers) as executor:
        loop, expected = experiment.loop(executor), None
        state = loop.start()
        while state.round < 3:
            later, metrics = loop.round(state)
            if expected is not None and not pruning(experiment, loop, state):
                client = answers.inner._client_round
                worker = client.inner if experiment.options.client.goes_on_alone else client
                found = accuracies(experiment, worker, answers.trained)
                assert expected == pytest.approx(np.mean(found), abs=1e-6), method
                compared += 1
            state, expected = later, metrics["client/accuracy_tuned_mean"]
            assert metrics["client/accuracy_tuned_min"] <= expected
    assert compared, "there is a round without an event"


def pruning(experiment, loop, state) -> bool:
    """Return whether an event of the next round changes what is trained or sent in it. Without a server a client chooses its
    next mask in the event, and sends what it has trained before."""
    if experiment.options.client.goes_on_alone:
        return False
    return bool(loop.whose.on_server(loop.plan, state)) or any(job.event for job in loop._jobs(state, range(4)))


def test_of_fedpm_the_scores_are_trained_and_the_same_few_samples_evaluated(tiny):
    fedpm = (
        "federated/client=sampled_masks",
        "federated/aggregate=beta_mode",
        "how_often=never",
        "federated.weighting=uniform",
    )
    experiment = tiny(*ALL, *fedpm, "local.optimizer.lr=1.0", "local.optimizer.momentum=0.0")
    with employed(experiment.executor()) as executor:
        loop, worker = experiment.loop(executor), executor._client_round
        state, metrics = loop.round(loop.start())
        each = []
        for job in loop._jobs(state, range(4)):
            _, scores = worker._trained(job)
            part, right = experiment.clients.test[job.client], []
            x, y = experiment.dataset.normalise(experiment.dataset.x[part]), experiment.dataset.y[part]
            for number in range(3):
                load(worker.inner.context.module, worker._sample(scores, number))
                with torch.no_grad():
                    right.append(float((worker.inner.context.module.net.eval()(x).argmax(1) == y).float().mean()))
            each.append(np.mean(right))
    assert metrics["client/accuracy_tuned_mean"] == pytest.approx(np.mean(each), abs=1e-6)
    assert metrics["client/accuracy_tuned_mean"] != metrics["client/accuracy_mean"]


# --- what it may not change ------------------------------------------------------------------------------------------------

EVERYTHING = (
    *("federated=scaffold", "local.optimizer.momentum=0.0", "whose=shared", *EARLY, "what=neurons_global", "rewind=init"),
    *("federated.clients=5", "federated.cohort=3", "federated.tuned=3", "eval_every=1", "partition.test=0.3", "rounds=4"),
)


def others(metrics) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "tuned" not in name and "time" not in name}


@pytest.mark.parametrize("method", ["scaffold", "values of their own", "private BatchNorm", "dispfl", "neurons that are gone"])
def test_with_it_and_without_it_a_run_is_the_same_to_the_bit(method, tiny, play, differences):
    overrides = (*ALL, *METHODS[method], "federated.cohort=3")
    without = play(tiny(*overrides, "federated.tuned=0"))
    with_it = play(tiny(*overrides))
    for (state, metrics), (other, fewer) in zip(with_it, without, strict=True):
        assert differences(state, other) == []
        assert "client/accuracy_tuned_mean" in metrics and not [name for name in fewer if "tuned" in name]
        assert others(metrics) == others(fewer)


def test_executors_and_resuming_change_no_bit_of_it(tiny, play):
    experiment = tiny(*EVERYTHING)
    serial = play(experiment)
    processes = play(tiny(*EVERYTHING, "executor=processes", "executor.workers=2"))
    resumed = play(experiment, state=serial[1][0])
    tuned = [{name: value for name, value in metrics.items() if "_tuned_" in name} for _, metrics in serial]
    assert [{name: metrics[name] for name in tuned[0]} for _, metrics in processes] == tuned
    assert [{name: metrics[name] for name in tuned[0]} for _, metrics in resumed] == tuned[2:]
    assert len(tuned[0]) == 3


def test_clients_that_are_batched_come_to_the_same_but_for_rounding(tiny, play):
    plain = ("federated.clients=5", "federated.cohort=3", "eval_every=1", "partition.test=0.3", "rounds=3", "federated.tuned=3")
    one_by_one, together = (play(tiny(*plain, f"executor={executor}")) for executor in ("serial", "batched"))
    for (_, metrics), (_, others) in zip(one_by_one, together, strict=True):
        assert metrics["client/accuracy_tuned_mean"] == pytest.approx(others["client/accuracy_tuned_mean"], abs=0.02)


# --- whom, and when --------------------------------------------------------------------------------------------------------


def test_as_many_as_a_cohort_are_drawn_by_the_seed_of_those_with_test_examples():
    sizes = [(client, client % 3) for client in range(30)]
    drawn = chosen_clients(sizes, 5, seed=1)
    assert len(drawn) == 5 and all(size == client % 3 > 0 for client, size in drawn.items())
    assert list(drawn) == sorted(drawn) and drawn == chosen_clients(sizes, 5, seed=1) != chosen_clients(sizes, 5, seed=2)
    assert chosen_clients(sizes, 40, seed=1) == {client: size for client, size in sizes if size}


def test_it_is_done_at_evaluations_or_at_the_end_by_so_many(tiny, play):
    few = ("federated.tuned=null", "eval_every=2", "rounds=4", "partition.test=0.3")
    at = [("client/accuracy_tuned_mean" in metrics) for _, metrics in play(tiny(*few))]
    assert at == [False, True, False, True]
    at_end = play(tiny(*few, "federated.tuned_at=end"))
    assert [("client/accuracy_tuned_mean" in metrics) for _, metrics in at_end] == [False, False, False, True]
    assert len(tiny(*few).tuned.clients) == 2  # the cohort
    assert len(tiny(*few, "federated.tuned=3").tuned.clients) == 3


def test_without_test_examples_it_is_left_out_and_that_is_said(tiny, play, caplog):
    caplog.set_level(logging.INFO, "fedprune")
    rows = play(tiny("partition.test=0", "federated.tuned=2", "eval_every=1"))
    assert not [name for _, metrics in rows for name in metrics if "tuned" in name]
    assert caplog.text.count("client/accuracy_tuned_mean, of clients after one local training, is left out") == 1
    assert "type partition.test=0.1" in caplog.text
    caplog.clear()
    play(tiny("partition.test=0", "federated.tuned=0"), stop=1)
    assert "tuned" not in caplog.text


def test_a_task_of_another_kind_has_it_under_its_own_name(tiny, play):
    regression = ("local=regression", "data=diabetes", "federated.tuned=2", "eval_every=1", "partition.test=0.3")
    (_, metrics), *_ = play(tiny(*regression))
    assert {name for name in metrics if "_tuned_" in name} == {
        *("client/mse_tuned_mean", "client/mse_tuned_p90", "client/mse_tuned_max", "client/mae_tuned_mean"),
    }
