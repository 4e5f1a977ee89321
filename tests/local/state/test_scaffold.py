"""Controls of a client: what they are after a round, by hand; how far momentum goes; which optimizers are refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from fedprune.errors import Incompatible
from fedprune.local.state.scaffold import Controls, effective, reach, received, refuse, renewed
from fedprune.types import ClientState, Job, Subnet


def one(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([value])}


def test_a_renewed_control_by_hand():
    # c_k = 1, c = 0.5; from w = 3 to y = 2 in two steps at the rate 0.25: c_k+ = 1 - 0.5 + (3 - 2) / (2 x 0.25) = 2.5
    controls = Controls(one(0.5), one(1.0))
    assert renewed(controls, one(3.0), one(2.0), {"w": 0.5})["w"].tolist() == [2.5]
    assert renewed(controls, one(3.0), one(3.0), {"w": 0.0})["w"].tolist() == [1.0]  # no step
    assert renewed(controls, one(3.0), one(3.0), {})["w"].tolist() == [1.0]  # a fixed layer


def test_the_answer_is_the_change_and_what_is_kept_the_new_control():
    controls = Controls(one(0.5), one(1.0))
    assert controls.correction()["w"].tolist() == [-0.5]
    change, kept = controls.change_and_next(one(3.0), one(2.0), {"w": 0.5})
    assert change["w"].tolist() == [1.5] and kept["w"].tolist() == [2.5]
    assert Controls().change_and_next(one(3.0), one(2.0), {}) == ({}, {}) and Controls().correction() == {}


def test_controls_of_a_job_are_zero_before_the_first_round_and_where_the_mask_is_dead():
    net = Subnet({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([True, False])})
    c = {"w": torch.tensor([3.0, 0.0])}
    assert received(Job(0, 0, 0, 0, net, control=c)).c_k["w"].tolist() == [0.0, 0.0]
    kept = ClientState(control={"w": torch.tensor([5.0, 6.0])}, optimizer={0: {"momentum_buffer": torch.ones(2)}})
    controls = received(Job(0, 0, 0, 0, net, control=c, kept=kept))
    assert controls.c_k["w"].tolist() == [5.0, 0.0] and controls.c["w"].tolist() == [3.0, 0.0]
    assert kept.control["w"].tolist() == [5.0, 6.0]
    assert received(Job(0, 0, 0, 0, net, kept=kept)) == Controls()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_reach_is_how_far_sgd_goes_under_a_gradient_of_one(momentum, steps):
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    net[1].bias.requires_grad_(False)
    groups = [{"params": net[0].parameters()}, {"params": net[1].parameters(), "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=momentum)
    before = {name: float(p.detach()) for name, p in net.named_parameters()}
    for _ in range(steps):
        for p in net.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        optimizer.step()
    found = reach(net, optimizer, steps)
    assert list(found) == ["0.weight", "0.bias", "1.weight"]
    moved = {name: before[name] - float(net.get_parameter(name).detach()) for name in found}
    assert found == pytest.approx(moved, rel=1e-5)
    assert effective(steps, 0.0) == steps


def test_effective_steps_by_hand():
    # Three steps at momentum 0.5: the first gradient acts 1 + 0.5 + 0.25, the second 1 + 0.5, the third once: 4.25.
    assert effective(3, 0.5) == pytest.approx(4.25)
    assert effective(0, 0.5) == 0.0
    np.testing.assert_allclose(effective(40, 0.9), sum((1 - 0.9 ** (41 - t)) / 0.1 for t in range(1, 41)))


SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize(
    ("optimizer", "kept", "message"),
    [
        (partial(torch.optim.Adam, lr=0.1), False, r"Adam takes others; choose local/optimizer=sgd or federated=fedavg"),
        (partial(SGD, momentum=0.9, nesterov=True), False, r"set local\.optimizer\.nesterov=false"),
        (partial(SGD, momentum=0.9, dampening=0.1), False, r"set local\.optimizer\.dampening=0"),
        (partial(SGD, maximize=True), False, r"set local\.optimizer\.maximize=false"),
        (partial(SGD, momentum=1.0), False, r"local\.optimizer\.momentum=1\.0 has to be"),
        (partial(SGD, momentum=0.9), True, r"federated\.optimizer_state=fresh or local\.optimizer\.momentum=0"),
    ],
)
def test_other_optimizers_are_refused_by_name(optimizer, kept, message):
    with pytest.raises(Incompatible, match=message):
        refuse(optimizer(nn.Linear(1, 1).parameters()), kept)


def test_sgd_is_not_refused():
    for optimizer, kept in ((SGD, True), (partial(SGD, momentum=0.9, weight_decay=0.1), False)):
        refuse(optimizer(nn.Linear(1, 1).parameters()), kept)
