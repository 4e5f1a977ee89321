"""PruneFL: squared gradients are added up on clients, uploaded at events, and decide how many live; by numpy, and its bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from fedprune.errors import ConfigError
from fedprune.federated.metrics.tally import Tally
from fedprune.federated.server_pruning.initial_pruning import chosen_client, settled
from fedprune.local.state import squared_gradients
from fedprune.models.cnn import cnn_small
from fedprune.pruning.mask import count, ones, shrink
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import ClientState, State
from fedprune.wire.frame import length
from helpers.composed import composed
from helpers.federation import arrays, assert_same, cohort_of, data_of, played, published
from helpers.in_numpy import PRUNABLE, RATE, Arrays, averaged, best, gradient, masked

OVERRIDES = (
    "rounds=10",
    "when.stop=1.0",
    "how_often.every=2",
    "local.steps=2",
    "local.batch_size=1000",
    "local.optimizer.lr=0.2",
)


def prunefl(compose, *overrides: str):
    """PruneFL without its first stage, unless the overrides have it."""
    return published(compose, "prunefl", "local.epochs=null", "how_often.alone=0", *OVERRIDES, *overrides)


class Recorder:
    """An executor that notes the length of each message, down and up."""

    def __init__(self, executor) -> None:
        self.executor, self.sizes = executor, list[tuple[int, int]]()

    def map(self, tasks, sizes):
        for task, answer in zip(tasks, self.executor.map(tasks, sizes), strict=True):
            self.sizes.append((length(task[1][0]), length(answer[0])))
            yield answer


def played_plainly(experiment, rounds: int) -> list[State]:
    """The states at the start and after each round, where not all messages are counted."""
    loop = experiment.loop(executor := experiment.executor())
    states = [loop.start()]
    for _ in range(rounds):
        states.append(loop.round(states[-1])[0])
    executor.close()
    return states


def test_sums_are_squares_of_a_rounds_sum_and_not_sums_of_squares():
    """Two steps with gradients 1 and 2, then a round with -4: (1 + 2)^2 + (-4)^2 = 25."""
    kept = squared_gradients.added({}, {"a": torch.tensor([1.0 + 2.0])})
    kept = squared_gradients.added(kept, {"a": torch.tensor([-4.0])})
    assert squared_gradients.sums(kept, {"a": torch.zeros(1)})["a"].tolist() == [25.0]
    assert squared_gradients.sums({}, {"a": torch.ones(1)})["a"].tolist() == [0.0]
    rest = ClientState(batchnorm={"bn": torch.ones(1)})
    states = {3: ClientState(squared_gradients=kept), 4: replace(rest, squared_gradients=kept)}
    assert squared_gradients.forgotten(states) == {4: rest}


def walked(w: Arrays, mask: Arrays, gains: Arrays, times: dict[str, float], base: float, most: int) -> Arrays:
    """The largest 70 % of each layer's living stay; of all others the best gain / time come in one by one while it pays."""
    new = {}
    for name in PRUNABLE:
        living = np.where(mask[name], np.abs(w[name]), -1.0)
        alive = int(mask[name].sum())
        threshold = np.sort(living.ravel())[::-1][alive - int(np.floor(0.3 * alive + 0.5 + 1e-9)) - 1]
        new[name] = living >= threshold
    while sum(m.sum() for m in new.values()) < most:
        brought = sum(gains[name][new[name]].sum() for name in PRUNABLE)
        spent = sum(times[name] * (new[name].sum() + base * new[name].size) for name in PRUNABLE)
        rest = [(gains[n][i] / times[n], n, tuple(i)) for n in PRUNABLE for i in np.argwhere(~new[n]) for i in [tuple(i)]]
        ratio, name, place = max(rest)
        if ratio <= brought / spent:
            break
        new[name][place] = True
    return new


def steps(w: Arrays, mask: Arrays, data) -> tuple[Arrays, Arrays]:
    """Two steps of gradient descent under the mask, and the sum of their gradients, of the dead, too."""
    total = dict.fromkeys(PRUNABLE, 0.0)
    for _ in range(2):
        g = gradient(w, *data)
        total = {name: total[name] + g[name] for name in PRUNABLE}
        w = masked({name: w[name] - RATE * g[name] for name in w}, mask)
    return w, total


