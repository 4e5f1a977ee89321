"""H g against the whole Hessian and against what removing a weight does; movement against a training loop written out."""

import pytest
import torch
from torch import nn

from fedprune.local.module import LocalModule
from fedprune.pruning.criterion import grasp
from fedprune.pruning.evidence.gradients import abs_grads, grads, hessian_grads, movement
from helpers.measuring import (
    SGD,
    Squares,
    assert_no_trace,
    batchnorm_dropout,
    cnn,
    data,
    elsewhere,
    flat,
    hessian,
    living,
    losses,
    mlp,
    prunable,
)


@pytest.mark.parametrize("make_net", [mlp, cnn])
def test_hessian_grads_are_the_whole_hessian_times_the_gradient(make_net):
    module, params = elsewhere(make_net)
    names, (x, y) = prunable(module.net), data(13)
    whole, gradient = hessian(module, params, names, (x, y))
    measured = hessian_grads(module, params, living(params, names), list(zip(x.split(5), y.split(5), strict=True)))
    torch.testing.assert_close(flat(measured, names), whole @ gradient, rtol=1e-3, atol=1e-6)


def test_hessian_grads_by_hand():
    # L = (w x - y)^2 / 2 with w = 3, x = 2, y = 1: g = (6 - 1) 2 = 10, H = x^2 = 4, H g = 40.
    module = Squares(nn.Linear(1, 1, bias=False), SGD)
    batches = [(torch.tensor([[2.0]]), torch.tensor([[1.0]]))]
    params = {"weight": torch.tensor([[3.0]])}
    found = hessian_grads(module, params, living(params, ("weight",)), batches)
    assert found["weight"].item() == pytest.approx(40)


def test_the_gradient_of_the_dead_is_no_part_of_the_flow():
    module, params = elsewhere()
    names, batch = prunable(module.net), data(13)
    params["0.weight"][1:3] = 0
    whole, gradient = hessian(module, params, names, batch)
    flowing = gradient * (flat(params, names) != 0)
    measured = hessian_grads(module, params, living(params, names), [batch])
    torch.testing.assert_close(flat(measured, names), whole @ flowing, rtol=1e-3, atol=1e-6)


class Product(nn.Module):
    """y = v u x: one hidden unit, without a bias."""

    def __init__(self):
        super().__init__()
        self.u, self.v = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return self.v(self.u(x))


PRODUCT = {"u.weight": torch.tensor([[2.0]]), "v.weight": torch.tensor([[0.0]])}
"""u = 2, v = 0. At x = y = 1 the loss is (v u - 1)^2 / 2: with r = v u - 1 = -1 the gradient is (r v, r u) = (0, -2)."""


def alive(v: bool) -> dict[str, torch.Tensor]:
    return {"u.weight": torch.tensor([[True]]), "v.weight": torch.tensor([[v]])}


def test_a_living_weight_of_zero_takes_part_in_the_hessian_gradient_product():
    # H = [v^2, u v + r; u v + r, u^2] = [0 -1; -1 4], so H g = (2, -8). With v dead g is (0, 0), and so is H g.
    module, batches = Squares(Product(), SGD), [(torch.ones(1, 1), torch.ones(1, 1))]
    assert flat(hessian_grads(module, PRODUCT, alive(v=True), batches), tuple(PRODUCT)).tolist() == [2, -8]
    assert flat(hessian_grads(module, PRODUCT, alive(v=False), batches), tuple(PRODUCT)).tolist() == [0, 0]


def test_a_living_weight_of_zero_is_moved():
    # SGD at 0.1. Step 1: w g = (0, 0), then u = 2, v = 0 + 0.1 * 2 = 0.2. Step 2: r = 0.4 - 1 = -0.6, g = (r v, r u) =
    # (-0.12, -1.2), and -w g = (0.24, 0.24). With v dead nothing moves.
    module, batches = Squares(Product(), SGD), [(torch.ones(1, 1), torch.ones(1, 1))] * 2
    moved = flat(movement(module, PRODUCT, alive(v=True), batches), tuple(PRODUCT))
    assert moved.tolist() == pytest.approx([0.24, 0.24])
    assert flat(movement(module, PRODUCT, alive(v=False), batches), tuple(PRODUCT)).tolist() == [0, 0]


