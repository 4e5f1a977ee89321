"""Methods that choose a mask once, before the first round: SNIP, SalientGrads, GraSP and SynFlow in FedAvg, against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fedprune.federated.metrics.tally import Tally
from fedprune.pruning.mask import density
from helpers.federation import arrays, assert_same, cohort_of, data_of, played, published
from helpers.in_numpy import PRUNABLE, Arrays, averaged, best, dense, descend, gradient, masked

Data = dict[int, tuple[np.ndarray, np.ndarray]]


def mean(data: Data, measured: Callable[[np.ndarray, np.ndarray], Arrays]) -> Arrays:
    return averaged([measured(*part) for part in data.values()], [len(y) for _, y in data.values()])


def snip(w: Arrays, data: Data) -> Arrays:
    """|w g|, g of all the data in one pool."""
    pool = tuple(np.concatenate(parts) for parts in zip(*data.values(), strict=True))
    g = gradient(w, *pool)
    return {name: np.abs(w[name] * g[name]) for name in PRUNABLE}


def salient(w: Arrays, data: Data) -> Arrays:
    """The mean of |w g_k|."""
    return mean(data, lambda x, y: {name: np.abs(w[name] * g) for name, g in gradient(w, x, y).items()})


def grasp(w: Arrays, data: Data) -> Arrays:
    """w (H g), H g the slope of the gradient along itself, over the prunable weights, by central differences."""

    def along(x: np.ndarray, y: np.ndarray, step: float = 1e-6) -> Arrays:
        g = gradient(w, x, y)
        ahead, behind = (w | {name: w[name] + sign * step * g[name] for name in PRUNABLE} for sign in (1, -1))
        return {name: (gradient(ahead, x, y)[name] - gradient(behind, x, y)[name]) / (2 * step) for name in PRUNABLE}

    product = mean(data, along)
    return {name: w[name] * product[name] for name in PRUNABLE}


def one_shot(score: Callable[[Arrays, Data], Arrays]) -> Callable[[Arrays, Data], Arrays]:
    return lambda w, data: best(score(w, data), 18)


def synflow(w: Arrays, data: Data) -> Arrays:
    """100 steps. R = 1' |W2| (|W1| 1 + |b1|) + ...: dR/d|W1|_ij is column i's sum of |W2|, dR/d|W2|_ki what unit i puts out."""
    mask = dense(w)
    for step in range(1, 101):
        now = {name: np.abs(value) for name, value in masked(w, mask).items()}
        put_out = now["fc1.weight"].sum(1) + now["fc1.bias"]
        scores = {
            "fc1.weight": now["fc1.weight"] * now["fc2.weight"].sum(0)[:, None],
            "fc2.weight": now["fc2.weight"] * put_out,
        }
        scores = {name: np.where(mask[name], score, -1.0) for name, score in scores.items()}
        mask = best(scores, int(np.floor(45 * 0.4 ** (step / 100) + 0.5 + 1e-9)))
    return mask


METHODS = {"snip_fedavg": one_shot(snip), "salientgrads": one_shot(salient), "grasp_fedavg": one_shot(grasp)}
METHODS |= {"synflow_fedavg": synflow}


@pytest.mark.parametrize("name", METHODS)
def test_the_mask_and_what_is_trained_under_it_are_those_of_numpy(name, compose):
    """18 of 45 weights; of three clients two train in a round, and SalientGrads scores on all three."""
    examples = ("where.examples=null",) if name == "salientgrads" else ()
    experiment = published(compose, name, "density=0.4", "federated.cohort=2", *examples)
    states, data = played(experiment, 3), data_of(experiment)
    w = arrays(states[0].server.params)
    scored = data if name == "salientgrads" else {k: data[k] for k in cohort_of(experiment, 0)}
    mask = METHODS[name](w, scored)
    w = masked(w, mask)
    for clock, state in enumerate(states[1:]):
        chosen = cohort_of(experiment, clock)
        w = averaged([descend(w, mask, *data[k]) for k in chosen], [len(data[k][1]) for k in chosen])
        assert_same(state, w, mask)
        assert density(state.server.mask) == 0.4


def test_the_mean_of_absolute_scores_is_not_the_score_of_the_mean(compose):
    """Clients of one class or two each pull in their own direction, which a mean of gradients does not see."""
    skewed = ("partition=dirichlet", "partition.alpha=0.1", "partition.min_examples=2")
    experiment = published(compose, "salientgrads", "density=0.4", "where.examples=null", *skewed)
    w, data = arrays(played(experiment, 0)[0].server.params), data_of(experiment)
    masks = [best(score(w, data), 18) for score in (salient, snip)]
    assert any((masks[0][name] != masks[1][name]).any() for name in PRUNABLE)
    found = arrays(played(experiment, 1)[1].server.mask)
    assert all((found[name] == masks[0][name]).all() for name in PRUNABLE)


def test_with_one_batch_each_all_clients_count_alike(compose):
    """Eight examples of each: what they weigh is what they scored on, whatever they hold."""
    experiment = published(compose, "salientgrads", "density=0.4", "where.examples=8")
    loop = experiment.loop(experiment.executor())
    updates = list(loop.exchange.measure(loop.start(), loop.start().server, (0, 1, 2), ("abs_grads",), "alive", Tally()))
    assert [update.examples for update in updates] == [8, 8, 8]
    assert len({len(part) for part in experiment.clients.train}) == 3
