"""FedMap: a cubic schedule of global magnitude pruning of the merged network, nested, against numpy."""

from __future__ import annotations

import numpy as np
from federation import arrays, assert_same, data_of, played, published
from in_numpy import PRUNABLE, averaged, best, dense, descend, masked

from fedprune.pruning.mask import count


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
