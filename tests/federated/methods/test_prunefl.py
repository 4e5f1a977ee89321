"""PruneFL: squared gradients are added up on clients, uploaded at events, and decide how many live; by numpy, and its bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.local.state import squared_gradients
from fedprune.pruning.mask import count
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.types import ClientState
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
    return published(compose, "prunefl", "local.epochs=null", *OVERRIDES, *overrides)


def test_sums_are_squares_of_a_rounds_sum_and_not_sums_of_squares():
    """Two steps with gradients 1 and 2, then a round with -4: (1 + 2)^2 + (-4)^2 = 25."""
    kept = squared_gradients.added({}, {"a": torch.tensor([1.0 + 2.0])})
    kept = squared_gradients.added(kept, {"a": torch.tensor([-4.0])})
    assert squared_gradients.sums(kept, {"a": torch.zeros(1)})["a"].tolist() == [25.0]
    assert squared_gradients.sums({}, {"a": torch.ones(1)})["a"].tolist() == [0.0]
    rest = ClientState(batchnorm={"bn": torch.ones(1)})
    states = {3: ClientState(squared_gradients=kept), 4: replace(rest, squared_gradients=kept)}
    assert squared_gradients.forgotten(states) == {4: rest}


def walked(w: Arrays, mask: Arrays, gains: Arrays, times: dict[str, float], most: int) -> Arrays:
    """The largest 70 % of each layer's living stay; of all others the best gain / time come in one by one while it pays."""
    new = {}
    for name in PRUNABLE:
        living = np.where(mask[name], np.abs(w[name]), -1.0)
        alive = int(mask[name].sum())
        threshold = np.sort(living.ravel())[::-1][alive - int(np.floor(0.3 * alive + 0.5 + 1e-9)) - 1]
        new[name] = living >= threshold
    while sum(m.sum() for m in new.values()) < most:
        brought = sum(gains[name][new[name]].sum() for name in PRUNABLE)
        spent = sum(times[name] * new[name].sum() for name in PRUNABLE)
        rest = [(gains[n][i] / times[n], n, tuple(i)) for n in PRUNABLE for i in np.argwhere(~new[n]) for i in [tuple(i)]]
        ratio, name, place = max(rest)
        if ratio <= brought / spent:
            break
        new[name][place] = True
    return new


@pytest.mark.parametrize(("density", "cohort", "time"), [(1.0, 3, 1.0), (1.0, 2, 0.5), (0.4, 2, 1.0)])
def test_nine_rounds_with_four_adjustments_are_those_of_numpy(density, cohort, time, compose):
    """Events after 2, 4, 6 and 8 rounds. At density 1 it starts dense and how many live emerges; at 0.4 18 of 45 do at most.
    Sums of all clients count, by their examples; those who did not take part since the last event have none."""
    experiment = prunefl(compose, f"density={density}", f"federated.cohort={cohort}", f"+criterion.times.fc2={time}")
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
            new = walked(w, mask, gains, times, most)
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


def test_a_run_that_goes_on_from_a_checkpoint_between_two_events_is_the_same(compose, tmp_path, equal):
    experiment = prunefl(compose, "density=0.4")
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
        (("+criterion.times.fc9=1",), "no layer 'fc9'"),
        (("criterion.base=-1",), "criterion.base=-1"),
        (("criterion.drop._target_=fedprune.pruning.criterion.squared_gradient",), "first prune event is before any training"),
    ],
)
def test_what_does_not_go_with_it_is_refused(overrides, problem, compose):
    with pytest.raises(ConfigError) as error:
        prunefl(compose, *overrides)
    assert problem in str(error.value)
