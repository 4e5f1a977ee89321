"""A prune event on a client: what it looks at, what it leaves, and what it goes back to; by hand."""

from __future__ import annotations

import pytest
import torch

from fedprune.errors import ConfigError
from fedprune.federated.client.prune_event import Looks, OnClient
from fedprune.federated.masks import PersonalMask, Voted
from fedprune.pruning.criterion import Criterion, gradient, large_final_same_sign, magnitude
from fedprune.pruning.event import Axes
from fedprune.pruning.gate import Accurate, Moving, Settled
from fedprune.pruning.rewind import Early, Keep, RandomReinit
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.types import Job, PruneEvent, Subnet

NOW = {"w": torch.tensor([4.0, -3.0, 2.0, 0.0]), "b": torch.tensor([7.0])}
MASK = {"w": torch.tensor([True, True, True, False])}
BEGUN = {"w": torch.tensor([-1.0, -2.0, -3.0, -4.0]), "b": torch.tensor([0.5])}
WHAT = What(weights, globally, names=("w",))


def fresh(number: int):
    return BEGUN if number == 0 else {"w": torch.full((4,), 100.0 + number), "b": torch.tensor([float(number)])}


def measure(names, subnet, about, surviving=None):
    found = {"params": subnet.params | {}, "init_params": BEGUN, "grads": {"w": torch.tensor([0.0, 1.0, 2.0, 9.0])}}
    return {name: {"w": found[name]["w"]} for name in names}


def looks(validation=None, first=None) -> Looks:
    return Looks(measure, validation or (lambda subnet: pytest.fail("nobody has to ask")), first)


def carried_out(event: PruneEvent, seen: Looks, gate=None, rewind=None, criterion=None, events: int = 0, client: int = 3):
    on_client = OnClient(Axes(WHAT, criterion or Criterion(magnitude)), rewind or Keep(), gate, "start", fresh)
    return on_client(Job(client, 5, 5, 0, Subnet(NOW, MASK), event=event, events=events), Subnet(NOW, MASK), seen)


def test_without_a_gate_it_happens_and_keeps_the_weights():
    # Half of 4 entries: of the living 4, -3, 2 the two largest.
    pruned = carried_out(PruneEvent(1, 0.5), looks())
    assert pruned.subnet.mask["w"].tolist() == [True, True, False, False]
    assert pruned.subnet.params["w"].tolist() == [4.0, -3.0, 0.0, 0.0]
    assert pruned.subnet.params["b"].tolist() == [7.0]
    assert not pruned.replaced
    assert NOW["w"].tolist() == [4.0, -3.0, 2.0, 0.0] and MASK["w"].tolist() == [True, True, True, False]


@pytest.mark.parametrize(("accuracy", "happens"), [(0.49, False), (0.5, True), (0.9, True)])
def test_a_gate_on_accuracy_asks_about_the_network_before_it_is_pruned(accuracy, happens):
    asked = []
    pruned = carried_out(
        PruneEvent(1, 0.25),
        looks(lambda subnet: asked.append(subnet.params["w"].tolist()) or {"val_accuracy": accuracy}),
        Accurate(0.5),
    )
    assert (pruned is not None) == happens
    assert asked == [[4.0, -3.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("gate", "happens"),
    # One of three living is kept: after the first epoch -5, then 4; the two masks differ in two entries, 2/3 of the living.
    [(Settled(0.6), False), (Settled(0.7), True), (Moving(0.6, 0.0), True), (Moving(0.7, 0.0), False)],
)
def test_a_gate_on_the_shift_compares_what_the_first_epoch_would_have_led_to(gate, happens):
    first = {"w": torch.tensor([4.0, -5.0, 2.0, 0.0]), "b": torch.tensor([7.0])}
    assert (carried_out(PruneEvent(1, 0.25), looks(lambda subnet: {"val_accuracy": 1.0}, first), gate) is not None) == happens


def test_it_goes_back_to_the_weights_of_the_start_under_its_own_mask():
    pruned = carried_out(PruneEvent(1, 0.5), looks(), rewind=Early(0))
    assert pruned.subnet.params["w"].tolist() == [-1.0, -2.0, 0.0, 0.0]
    assert pruned.subnet.params["b"].tolist() == [0.5]
    assert pruned.replaced
    assert pruned.subnet.params["w"].data_ptr() != BEGUN["w"].data_ptr()


def test_a_ticket_is_the_start_of_a_run_that_began_from_it():
    ticket = Subnet({"w": torch.tensor([1.0, 1, 1, 0]), "b": torch.tensor([2.0])}, MASK)
    on_client = OnClient(Axes(WHAT, Criterion(magnitude)), Early(0), None, "start", fresh, ticket)
    pruned = on_client(Job(0, 5, 5, 0, Subnet(NOW, MASK), event=PruneEvent(1, 0.25)), Subnet(NOW, MASK), looks())
    assert pruned.subnet.params["w"].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_other_weights_are_others_at_every_event_and_the_same_for_all_clients():
    first, second, other = (
        carried_out(PruneEvent(1, 0.25), looks(), rewind=RandomReinit(), events=events, client=client).subnet.params["w"]
        for events, client in ((0, 3), (1, 3), (0, 4))
    )
    assert first.tolist() == [101.0, 0.0, 0.0, 0.0]  # the initialisation after the run's own
    assert second.tolist() == [102.0, 0.0, 0.0, 0.0]
    assert torch.equal(first, other)


def test_an_exchange_grows_only_what_is_dead():
    # 3 of 4 live; a third of them goes: 2 of 4 stay (4 and -3), and of the dead the larger gradient comes in: 9 at the last.
    pruned = carried_out(PruneEvent(1, 0.75, swap=1 / 3), looks(), criterion=Criterion(magnitude, gradient))
    assert pruned.subnet.mask["w"].tolist() == [True, True, False, True]
    assert pruned.subnet.params["w"].tolist() == [4.0, -3.0, 0.0, 0.0]  # from zero


def test_its_criterion_may_look_back_to_the_start_of_the_run():
    # Signs at the start are all negative: -3 alone has kept its own.
    pruned = carried_out(PruneEvent(1, 0.25), looks(), criterion=Criterion(large_final_same_sign))
    assert pruned.subnet.mask["w"].tolist() == [False, True, False, False]


@pytest.mark.parametrize("whose", [PersonalMask, lambda at: Voted(None, at)])
def test_there_are_two_moments(whose):
    for moment in ("start", "end"):
        assert whose(at=moment).at == moment
    with pytest.raises(ConfigError, match="whose.at=middle: choose start or end"):
        whose(at="middle")
