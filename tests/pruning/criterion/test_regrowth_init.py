"""What grown weights start from: the last values by hand, and over the rounds of a run against a record kept beside it."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from fedprune.pruning.criterion.regrowth_init import last_values, of_the_dead, started
from fedprune.types import Subnet

EXCHANGES = ("how_often=dynamic", "how_often.every=1", "how_often.swap=0.4", "when.start=0", "when.stop=1", "rounds=6")


def test_by_hand():
    # Entries 0 and 1 live; 2 died at -0.5, 3 has never lived. Then 1 dies and 2 is grown.
    before = Subnet(
        {"w": torch.tensor([1.0, 2.0, 0.0, 0.0]), "b": torch.tensor([9.0])}, {"w": torch.tensor([True, True, False, False])}
    )
    last = last_values(before, {"w": torch.tensor([0.0, 0.0, -0.5, 0.0])})
    assert last["w"].tolist() == [1.0, 2.0, -0.5, 0.0]
    after = Subnet(
        {"w": torch.tensor([1.0, 0.0, 0.0, 0.0]), "b": before.params["b"]}, {"w": torch.tensor([True, False, True, False])}
    )
    assert of_the_dead(last, after.mask)["w"].tolist() == [0.0, 2.0, 0.0, 0.0]
    params = started(after, {"w": torch.tensor([False, False, True, False])}, last)
    assert params["w"].tolist() == [1.0, 0.0, -0.5, 0.0]
    assert params["b"].tolist() == [9.0]


def test_nothing_has_died_before_the_first_event():
    subnet = Subnet({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([True, False])})
    assert last_values(subnet, {})["w"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("criterion", ["set", "rigl"])
@pytest.mark.parametrize("rule", ["zero", "server"])
def test_over_the_rounds_of_a_run_what_grows_starts_from_where_it_died(rule, criterion, tiny, play):
    """By a record of what each entry was when it was last seen alive."""
    experiment = tiny(*EXCHANGES, f"criterion={criterion}", f"federated.regrown={rule}")
    before = experiment.loop(experiment.executor()).start()
    seen = {name: before.server.params[name].numpy().copy() for name in before.server.mask}
    regrown = 0
    for after, _ in play(experiment):
        for name, record in seen.items():
            was, now = before.server.mask[name].numpy(), after.server.mask[name].numpy()
            record[was] = before.server.params[name].numpy()[was]
            if after.events > before.events:  # the ticket is what this round's training started from
                start = after.ticket[name].numpy()
                grown = now & ~was
                np.testing.assert_array_equal(start[grown], record[grown] if rule == "server" else 0)
                assert not start[~now].any() and not after.server.params[name].numpy()[~now].any()
                regrown += np.count_nonzero(start[grown])
            if rule == "server":
                np.testing.assert_array_equal(after.stale[name].numpy(), np.where(now, 0, record))
        assert rule == "server" or after.stale == {}
        before = after
    assert bool(regrown) is (rule == "server")


def test_a_rewind_to_other_weights_forgets_what_the_dead_were(tiny, play):
    words = ("how_often=one_shot", "federated.regrown=server", "when.start=0", "when.stop=0.5")
    assert play(tiny(*words))[-1][0].stale
    assert play(tiny(*words, "rewind=init"))[-1][0].stale == {}


@pytest.mark.parametrize(("schedule", "said"), [(("how_often=one_shot",), True), (EXCHANGES, False)])
def test_where_nothing_is_grown_it_is_said_that_the_rule_changes_nothing(schedule, said, tiny, caplog):
    with caplog.at_level(logging.WARNING):
        tiny(*schedule, "criterion=set", "federated.regrown=server")
    assert ("federated.regrown=server changes nothing" in caplog.text) is said