def test_grasp_keeps_what_the_gradient_norm_would_miss_most():
    # Brute force: scaling one weight down a little changes |g|^2 by -2 e w (H g); a high score means that removal costs most.
    module, params = elsewhere()
    names, batch = ("0.weight",), data(20)
    scores = grasp({n: params[n] for n in names}, hessian_grads(module, params, living(params, names), [batch]))[
        "0.weight"
    ].flatten()
    norm = lambda w: hessian(module, {**params, "0.weight": w}, names, batch)[1].square().sum()  # noqa: E731
    weights, size = params["0.weight"].double(), 1e-4
    lost = []
    for place in range(weights.numel()):
        smaller = weights.flatten().clone()
        smaller[place] *= 1 - size
        lost.append(float(norm(weights) - norm(smaller.view_as(weights))) / (2 * size))
    torch.testing.assert_close(torch.tensor(lost), scores, rtol=1e-2, atol=1e-5)


def test_dropout_is_the_same_in_both_passes():
    module, params = elsewhere(lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)))
    names, batch = prunable(module.net), data(16)
    module.train()
    torch.manual_seed(3)
    measured = hessian_grads(module, params, living(params, names), [batch])
    wanted = {n: params[n].clone().requires_grad_() for n in names}
    torch.manual_seed(3)
    loss = losses(module, params, batch)(wanted)  # one forward pass, one dropout
    gradient = torch.autograd.grad(loss, list(wanted.values()), create_graph=True)
    along = sum((g * g.detach()).sum() for g in gradient)
    expected = torch.autograd.grad(along, list(wanted.values()))
    torch.testing.assert_close(measured, dict(zip(names, expected, strict=True)))


def test_movement_by_hand():
    # L = (w x - y)^2 / 2 with x = 1, y = 0: g = w. w = 2, then 2 - 0.1 * 2 = 1.8: -(2 * 2 + 1.8 * 1.8) = -7.24.
    # (It moves towards zero, so its score is negative.)
    module = Squares(nn.Linear(1, 1, bias=False), SGD)
    batches = [(torch.ones(1, 1), torch.zeros(1, 1))] * 2
    params = {"weight": torch.tensor([[2.0]])}
    assert movement(module, params, living(params, ("weight",)), batches)["weight"].item() == pytest.approx(-7.24)


def test_movement_of_one_step_is_minus_weight_times_gradient():
    module, params = elsewhere(cnn)
    names, batch = prunable(module.net), data(8)
    gradient = grads(module, params, names, [batch])
    torch.testing.assert_close(
        movement(module, params, living(params, names), [batch]), {n: -params[n] * gradient[n] for n in names}
    )


def test_movement_is_the_sum_over_a_training_loop_in_which_the_dead_stay_dead():
    net = mlp()
    module, params = LocalModule(mlp(), lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9)), dict(net.state_dict())
    params = {name: value.clone() for name, value in params.items()}
    params["0.weight"][0] = 0
    net.load_state_dict(params)
    optimizer, expected = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9), 0
    batches = [data(4, seed=i) for i in range(5)]
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        expected = expected - (net[0].weight * net[0].weight.grad).detach()
        optimizer.step()
        with torch.no_grad():
            net[0].weight[0] = 0
    found = movement(module, params, living(params, ("0.weight",)), batches)["0.weight"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("measure", [grads, abs_grads, hessian_grads, movement], ids=lambda f: f.__name__)
def test_measuring_leaves_no_trace(measure):
    module, params = elsewhere(batchnorm_dropout)
    alive = living(params, prunable(module.net))
    assert_no_trace(module, params, lambda: measure(module, params, alive, [data(8), data(8, seed=1)]))
