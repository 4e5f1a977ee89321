"""SNIP, SalientGrads, GraSP, SynFlow and fixed masks in FedAvg: the event and the round after it, of two clients by hand."""

from __future__ import annotations

import pytest
import torch

from helpers.by_hand import S, T, assert_weights, begun, two_clients

W, B = [[1.0, -2.0, 3.0], [2.0, -1.0, 4.0]], [1.0, 0.0]
"""Logits of class 1 are 1 above those of class 0 before the biases, and equal to them after: p is (1/2, 1/2) everywhere."""

X = 0.0  # dead


def after_the_first_round(compose, name: str, *overrides: str):
    """Half of the weights live; the rate is 1."""
    loop, state = begun(two_clients(compose, name, "density=0.5", "local.optimizer.lr=1", *overrides), fc2_weight=W, fc2_bias=B)
    return loop.round(state)[0]


def test_snip_takes_the_gradient_of_the_pool_where_clients_cancel_out(compose):
    """Client 0 has column 0 in class 0, client 1 columns 0, 1, 2 in classes 1, 0, 1. p - y of class 0 is (-1/2, 1/2).

    Pooled over four examples: column 0 (-1/2 + 1/2) / 4 = 0; column 1 (-1/8, 1/8); column 2 (1/8, -1/8). |w g| in eighths is
    [[0, 2, 3], [0, 1, 4]]: 4, 3 and 2 stay.

    Then the logits of columns 0, 1 and 2 are (1, 0), (-1, 0) and (4, 4). With s = 1 / (1 + e) the four gradients are
    0, class 0: (-s, s); 0, class 1: (1 - s, s - 1); 1, class 0: (s - 1, 1 - s); 2, class 1: (1/2, -1/2). A quarter of each:
    """
    state = after_the_first_round(compose, "snip_fedavg")
    assert state.server.mask["fc2.weight"].tolist() == [[False, True, True], [False, False, True]]
    step = (-S + (1 - S) + (S - 1) + 1 / 2) / 4  # of the first bias; the second goes as far the other way
    assert_weights(state, fc2_weight=[[X, -2 - (S - 1) / 4, 3 - 1 / 8], [X, X, 4 + 1 / 8]], fc2_bias=[1 - step, step])


def test_salientgrads_takes_the_mean_of_what_each_client_finds_and_nothing_cancels_out(compose):
    """The same clients. |g| of client 0 is 1/2 in column 0; of client 1, the mean of three, 1/6 in each column.

    Means by 1 and 3 examples: (1/2 + 3/6) / 4 = 1/4 in column 0, (0 + 3/6) / 4 = 1/8 in the others. |w g| in eighths:
    [[2, 2, 3], [4, 1, 4]]: both 4 and 3 stay. SNIP had nothing at all for column 0.

    Logits are then (1, 2), (1, 0) and (3, 4) + (1, 0) = (4, 4). Gradients: 0, class 0: (s - 1, 1 - s); 0, class 1: (s, -s);
    1, class 0: (-s, s); 2, class 1: (1/2, -1/2).
    """
    state = after_the_first_round(compose, "salientgrads")
    assert state.server.mask["fc2.weight"].tolist() == [[False, False, True], [True, False, True]]
    step = ((S - 1) + S - S + 1 / 2) / 4
    assert_weights(state, fc2_weight=[[X, X, 3 - 1 / 8], [2 - ((1 - S) - S) / 4, X, 4 + 1 / 8]], fc2_bias=[1 - step, step])


def test_grasp_keeps_what_the_mean_of_the_clients_own_curvature_speaks_for(compose):
    """The Hessian of one example in its column is diag(p) - p p' = 1/4 [[1, -1], [-1, 1]]: it takes (a, -a) to (a, -a) / 2.

    Client 0, column 0: g = (-1/2, 1/2), H g = (-1/4, 1/4). Client 1: a third of the Hessian in each column, and g = (1/6, -1/6)
    in 0 and 2 (class 1), (-1/6, 1/6) in 1 (class 0): H g = +-(1/36, -1/36). Means by 1 and 3 examples: column 0
    (-1/4 + 3/36) / 4 = -2/48, column 1 (-3/36) / 4 = -1/48, column 2 1/48, and the opposite in the second row. w (H g) in
    48ths: [[-2, 2, 3], [4, -1, -4]]: 4, 3 and 2 stay. (Their size is no matter, or -4 would. Of the pool, column 0 has no
    gradient.)

    Logits are then (1, 2), (-1, 0) and (4, 0); with t = 1 / (1 + e^4) the gradients are 0, class 0: (s - 1, 1 - s); 0, class 1:
    (s, -s); 1, class 0: (s - 1, 1 - s); 2, class 1: (1 - t, t - 1).
    """
    state = after_the_first_round(compose, "grasp_fedavg")
    assert state.server.mask["fc2.weight"].tolist() == [[False, True, True], [True, False, False]]
    step = ((S - 1) + S + (S - 1) + (1 - T)) / 4
    assert_weights(
        state,
        fc2_weight=[[X, -2 - (S - 1) / 4, 3 - (1 - T) / 4], [2 - ((1 - S) - S) / 4, X, X]],
        fc2_bias=[1 - step, step],
    )