@pytest.mark.parametrize(("density", "rounds", "exchanges"), [(1.0, 5, 2), (0.3, 8, 4), (0.6, 2, 1)])
def test_one_client_alone_prunes_first_as_in_numpy(density, rounds, exchanges, compose):
    """It starts dense and exchanges after 2, 4, ... rounds. The cap of 0.3 is reached after four of them (0.7^4 = 0.24); one is
    not enough for 0.6 (0.7), and the rest is dropped by magnitude at the densities of `what`, here of all layers."""
    overrides = (f"density={density}", f"how_often.alone={rounds}", "criterion.base=0.14", "what=weights_global")
    experiment = prunefl(compose, *overrides)
    loop = experiment.loop(experiment.executor())
    tally = Tally.begun(False)
    state, waiting = loop.pruning.before_round(loop.start(), tally)
    data = data_of(experiment)[chosen_client(experiment.config.seed, 3)]
    w = arrays(loop.start().server.params)
    mask = {name: np.ones(w[name].shape, bool) for name in PRUNABLE}
    stale = {name: np.zeros(w[name].shape) for name in PRUNABLE}
    sums = {name: np.zeros(w[name].shape) for name in PRUNABLE}
    times, most = {"fc1.weight": 1.0, "fc2.weight": 1.0}, int(np.floor(45 * density + 0.5))
    for number in range(1, rounds + 1):
        w, total = steps(w, mask, data)
        sums = {name: sums[name] + total[name] ** 2 for name in PRUNABLE}
        if number % 2 == 0:
            new = walked(w, mask, sums, times, 0.14, most)
            last = {name: np.where(mask[name], w[name], stale[name]) for name in PRUNABLE}
            stale = {name: np.where(new[name], 0.0, last[name]) for name in PRUNABLE}
            w, mask, sums = masked(w | last, new), new, {name: np.zeros(w[name].shape) for name in PRUNABLE}
    if density == 0.6:
        living = {name: np.where(mask[name], np.abs(w[name]), -1.0) for name in PRUNABLE}
        mask = best(living, most)
        w = masked(w, mask)
    assert (state.events, waiting, state.round, state.clock, dict(state.kept)) == (1, 0, 0, 0, {})
    assert len(tally.alone) == rounds
    assert_same(state, w, mask)
    assert count(state.server.mask) <= most


