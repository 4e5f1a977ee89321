"""Runs whose survivors make up for what is removed: the loss, the mean over clients, bytes, executors, and what undoes it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedprune.execution import Processes
from fedprune.federated.exchange import Exchange, Tally
from fedprune.pruning.mask import count
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import SERVER, Job, Params, State
from fedprune.wire.frame import Message, length

pytestmark = pytest.mark.slow

TRAINED = ("when=during_training", "when.start=0.7", "when.stop=0.9", "how_often=one_shot", "rounds=4")
SHORT = ("when=before_training", "how_often=one_shot", "rounds=1", "where.examples=40", "criterion=woodfisher")


def before_and_after(experiment, executor=None) -> tuple[State, State]:
    """The state before the event of a run and right after it, before anything is trained on."""
    loop = experiment.loop(executor or experiment.executor())
    state = loop.start()
    while not loop.whose.on_server(loop.plan, state):
        state, _ = loop.round(state)
    (event,) = loop.whose.on_server(loop.plan, state)
    return state, loop.pruning.prune(state, event, Tally())


def loss(experiment, params: Params, indices: torch.Tensor) -> float:
    x, y = experiment.dataset.normalise(experiment.dataset.x[indices]), experiment.dataset.y[indices]
    with torch.no_grad():
        return float(F.cross_entropy(torch.func.functional_call(experiment.net.eval(), params, (x,)), y))


@pytest.mark.parametrize("density", [0.5, 0.1])
@pytest.mark.parametrize("where", ["one_client", "all_clients"])
def test_right_after_the_event_the_loss_on_what_was_measured_is_lower_with_compensation(where, density, tiny):
    found, masks = {}, {}
    for criterion in ("woodfisher", "woodfisher_scores"):
        choices = (f"criterion={criterion}", f"where={where}", f"density={density}", "federated.cohort=4", "local.steps=20")
        experiment = tiny(*TRAINED, *choices)
        (before, after), train = before_and_after(experiment), experiment.clients.train
        (client,) = experiment.options.where((), 4, 0) if where == "one_client" else (None,)
        indices = torch.cat(train) if client is None else train[client]
        dense = loss(experiment, before.server.params, indices)
        found[criterion], masks[criterion] = loss(experiment, after.server.params, indices) - dense, after.server.mask
    assert all(torch.equal(alive, masks["woodfisher_scores"][name]) for name, alive in masks["woodfisher"].items())
    assert 0 < found["woodfisher"] < 0.9 * found["woodfisher_scores"]


def test_survivors_move_by_the_clients_mean_weighted_by_examples(tiny):
    experiment = tiny(*SHORT, "where=all_clients", "where.examples=null", "partition=quantity_skew", "federated.clients=2")
    executor = experiment.executor()
    before, after = before_and_after(experiment, executor)
    surviving, name = after.server.mask, ("fisher_compensation",)
    jobs = [Job(client, 0, 0, 0, before.server, name, surviving=surviving) for client in (0, 1)]
    updates = [executor._client_round.measure(job) for job in jobs]
    sizes = [update.examples for update in updates]
    assert sizes == [len(part) for part in experiment.clients.train] and sizes[0] != sizes[1]
    for tensor, alive in surviving.items():
        steps = [update.evidence["fisher_compensation"][tensor] for update in updates]
        mean = (sizes[0] * steps[0] + sizes[1] * steps[1]) / sum(sizes)
        assert not mean[~alive].any() and mean[alive].any()
        moved = torch.where(alive, before.server.params[tensor] + mean, 0)
        assert torch.allclose(after.server.params[tensor], moved, atol=1e-6)
    assert torch.equal(after.server.params["fc1.bias"], before.server.params["fc1.bias"])


def messages(experiment, monkeypatch) -> list[tuple[Job, int, int]]:
    """Filled while a run is played: every job with the bytes that went down and came up."""
    seen, receive, wire = [], Exchange.received, experiment.wire

    def noted(exchange: Exchange, answer: Message, job: Job):
        seen.append((job, length(wire.encode_job(job, wire.subnet_block(job.subnet))), length(answer)))
        return receive(exchange, answer, job)

    monkeypatch.setattr(Exchange, "received", noted)
    return seen


@pytest.mark.parametrize("where", [("where=one_client",), ("where=server", "where.proxy=40")])
def test_it_takes_the_network_and_a_bit_per_living_entry_down_and_a_number_per_survivor_up(where, tiny, play, monkeypatch):
    experiment = tiny(*SHORT, *where, "density=0.1")
    seen = messages(experiment, monkeypatch)
    ((state, metrics),) = play(experiment)
    scores, compensation, *training = seen
    assert [job.measure for job, *_ in seen[:2]] == [("fisher_inverse_diag",), ("fisher_compensation",)]
    assert scores[0].surviving is None and compensation[0].surviving is not None
    prunable, survivors = sum(alive.numel() for alive in state.server.mask.values()), count(state.server.mask)
    assert compensation[1] - scores[1] == 4 + -(-prunable // 8)  # a block's length and its bits; names of equal length
    assert scores[2] - compensation[2] == 4 * (prunable - survivors)
    crossed = [(down, up) for job, down, up in seen if job.client != SERVER]
    assert len(crossed) == len(training) + 2 * (where == ("where=one_client",))
    assert (metrics["wire/down_bytes"], metrics["wire/up_bytes"]) == tuple(map(sum, zip(*crossed, strict=True)))


def test_the_executor_cannot_be_seen_and_a_run_resumes_where_it_was(tiny, play, differences, tmp_path):
    overrides = (*TRAINED, "criterion=woodfisher", "where=cohort", "where.examples=40", "local.steps=1")
    experiment = tiny(*overrides)
    states = [state for state, _ in play(experiment)]
    parallel = tiny(*overrides, "executor=processes", "executor.workers=2")
    executor = parallel.executor()
    assert isinstance(executor, Processes)
    try:
        assert differences(play(parallel, executor)[-1][0], states[-1]) == []
    finally:
        executor.close()
    save_state(states[0], tmp_path / "state.safetensors")
    assert differences(play(experiment, state=load_state(tmp_path / "state.safetensors"))[-1][0], states[-1]) == []


def test_a_rewind_that_replaces_the_weights_undoes_it(tiny, play, differences):
    overrides = (*SHORT, "when=after_training", "rewind=init", "where=one_client")
    moved, unmoved = (play(tiny(*overrides, f"criterion={c}"))[-1][0] for c in ("woodfisher", "woodfisher_scores"))
    assert moved.events == 1
    assert differences(moved, unmoved, ignore=("up_bytes", "down_bytes")) == []
    assert moved.up_bytes > unmoved.up_bytes and moved.down_bytes > unmoved.down_bytes


def test_gated_weights_are_refused_with_what_to_choose(command):
    gates = ("local/penalty=l0", "how_often=one_shot", "dry_run=true", "logger=none")
    result = command(*gates, "criterion=woodfisher")
    assert result.rc != 0
    assert "criterion=woodfisher: " in result.text and "choose criterion=woodfisher_scores or local/penalty=none" in result.text
    assert command(*gates, "criterion=woodfisher_scores").rc == 0