def test_synflow_scores_again_after_each_step_and_asks_nobody(compose):
    """One feature; two hidden units of |w| = 2, 4 and biases 2, 0; outputs [[4, 1], [-1, 2]]. Of six weights two are to stay,
    in two steps: 6 x 3^(-1/2) = 3.46, so 3, then 2.

    Units put out 2 + 2 = 4 and 4. Scores: first layer |w| x the sum of its column, 2 x 5 = 10 and 4 x 3 = 12; second |w| x what
    is put out, [[16, 4], [4, 8]]. 16, 12 and 10 stay. Nothing leads on from the second unit now: 4 x 0 = 0, and the first has
    2 x 4 = 8; 16 and 8 stay. In one step 16 and 12 would have, and no path.

    All examples are the feature 0, of class 0 (client 0) and class 1 (three of client 1). The first unit puts out 2 and the
    logits are (8, 8) with biases (0, 8). Mean of p - y: (-1/2 + 3/2) / 4 = 1/4, and -1/4. Back at the unit: 1/4 x 4 = 1. The
    rate is 0.1.
    """
    examples = (((None, 0),), ((None, 1),) * 3)
    overrides = ("density=0.333333333333", "how_often.times=2", "local.optimizer.lr=0.1")
    experiment = two_clients(compose, "synflow_fedavg", *overrides, examples=examples, hidden=2)
    loop, state = begun(
        experiment, fc1_weight=[[2.0], [-4.0]], fc1_bias=[2.0, 0.0], fc2_weight=[[4.0, 1.0], [-1.0, 2.0]], fc2_bias=[0.0, 8.0]
    )
    state, _ = loop.round(state)
    assert state.server.mask["fc1.weight"].tolist() == [[True], [False]]
    assert state.server.mask["fc2.weight"].tolist() == [[True, False], [False, False]]
    assert_weights(
        state,
        fc1_weight=[[2.0], [X]], fc1_bias=[2 - 0.1 * 1, 0.0],
        fc2_weight=[[4 - 0.1 * 2 / 4, X], [X, X]], fc2_bias=[-0.1 / 4, 8 + 0.1 / 4],
    )  # fmt: skip


def test_a_magnitude_mask_keeps_the_largest_initial_weights_and_asks_nobody(compose):
    """Of six weights two stay, 3 and 4, both in column 2; a single layer gets the whole density, by ERK too.

    Logits of columns 0 and 1 are then (1, 0), the biases alone, and of column 2 (3 + 1, 4 + 0) = (4, 4). Gradients: 0, class 0:
    (-s, s); 0, class 1: (1 - s, s - 1); 1, class 0: (-s, s); 2, class 1: (1/2, -1/2). A quarter of each:
    """
    words = ("density=0.333333333333", "local.optimizer.lr=1")
    loop, state = begun(two_clients(compose, "fedavg_magnitude_mask", *words), fc2_weight=W, fc2_bias=B)
    state, _ = loop.round(state)
    assert state.server.mask["fc2.weight"].tolist() == [[False, False, True], [False, False, True]]
    step = (-S + (1 - S) - S + 1 / 2) / 4
    assert_weights(state, fc2_weight=[[X, X, 3 - 1 / 8], [X, X, 4 + 1 / 8]], fc2_bias=[1 - step, step])
    after, _ = loop.round(state)
    assert torch.equal(after.server.mask["fc2.weight"], state.server.mask["fc2.weight"])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_under_a_random_mask_only_what_lives_moves_whatever_was_drawn(seed, compose):
    """From zeros, with column 0 in class 0 at client 0, columns 1 and 2 in classes 0 and 1 at client 1. p is (1/2, 1/2), and
    the mean over three examples (-1/6, 1/6) in columns 0 and 1, (1/6, -1/6) in column 2, (-1/6, 1/6) in the biases. At a rate
    of 6 every step is 1. No example is certain after it, so whatever lives goes on in the next round, and nothing else.
    """
    examples = (((0, 0),), ((1, 0), (2, 1)))
    words = ("density=0.5", "local.optimizer.lr=6", f"seed={seed}")
    loop, state = begun(
        two_clients(compose, "fedavg_random_mask", *words, examples=examples), fc2_weight=[[0.0] * 3] * 2, fc2_bias=[0.0, 0.0]
    )
    first, _ = loop.round(state)
    mask = first.server.mask["fc2.weight"]
    assert mask.sum() == 3
    whole = [[1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]]
    living = [[value * alive for value, alive in zip(*pair, strict=True)] for pair in zip(whole, mask.tolist(), strict=True)]
    assert_weights(first, fc2_weight=living, fc2_bias=[1.0, -1.0])
    second, _ = loop.round(first)
    assert second.server.mask["fc2.weight"].equal(mask)
    assert not second.server.params["fc2.weight"][~mask].any()
    assert (second.server.params["fc2.weight"] != first.server.params["fc2.weight"])[mask].all()
