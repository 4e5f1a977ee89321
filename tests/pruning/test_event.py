"""One prune event on a handful of weights: who is dropped, who is grown, and what was asked of whom."""

import pytest
import torch

from fedprune.pruning.criterion import Compensated, Criterion, gradient, magnitude, random, snip
from fedprune.pruning.criterion.compensation import optimal_brain_surgeon
from fedprune.pruning.event import Axes, prune
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.types import Params, PruneEvent, Subnet

WHAT = What(weights, globally, names=("w",))


def subnet(values: list[float], alive: list[int]) -> Subnet:
    return Subnet({"w": torch.tensor(values), "bias": torch.tensor([7.0])}, {"w": torch.tensor(alive, dtype=torch.bool)})


class Measured:
    """Evidence at hand, and a record of what was asked about which subnet."""

    def __init__(self, **evidence: object):
        self.evidence, self.asked = evidence, []

    def __call__(self, names: tuple[str, ...], at: Subnet, about: str) -> dict:
        self.asked.append((names, at.params["w"].tolist(), about))
        found = {"params": {name: at.params[name] for name in at.mask}} | self.evidence
        return {name: found[name] for name in names}


def alive(pruned: Subnet) -> list[int]:
    return pruned.mask["w"].int().tolist()


def grads(*values: float) -> Params:
    return {"w": torch.tensor(values)}


def test_a_drop_keeps_the_best_and_sets_the_rest_to_zero():
    measured = Measured()
    before = subnet([4.0, -3.0, 2.0, -1.0], [1, 1, 1, 1])
    after = prune(before, PruneEvent(0, 0.5), Axes(WHAT, Criterion(magnitude)), measured)
    assert alive(after) == [1, 1, 0, 0]
    assert after.params["w"].tolist() == [4.0, -3.0, 0.0, 0.0]
    assert after.params["bias"].tolist() == [7.0]
    assert measured.asked == [(("params",), [4.0, -3.0, 2.0, -1.0], "alive")]


def test_a_drop_asks_for_the_evidence_that_its_formula_names():
    # |w g|: 0.4, 6, 2, 5: the second and the last, not the largest weight.
    measured = Measured(grads=grads(0.1, 2.0, 1.0, 5.0))
    after = prune(subnet([4.0, -3.0, 2.0, -1.0], [1, 1, 1, 1]), PruneEvent(0, 0.5), Axes(WHAT, Criterion(snip)), measured)
    assert alive(after) == [0, 1, 0, 1]
    assert [(names, about) for names, _, about in measured.asked] == [(("params", "grads"), "alive")]


def test_survivors_make_up_for_what_is_dropped_and_the_dead_stay_at_zero():
    survivors = []

    class About(Measured):
        def __call__(self, names, at, about, *surviving):
            survivors.append([mask["w"].tolist() for mask in surviving])
            return super().__call__(names, at, about)

    measured = About(fisher_compensation=grads(0.5, -1.0, 9.0, 9.0))
    before = subnet([4.0, -3.0, 2.0, 0.0], [1, 1, 1, 0])
    after = prune(before, PruneEvent(0, 0.5), Axes(WHAT, Compensated(magnitude, compensate=optimal_brain_surgeon)), measured)
    assert alive(after) == [1, 1, 0, 0]
    assert after.params["w"].tolist() == [4.5, -4.0, 0.0, 0.0]
    assert after.params["bias"].tolist() == [7.0]
    # Both times it is asked about the network before the drop; the second time, also with who survives it.
    assert measured.asked == [
        (("params",), [4.0, -3.0, 2.0, 0.0], "alive"),
        (("fisher_compensation",), [4.0, -3.0, 2.0, 0.0], "alive"),
    ]
    assert survivors == [[], [[True, True, False, False]]]


def test_what_grows_after_the_survivors_have_moved_starts_from_zero():
    measured = Measured(fisher_compensation=grads(0.5, 9.0, 9.0, 9.0), grads=grads(0.0, 1.0, 2.0, 3.0))
    measured_about = lambda names, at, about, surviving=None: measured(names, at, about)  # noqa: E731
    criterion = Compensated(magnitude, gradient, compensate=optimal_brain_surgeon)
    after = prune(subnet([5.0, 1.0, 0.0, 0.0], [1, 1, 0, 0]), PruneEvent(1, 0.5, 0.5), Axes(WHAT, criterion), measured_about)
    assert alive(after) == [1, 0, 0, 1]
    assert after.params["w"].tolist() == [5.5, 0.0, 0.0, 0.0]
    assert measured.asked[-1] == (("grads",), [5.5, 0.0, 0.0, 0.0], "dead")