def test_it_ends_early_once_the_density_has_settled(compose):
    """Five changes in a row of a tenth at most: 1, .5, then .5 five times more; of -11 % it is not a tenth."""
    assert settled([1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert not settled([1.0, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert not settled([0.5, 0.5, 0.5, 0.5, 0.5, 0.44])
    assert settled([0.9, 0.5, 0.46, 0.5, 0.5, 0.5, 0.5])
    loop = (experiment := prunefl(compose, "density=0.3", "how_often.alone=1000")).loop(experiment.executor())
    tally = Tally.begun(False)
    loop.pruning.before_round(loop.start(), tally)
    assert len(tally.alone) < 100


def test_the_client_that_prunes_first_is_drawn_by_the_seed_and_never_an_unseen_one():
    assert len({chosen_client(seed, 20) for seed in range(20)}) > 5
    assert chosen_client(3, 20) == chosen_client(3, 20)
    assert {chosen_client(seed, 4, unseen=(0, 2)) for seed in range(20)} == {1, 3}


def test_of_the_client_alone_the_network_down_and_its_own_up_are_counted(compose):
    """The other messages of the round are those of its three clients, which come last. Up: 4 bytes for each living weight and
    each of the 8 biases, 45 bits of a mask, and the header."""
    experiment = prunefl(compose, "density=0.4", "how_often.alone=6")
    loop = experiment.loop(recorder := Recorder(experiment.executor()))
    state, metrics = loop.round(loop.start())
    last_down, last_up = map(sum, zip(*recorder.sizes[-3:], strict=True))
    assert len(recorder.sizes) == 6 + 3 + 3  # rounds and questions of the client alone, then the cohort's
    assert metrics["wire/down_bytes"] == recorder.sizes[0][0] + last_down
    sent = metrics["wire/up_bytes"] - last_up
    values = 4 * (count(state.server.mask) + 8)
    assert values + 6 <= sent <= values + 6 + 250


def test_a_run_with_a_client_alone_is_the_same_twice_and_in_other_processes(compose, equal):
    states = []
    for executor in (("executor=serial",), ("executor=serial",), ("executor=processes", "executor.workers=1")):
        experiment = prunefl(compose, "density=0.4", "how_often.alone=4", *executor)
        states.append(played_plainly(experiment, 3)[-1])
    for other in states[1:]:
        assert equal(states[0].server.params, other.server.params) and equal(states[0].server.mask, other.server.mask)


@pytest.mark.parametrize(
    ("density", "cohort", "time", "base"), [(1.0, 3, 1.0, 0.0), (1.0, 2, 0.5, 0.14), (0.4, 2, 1.0, 0.0), (0.4, 2, 1.0, 0.14)]
)
def test_nine_rounds_with_four_adjustments_are_those_of_numpy(density, cohort, time, base, compose):
    """Events after 2, 4, 6 and 8 rounds. At density 1 it starts dense and how many live emerges; at 0.4 18 of 45 do at most.
    Sums of all clients count, by their examples; those who did not take part since the last event have none."""
    options = (f"density={density}", f"federated.cohort={cohort}", f"+criterion.times.fc2={time}", f"criterion.base={base}")
    experiment = prunefl(compose, "what=weights_global", *options)
    states, data = played(experiment, 9), data_of(experiment)
    times, most = {"fc1.weight": 1.0, "fc2.weight": time}, round(45 * density)
    w = arrays(states[0].server.params)
    mask = best({name: np.abs(w[name]) for name in PRUNABLE}, most)
    stale, w = {name: np.where(mask[name], 0.0, w[name]) for name in PRUNABLE}, masked(w, mask)
    sums = {k: {name: np.zeros(w[name].shape) for name in PRUNABLE} for k in data}
    counts, regrown = [], 0
    for clock, state in enumerate(states[1:]):
        if clock in (2, 4, 6, 8):
            gains = averaged([*sums.values()], [len(y) for _, y in data.values()])
            new = walked(w, mask, gains, times, base, most)
            last = {name: np.where(mask[name], w[name], stale[name]) for name in PRUNABLE}
            regrown += sum(int((new[name] & ~mask[name] & (last[name] != 0)).sum()) for name in PRUNABLE)
            stale = {name: np.where(new[name], 0.0, last[name]) for name in PRUNABLE}
            w, mask = masked(w | last, new), new
            sums = {k: {name: np.zeros(w[name].shape) for name in PRUNABLE} for k in data}
        ends, chosen = [], cohort_of(experiment, clock)
        for k in chosen:
            own, total = w, dict.fromkeys(PRUNABLE, 0.0)
            for _ in range(2):
                g = gradient(own, *data[k])
                total = {name: total[name] + g[name] for name in PRUNABLE}  # of the dead, too
                own = masked({name: own[name] - RATE * g[name] for name in own}, mask)
            sums[k] = {name: sums[k][name] + total[name] ** 2 for name in PRUNABLE}
            ends.append(own)
        w = averaged(ends, [len(data[k][1]) for k in chosen])
        assert_same(state, w, mask)
        counts.append(count(state.server.mask))
        assert counts[-1] <= most
        for k, kept in state.kept.items():
            like = {name: state.server.params[name] for name in PRUNABLE}
            for name, total in squared_gradients.sums(kept.squared_gradients, like).items():
                np.testing.assert_allclose(total.numpy(), sums[k][name], rtol=1e-3, atol=1e-6)
    assert len(set(counts)) > 1 or density < 1
    assert regrown > 0


def test_sums_travel_only_at_events_and_are_counted(compose):
    """53 float32 numbers a client in every round; at an event each of the three sends 45 sums more, and what a message has
    about them. Headers tell the loss in digits, so that lengths vary by a few bytes."""
    experiment = prunefl(compose, "density=1.0")
    loop = experiment.loop(experiment.executor())
    state, up = loop.start(), []
    for _ in range(4):
        state, metrics = loop.round(state)
        up.append(metrics["wire/up_bytes"])
    assert abs(up[1] - up[0]) < 20
    fewer = 45 - count(state.server.mask)  # weights that live no more
    sums = up[2] - (up[1] - 3 * 4 * fewer)
    assert 3 * 4 * 45 < sums < 3 * (4 * 45 + 200)
    assert abs(up[3] - (up[2] - sums)) < 20


@pytest.mark.parametrize("alone", [0, 4])
def test_a_run_that_goes_on_from_a_checkpoint_between_two_events_is_the_same(alone, compose, tmp_path, equal):
    experiment = prunefl(compose, "density=0.4", f"how_often.alone={alone}")
    loop = experiment.loop(experiment.executor())
    states = [loop.start()]
    for _ in range(5):
        states.append(loop.round(states[-1])[0])
    assert states[3].kept and states[3].stale
    save_state(states[3], tmp_path / "state")
    state = load_state(tmp_path / "state")
    for _ in range(2):
        state, _ = loop.round(state)
    assert equal(state.server.params, states[5].server.params) and equal(state.server.mask, states[5].server.mask)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("where=server", "where.proxy=10"), "choose where=all_clients"),
        (("whose=personal", "where=cohort", "federated.regrown=zero"), "choose whose=shared"),
        (("how_often.alone=1",), "set how_often.alone=2 or more"),
        (("how_often.alone=4", "federated/upload=top_weights"), "choose federated/upload=all"),
        (("+criterion.times.fc9=1",), "no layer 'fc9'"),
        (("criterion.base=-1",), "criterion.base=-1"),
        (("criterion.base=20000",), "criterion.base=20000 is a fraction of the time of all weights"),
        (("criterion.drop._target_=fedprune.pruning.criterion.squared_gradient",), "first prune event is before any training"),
    ],
)
def test_what_does_not_go_with_it_is_refused(overrides, problem, compose):
    with pytest.raises(ConfigError) as error:
        prunefl(compose, *overrides)
    assert problem in str(error.value)


def test_a_client_that_never_answers_cannot_prune_first(compose):
    """One of three never answers; which one, and who prunes first, goes by the seed."""
    advice = "never answers: choose federated/availability=always or how_often.alone=0"
    never = ("how_often.alone=4", "federated/availability=never", "federated.availability.fraction=0.34")
    problems = []
    for seed in range(8):
        try:
            prunefl(compose, *never, f"seed={seed}")
        except ConfigError as error:
            problems.append(str(error))
    assert 0 < len(problems) < 8
    assert all(advice in problem for problem in problems)


def test_the_first_mask_is_at_erk_densities_and_no_layer_is_nearly_cut():
    """Without a first stage cnn_small at density 0.05 keeps 1,088 of 21,750. ERK goes by the sums of the shapes: conv1 10x1x5x5
    has 21, conv2 20x10x5x5 40, fc1 50x320 370, fc2 10x50 60. In all 491, so that one is worth 1088/491 = 2.216 entries: 46.5,
    88.6, 819.9 and 132.9. Rounded up they are one too many, and the last of fc1 is worth least: 370 / 819.5 = 0.4515, against
    21 / 46.5 = 0.4516, 40 / 88.5 = 0.4520 and 60 / 132.5 = 0.4528. Of all layers together fc1 would keep 45, or 6."""
    config, _ = composed("+experiment=prunefl", "density=0.05")
    net = cnn_small((1, 28, 28), 10)
    what = instantiate(config.what).bind(net)
    scores = {name: tensor.abs() for name, tensor in net.state_dict().items() if name in what.names}
    mask = shrink(ones(net.state_dict(), what.names), scores, 0.05, what)
    kept = {name: int(alive.sum()) for name, alive in mask.items()}
    assert kept == {"conv1.weight": 47, "conv2.weight": 89, "fc1.weight": 819, "fc2.weight": 133}
