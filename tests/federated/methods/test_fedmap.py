"""FedMap: a cubic schedule of global magnitude pruning of the merged network, nested, against numpy."""

from __future__ import annotations

import numpy as np

from fedprune.pruning.mask import count
from helpers.by_hand import S, assert_weights, begun, two_clients
from helpers.federation import arrays, assert_same, data_of, played, published
from helpers.in_numpy import PRUNABLE, averaged, best, dense, descend, masked


def test_masks_nest_along_the_cubic_curve_and_are_those_of_numpy(compose):
    """Ten rounds, events after 1, 3 and 5 of them. With t = 1/3, 2/3, 1 and d = 0.2, d + (1 - d)(1 - t)^3 is 0.2 + 0.8 x 8/27 =
    0.43704, 0.2 + 0.8/27 = 0.22963 and 0.2: 19.67, 10.33 and 9 of 45, so 20, 10 and 9."""
    counts = {1: 20, 3: 10, 5: 9}
    experiment = published(compose, "fedmap", "rounds=10", "density=0.2", "how_often.every=2")
    assert [event.round for event in experiment.plan.events] == [*counts]
    states, data = played(experiment, 7), data_of(experiment)
    w = arrays(states[0].server.params)
    mask = dense(w)
    for clock, state in enumerate(states[1:]):
        if clock in counts:
            kept = best({name: np.where(mask[name], np.abs(w[name]), -1.0) for name in PRUNABLE}, counts[clock])
            assert not any((kept[name] & ~mask[name]).any() for name in PRUNABLE)
            mask, w = kept, masked(w, kept)
        w = averaged([descend(w, mask, *part) for part in data.values()], [len(y) for _, y in data.values()])
        assert_same(state, w, mask)
    assert [count(state.server.mask) for state in states[1:]] == [45, 20, 20, 10, 10, 9, 9]


def test_two_events_of_two_clients_by_hand(compose):
    """Half of six weights, then a third; events after one and two of ten rounds. With t = 1/2 and 1 and d = 1/3, d + (1 - d)
    (1 - t)^3 is 5/12 and 1/3: 2.5 of 6, so 3, and 2. The rate is 4.

    Client 0 has column 0 in class 0, client 1 columns 0, 1, 2 in classes 1, 0, 1. The first round is dense, and p is (1/2,
    1/2). Pooled: nothing in column 0, (-1/8, 1/8) in column 1, (1/8, -1/8) in column 2, nothing in the biases. So [[1, -2, 3],
    [2, -1, 4]] becomes [[1, -1.5, 2.5], [2, -1.5, 4.5]]. 4.5, 2.5 and 2 stay; before, 4, 3 and the -2 would have.

    Now the logits of columns 0, 1, 2 are (1, 2), (1, 0), (3.5, 4.5), and p - y, with s = 1 / (1 + e): 0, class 0: (s - 1, 1 -
    s); 0, class 1: (s, -s); 1, class 0: (-s, s); 2, class 1: (s, -s). A quarter of each, times 4: 2 becomes 2 - (1 - 2 s) =
    1.54, 2.5 becomes 2.5 - s = 2.23, 4.5 becomes 4.5 + s = 4.77, and the first bias goes down by 2 s - 1. So 2 is the one that
    goes.
    """
    words = ("rounds=10", "density=0.333333333333", "how_often.every=1", "when.start=0.1", "when.stop=0.3")
    experiment = two_clients(compose, "fedmap", *words, "local.optimizer.lr=4")
    assert [event.round for event in experiment.plan.events] == [1, 2]
    loop, state = begun(experiment, fc2_weight=[[1.0, -2.0, 3.0], [2.0, -1.0, 4.0]], fc2_bias=[1.0, 0.0])
    first, _ = loop.round(state)
    assert first.server.mask["fc2.weight"].all()
    assert_weights(first, fc2_weight=[[1.0, -1.5, 2.5], [2.0, -1.5, 4.5]], fc2_bias=[1.0, 0.0])
    second, _ = loop.round(first)
    assert second.server.mask["fc2.weight"].tolist() == [[False, False, True], [True, False, True]]
    weight = [[0.0, 0.0, 2.5 - S], [1 + 2 * S, 0.0, 4.5 + S]]
    assert_weights(second, fc2_weight=weight, fc2_bias=[2 - 2 * S, 2 * S - 1])
    third, _ = loop.round(second)
    assert third.server.mask["fc2.weight"].tolist() == [[False, False, True], [False, False, True]]
    assert not third.server.params["fc2.weight"][~third.server.mask["fc2.weight"]].any()
