"""The Fisher matrix in blocks, its inverse, how survivors make up for what is removed: by hand, and against dense algebra."""

import pytest
import torch
from torch import nn

from fedprune.pruning.criterion.curvature import woodfisher
from fedprune.pruning.evidence import fisher as fisher_blocks
from fedprune.pruning.evidence.fisher import fisher_compensation, fisher_inverse_diag
from helpers.measuring import (
    SGD,
    Squares,
    assert_no_trace,
    batchnorm_dropout,
    cnn,
    data,
    elsewhere,
    living,
    losses,
    mlp,
    prunable,
)


def test_the_inverse_fisher_by_hand():
    # One example with g = (1, 2) in one block (padding has no gradient): F = lambda I + [1 2; 2 4]. Its inverse's diagonal is
    # (lambda + 4, lambda + 1) / (lambda (lambda + 5)), by the adjugate of a 2x2 matrix.
    module = Squares(nn.Linear(2, 1, bias=False), SGD)
    params = {"weight": torch.tensor([[1.0, 1.0]])}
    batches = [(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0]]))]  # residual 1 + 2 - 2 = 1, so g = x
    damping = fisher_blocks.DAMPING
    expected = torch.tensor([[damping + 4, damping + 1]], dtype=torch.float64) / (damping * (damping + 5))
    found = fisher_inverse_diag(module, params, living(params, ("weight",)), batches)["weight"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("alive", "expected"), [(True, 0.25), (False, 1e4)])
def test_a_living_weight_of_zero_has_a_curvature_of_its_own(alive, expected):
    # y = v h with h = 2, v = 0 and the target 1: g = (0 - 1) 2 = -2, F = 4 + 1e-4, F^-1 = .25. Dead, it is 1 / 1e-4.
    module, params = Squares(nn.Linear(1, 1, bias=False), SGD), {"weight": torch.tensor([[0.0]])}
    batches = [(torch.tensor([[2.0]]), torch.tensor([[1.0]]))]
    found = fisher_inverse_diag(module, params, {"weight": torch.tensor([[alive]])}, batches)["weight"]
    assert found.item() == pytest.approx(expected, rel=1e-4)


def dense(monkeypatch, make_net, block: int = 4):
    """A network with one dead entry, and each block's damped F by autograd, one example after the other: {name: [F, ...]}."""
    monkeypatch.setattr(fisher_blocks, "BLOCK", block)
    monkeypatch.setattr(fisher_blocks, "DAMPING", 0.01)
    module, params = elsewhere(make_net)
    names, (x, y) = prunable(module.net), data(10)
    params[names[0]].view(-1)[2] = 0
    each = [
        torch.func.grad(losses(module, params, (x[i : i + 1], y[i : i + 1])))({n: params[n] for n in names}) for i in range(10)
    ]
    fisher = {}
    for name in names:
        g = torch.stack([(gradient[name] * (params[name] != 0)).flatten() for gradient in each]).double()
        fisher[name] = [some.T @ some / 10 + 0.01 * torch.eye(some.shape[1]).double() for some in g.split(block, 1)]
    return module, params, names, (x, y), fisher


def test_the_inverse_fisher_is_the_inverse_of_each_damped_block(monkeypatch):
    module, params, names, (x, y), fisher = dense(monkeypatch, cnn)
    found = fisher_inverse_diag(module, params, living(params, names), zip(x.split(6), y.split(6), strict=True))
    for name in names:
        expected = torch.cat([block.inverse().diagonal() for block in fisher[name]])
        torch.testing.assert_close(found[name].flatten().double(), expected, rtol=1e-4, atol=1e-5)
    assert float(found[names[0]].view(-1)[2]) == pytest.approx(100)  # dead, so in no block: 1 / damping


# --- compensation -----------------------------------------------------------------------------------------------------------


def one_example(monkeypatch) -> tuple[Squares, dict, list]:
    """F = I + g g' with g = (1, 2, 2), at w = (3, 1, 2): x = g, and the residual is 3 + 2 + 4 - 8 = 1."""
    monkeypatch.setattr(fisher_blocks, "DAMPING", 1.0)
    batches = [(torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[8.0]]))]
    return Squares(nn.Linear(3, 1, bias=False), SGD), {"weight": torch.tensor([[3.0, 1.0, 2.0]])}, batches


