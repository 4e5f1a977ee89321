"""FedAvg and FedProx of the dense network, and FedAvg under a random mask, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hydra.utils import get_method

from fedprune.pruning.mask import density
from helpers.by_hand import assert_weights, begun, two_clients
from helpers.federation import arrays, assert_same, cohort_of, data_of, played, published
from helpers.in_numpy import RATE, SIZES, averaged, dense, descend, erk, gradient, masked

DENSE = ("fedavg", "fedavg_small_dense")


@pytest.mark.parametrize("name", DENSE)
def test_fedavg_of_two_clients_by_hand(name, compose):
    """Client 0 has column 0 in class 0, client 1 columns 0, 1, 2 in classes 1, 0, 1; logits are equal, so p is (1/2, 1/2).

    At a rate of 1 client 0 goes by (1/2, -1/2) in column 0 and the biases. Client 1, the mean of three: by (-1/6, 1/6) in
    columns 0 and 2, (1/6, -1/6) in column 1, (-1/6, 1/6) in the biases. Means by 1 and 3 examples: (1/2 - 3/6) / 4 = 0 in
    column 0 and in the biases, +-3/6 / 4 = +-1/8 in the others.
    """
    experiment = two_clients(compose, name, "local.optimizer.lr=1")
    loop, state = begun(experiment, fc2_weight=[[1.0, -2.0, 3.0], [2.0, -1.0, 4.0]], fc2_bias=[1.0, 0.0])
    state, _ = loop.round(state)
    assert_weights(state, fc2_weight=[[1.0, -1.875, 2.875], [2.0, -1.125, 4.125]], fc2_bias=[1.0, 0.0])
    assert state.server.mask["fc2.weight"].all()


@pytest.mark.parametrize(("density", "parameters"), [(0.1, 2_149), (0.5, 10_881)])
def test_the_small_dense_network_has_no_more_parameters_than_a_sparse_one(density, parameters, compose):
    """Of 21,840; the numbers are worked out in the tests of the model. Nothing is ever pruned."""
    config, names = compose("+experiment=fedavg_small_dense", f"density={density}")
    net = get_method(config.model._target_)((1, 28, 28), 10, fraction=config.model.fraction)
    assert sum(value.numel() for value in net.parameters()) == parameters
    assert names["how_often"] == "never"


@pytest.mark.parametrize("name", DENSE)
def test_fedavg_is_the_mean_of_what_clients_descend_to_by_their_examples(name, compose):
    """Two of three clients in a round, three rounds."""
    experiment = published(compose, name, "federated.cohort=2")
    states, data = played(experiment, 3), data_of(experiment)
    w = arrays(states[0].server.params)
    for clock, state in enumerate(states[1:]):
        chosen = cohort_of(experiment, clock)
        w = averaged([descend(w, dense(w), *data[k]) for k in chosen], [len(data[k][1]) for k in chosen])
        assert_same(state, w, dense(w))
    assert len({cohort_of(experiment, clock) for clock in range(3)}) > 1


@pytest.mark.parametrize("mu", [0.01, 0.5])
def test_fedprox_adds_mu_times_the_way_from_what_was_sent_to_every_gradient(mu, compose):
    experiment = published(compose, "fedprox", f"local.proximal_mu={mu}", "local.epochs=3")
    states, data = played(experiment, 3), data_of(experiment)
    w = arrays(states[0].server.params)
    for state in states[1:]:
        ends = []
        for x, y in data.values():
            own = w
            for _ in range(3):
                slope = gradient(own, x, y)
                own = {name: own[name] - RATE * (slope[name] + mu * (own[name] - w[name])) for name in own}
            ends.append(own)
        w = averaged(ends, [len(y) for _, y in data.values()])
        assert_same(state, w, dense(w))
    assert experiment.config.local.proximal_mu == mu


UNIFORM = {"fc1.weight": 12, "fc2.weight": 6}  # 0.4 x 30, 0.4 x 15
BY_ERK = {"fc1.weight": 10, "fc2.weight": 8}  # 18 seats in proportion to 11 and 8: 10.4 and 7.6


@pytest.mark.parametrize(("what", "numbers"), [("weights_uniform", UNIFORM), ("weights_erk", BY_ERK)])
def test_a_random_mask_is_drawn_once_at_these_layer_densities_and_stays(what, numbers, compose):
    assert sum(numbers.values()) == 18 and erk(SIZES, 18) == BY_ERK
    experiment = published(compose, "fedavg_random_mask", f"what={what}", "density=0.4")
    states, data = played(experiment, 3), data_of(experiment)
    mask = arrays(states[1].server.mask)
    assert {name: int(alive.sum()) for name, alive in mask.items()} == numbers
    w = masked(arrays(states[0].server.params), mask)
    for state in states[1:]:
        w = averaged([descend(w, mask, *part) for part in data.values()], [len(y) for _, y in data.values()])
        assert_same(state, w, mask)
        assert density(state.server.mask) == 0.4
    other = played(published(compose, "fedavg_random_mask", f"what={what}", "density=0.4", "seed=1"), 1)[1].server.mask
    assert not all(np.array_equal(other[name].numpy(), alive) for name, alive in mask.items())