def test_an_exchange_drops_the_smallest_and_grows_the_steepest_from_zero():
    # 4 of 8 alive, swap 0.5: 2 of them go (|1| and |-2|), then 2 grow by |g| among the 6 dead: 9 at index 5 and 8 at index 3.
    # Index 0 has the greatest gradient of all, but lives; index 1 was dropped just now and could be grown again, but is not.
    measured = Measured(grads=grads(99.0, 0.5, 0.1, 8.0, 1.0, -9.0, 2.0, 3.0))
    before = subnet([5.0, 1.0, -2.0, 0.0, 6.0, 0.0, 0.0, 0.0], [1, 1, 1, 0, 1, 0, 0, 0])
    after = prune(before, PruneEvent(3, 0.5, swap=0.5), Axes(WHAT, Criterion(magnitude, gradient)), measured)
    assert alive(after) == [1, 0, 0, 1, 1, 1, 0, 0]
    assert after.params["w"].tolist() == [5.0, 0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0]
    # What to grow is asked of the network as it is after the drop.
    assert measured.asked == [
        (("params",), [5.0, 1.0, -2.0, 0.0, 6.0, 0.0, 0.0, 0.0], "alive"),
        (("grads",), [5.0, 0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0], "dead"),
    ]


def test_what_was_just_dropped_may_grow_again_but_from_zero():
    measured = Measured(grads=grads(0.0, 9.0, 0.0, 0.0))
    after = prune(
        subnet([5.0, 1.0, 0.0, 0.0], [1, 1, 0, 0]),
        PruneEvent(1, 0.5, 0.5),
        Axes(WHAT, Criterion(magnitude, gradient)),
        measured,
    )
    assert alive(after) == [1, 1, 0, 0]
    assert after.params["w"].tolist() == [5.0, 0.0, 0.0, 0.0]


def test_what_grows_starts_from_its_last_value_if_there_is_one():
    # As above: 1 and -2 go, indices 3 and 5 grow, and now start from what they were. The dead that are not grown stay at zero,
    # survivors keep their value, and what was dropped just now and grows again starts from the value it had.
    before = subnet([5.0, 1.0, -2.0, 0.0, 6.0, 0.0, 0.0, 0.0], [1, 1, 1, 0, 1, 0, 0, 0])
    last = {"w": torch.tensor([5.0, 1.0, -2.0, 0.3, 6.0, -0.5, 0.7, 0.0])}
    axes, event = Axes(WHAT, Criterion(magnitude, gradient)), PruneEvent(3, 0.5, swap=0.5)
    after = prune(before, event, axes, Measured(grads=grads(99.0, 0.5, 0.1, 8.0, 1.0, -9.0, 2.0, 3.0)), last)
    assert after.params["w"].tolist() == pytest.approx([5.0, 0.0, 0.0, 0.3, 6.0, -0.5, 0.0, 0.0])
    assert after.params["bias"].tolist() == [7.0]
    again = prune(before, event, axes, Measured(grads=grads(0.0, 9.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0)), last)
    assert again.params["w"].tolist() == pytest.approx([5.0, 1.0, 0.0, 0.3, 6.0, 0.0, 0.0, 0.0])
    assert before.params["w"].tolist() == [5.0, 1.0, -2.0, 0.0, 6.0, 0.0, 0.0, 0.0]


def test_an_event_without_a_swap_never_grows_though_it_could():
    measured = Measured(grads=grads(0.0, 0.0, 9.0, 9.0))
    after = prune(
        subnet([5.0, 1.0, 0.0, 0.0], [1, 1, 0, 0]), PruneEvent(1, 0.5), Axes(WHAT, Criterion(magnitude, gradient)), measured
    )
    assert alive(after) == [1, 1, 0, 0]
    assert after.params["w"].tolist() == [5.0, 1.0, 0.0, 0.0]
    assert len(measured.asked) == 1


@pytest.mark.parametrize("seed", range(5))
def test_exchanges_keep_the_density_and_the_invariant_of_a_subnet(seed):
    torch.manual_seed(seed)
    net = subnet(torch.randn(40).tolist(), [1] * 40)
    axes = Axes(WHAT, Criterion(magnitude, random))
    for step, swap in enumerate((0.0, 0.3, 0.1, 0.5)):
        before, copy = net, net.params["w"].clone()
        net = prune(net, PruneEvent(step, 0.35, swap), axes, Measured(generator=lambda _: torch.Generator().manual_seed(seed)))
        assert sum(alive(net)) == 14
        assert torch.equal(net.params["w"], net.params["w"] * net.mask["w"])
        assert torch.equal(before.params["w"], copy)  # the subnet that was pruned is as it was
        grown = net.mask["w"] & ~before.mask["w"]
        assert not net.params["w"][grown].any()