@pytest.mark.parametrize(
    ("alive", "expected"),
    [
        # F_SS = [5 4; 4 5], F_SQ w_Q = (2, 2) 3 = (6, 6): 6 / 9 each. By the inverse I - g g' / 10: -3 / 0.9 (-0.2) = 2 / 3.
        ([0, 1, 1], [0, 2 / 3, 2 / 3]),
        # F_SS = 5, F_SQ w_Q = 2 (1 3 + 2 1) = 10. Each by itself would say -3 / 0.9 (-0.2) - 1 / 0.6 (-0.4) = 4 / 3.
        ([0, 0, 1], [0, 0, 2]),
        ([1, 1, 1], [0, 0, 0]),
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_compensation_by_hand(alive, expected, monkeypatch):
    surviving = {"weight": torch.tensor([alive], dtype=torch.bool)}
    module, params, batches = one_example(monkeypatch)
    found = fisher_compensation(module, params, living(params, ("weight",)), batches, surviving)["weight"]
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize("make_net", [mlp, cnn])
@pytest.mark.parametrize("density", [0.2, 0.6, 0.9])
def test_compensation_is_the_joint_step_of_optimal_brain_surgeon_and_costs_what_it_says(make_net, density, monkeypatch):
    module, params, names, batch, fisher = dense(monkeypatch, make_net)
    generator = torch.Generator().manual_seed(0)
    surviving = {n: (torch.rand(params[n].shape, generator=generator) < density) & (params[n] != 0) for n in names}
    found = fisher_compensation(module, params, living(params, names), [batch], surviving)
    moved = 0
    for name in names:
        parts = (tensor.flatten().split(4) for tensor in (found[name].double(), params[name].double(), surviving[name]))
        for f, step, w, stays in zip(fisher[name], *parts, strict=True):
            inverse, gone = f.inverse(), ~stays & (w != 0)
            assert not step[~stays].any()
            step = torch.where(gone, -w, step)
            rest = torch.where(gone, -w, 0)
            expected = -inverse[:, gone] @ inverse[gone][:, gone].inverse() @ w[gone]
            torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)
            rise = float(w[gone] @ inverse[gone][:, gone].inverse() @ w[gone] / 2)
            assert float(step @ f @ step / 2) == pytest.approx(rise, rel=1e-4)
            assert rise <= float(rest @ f @ rest / 2) * (1 + 1e-9)
            moved += int((step[stays] != 0).sum())
    assert moved > 0


def test_after_the_removal_of_one_weight_the_quadratic_loss_has_risen_by_its_score(monkeypatch):
    module, params, (name, *_), batch, fisher = dense(monkeypatch, mlp)
    scores = woodfisher({name: params[name]}, fisher_inverse_diag(module, params, living(params, (name,)), [batch]))[
        name
    ].flatten()
    for q in (0, 5, 11, 29):
        surviving = torch.ones_like(params[name], dtype=torch.bool)
        surviving.view(-1)[q] = False
        step = fisher_compensation(module, params, living(params, (name,)), [batch], {name: surviving})[name].flatten().double()
        step[q] = -params[name].flatten()[q]
        assert float(torch.block_diag(*fisher[name]) @ step @ step / 2) == pytest.approx(float(scores[q]), rel=1e-4)


def test_steps_added_up_one_by_one_can_cost_more_than_not_to_move_and_the_joint_step_cannot():
    """Three inputs that are independent, and a fourth that is nearly their sum; the three go. Each of them by itself would be
    replaced by the fourth less the other two: then their sum, which is the fourth once, is replaced by the fourth three times.
    """
    f = torch.eye(4).double()
    f[3, :3] = f[:3, 3] = 1.0
    f[3, 3] = 3.01  # the fourth has a variance of 0.01 of its own
    w, alive = torch.ones(1, 4).double(), torch.tensor([[False, False, False, True]])
    inverse, removed = f.inverse(), torch.tensor([-1.0, -1.0, -1.0, 0.0]).double()
    summed = removed.clone()
    summed[3] = -sum(w[0, q] * inverse[3, q] / inverse[q, q] for q in range(3))
    assert float(summed[3]) == pytest.approx(3, rel=0.02)
    joint = removed + fisher_blocks._solved(f[None], torch.where(alive, 0, w), alive)[0]
    assert float(joint[3]) == pytest.approx(3 / 3.01, rel=1e-3)
    cost = [float(d @ f @ d / 2) for d in (joint, removed, summed)]
    assert cost[0] < cost[1] < cost[2]


@pytest.mark.parametrize("make_net", [batchnorm_dropout, cnn])
def test_measuring_leaves_no_trace(make_net):
    module, params = elsewhere(make_net)
    names = prunable(module.net)
    surviving = {name: params[name] > 0 for name in names}
    batches = [data(8), data(5, seed=1)]
    assert_no_trace(module, params, lambda: fisher_inverse_diag(module, params, living(params, names), batches))
    assert_no_trace(module, params, lambda: fisher_compensation(module, params, living(params, names), batches, surviving))
