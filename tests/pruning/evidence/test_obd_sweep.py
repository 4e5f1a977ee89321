"""The sweep of Optimal Brain Damage: exact where the paper says so, its own rules elsewhere, and a refusal by name."""

import pytest
import torch
from torch import nn

from fedprune.local.module import LocalModule
from fedprune.models.cnn import cnn_fedavg
from fedprune.models.lenet import lenet5, lenet5_caffe, lenet_300_100
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg11
from fedprune.pruning.evidence.curvature import hessian_diag
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.evidence.obd_sweep import hessian_sweep, no_sweep, unswept
from helpers.measuring import SGD, Squares, assert_no_trace, data, elsewhere, flat, hessian, mlp, prunable


def test_tanh_by_hand_has_the_sign_that_is_exact():
    # E = (z - y)^2 / 2 with z = v tanh(w x), w = 0.5, x = 2, v = 3, y = 1. t = tanh 1 = 0.761594, f' = 1 - t^2 = 0.419974,
    # f'' = -2 t f' = -0.639700. dE/dz = 3 t - 1 = 1.284782, so at the hidden unit g = 3.854347 and h = v^2 = 9.
    # h_a = f'^2 h + f'' g = 1.587405 - 2.465626 = -0.878221; of w it is x^2 h_a = -3.512884. Of v it is t^2 = 0.580026.
    module = Squares(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)), SGD)
    params = {"0.weight": torch.tensor([[0.5]]), "2.weight": torch.tensor([[3.0]])}
    batches = [(torch.tensor([[2.0]]), torch.tensor([[1.0]]))]
    found = hessian_sweep(module, params, tuple(params), batches)
    assert float(found["0.weight"]) == pytest.approx(-3.512884, abs=1e-4)
    assert float(found["2.weight"]) == pytest.approx(0.580026, abs=1e-5)
    torch.testing.assert_close(found, hessian_diag(module, params, tuple(params), batches), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_it_is_exact_for_one_hidden_layer_and_squares(activation):
    module, params = elsewhere(lambda: nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 3)), Squares)
    x, names = data(9)[0], prunable(module.net)
    targets = torch.randn(9, 3)
    whole, _ = hessian(module, params, names, (x, targets))
    found = hessian_sweep(module, params, names, zip(x.split(4), targets.split(4), strict=True))
    torch.testing.assert_close(flat(found, names), whole.diagonal(), rtol=1e-4, atol=1e-6)


def test_the_last_layer_is_exact_for_softmax_too():
    module, params = elsewhere()
    batch = data(9)
    exact = hessian_diag(module, params, ("2.weight",), [batch])
    torch.testing.assert_close(hessian_sweep(module, params, ("2.weight",), [batch]), exact)


class Shared(nn.Module):
    """A convolution whose positions the outputs keep apart: each position is a unit, each weight is shared by all of them."""

    def __init__(self, pool: nn.Module):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 3, (1, 3), padding=(0, 1)), pool

    def forward(self, x):
        return torch.flatten(self.pool(torch.tanh(self.conv(x))), 1)


POOLS = {
    "maximum": nn.MaxPool2d((1, 2)),
    "average": nn.AvgPool2d((1, 2)),
    "overlapping": nn.AvgPool2d((1, 3), stride=1, padding=(0, 1)),
    "adaptive": nn.AdaptiveAvgPool2d((1, 2)),  # of 5: windows of unequal places
    "none": nn.Identity(),
}


@pytest.mark.parametrize("pool", POOLS)
def test_convolution_and_pooling_follow_the_papers_rules_connection_by_connection(pool):
    torch.manual_seed(0)
    net = Shared(POOLS[pool])
    params, x = {n: v.detach().clone() for n, v in net.state_dict().items()}, torch.randn(2, 2, 1, 5)
    targets = torch.randn_like(net(x))
    found = hessian_sweep(Squares(net, SGD), params, ("conv.weight",), [(x, targets)])["conv.weight"]

    a = net.conv(x).detach()
    g, h = torch.zeros_like(a), torch.zeros_like(a)  # by the units' outputs, from the whole matrix of the pooling
    for n in range(2):
        f = torch.tanh(a[n]).flatten()
        matrix = torch.func.jacrev(lambda f: net.pool(f.view(1, 3, 1, 5)).flatten())(f)
        residual = matrix @ f - targets[n]
        g[n], h[n] = (matrix.T @ residual).view(3, 1, 5), matrix.square().sum(0).view(3, 1, 5)
    t = torch.tanh(a)
    h_a = (1 - t**2) ** 2 * h - 2 * t * (1 - t**2) * g
    padded = nn.functional.pad(x, (1, 1))
    expected = torch.zeros_like(found)
    for o, i, k, position in torch.cartesian_prod(*map(torch.arange, (3, 2, 3, 5))).tolist():
        expected[o, i, 0, k] += (padded[:, i, 0, position + k] ** 2 * h_a[:, o, 0, position]).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make_model", [lenet_300_100, cnn_fedavg, lenet5, lenet5_caffe])
def test_it_passes_the_models_that_are_chains(make_model):
    torch.manual_seed(0)
    net = make_model((1, 16, 16), 10)
    assert unswept(net) == []
    module, params = LocalModule(net, SGD), {n: v.detach().clone() for n, v in net.state_dict().items()}
    names, batch = prunable(net), (torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 3]))
    found = hessian_sweep(module, params, names, [batch])
    assert {n: v.shape for n, v in found.items()} == {n: params[n].shape for n in names}
    assert all(bool((v >= 0).all()) and bool(v.any()) for v in found.values())  # ReLU has no curvature of its own


def test_what_it_does_not_pass_is_named():
    assert unswept(vgg11((3, 32, 32), 10)) == []
    assert unswept(vgg11((3, 32, 32), 10, norm="batch"))[0] == "norm1 (BatchNorm2d)"
    assert {"norm1 (GroupNorm)", "add in its forward", "mean in its forward"} <= set(unswept(resnet20((1, 8, 8), 10)))

    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else x

    (unread,) = unswept(Moody())
    assert "Moody, whose forward torch.fx cannot read" in unread
    message = no_sweep(Network(resnet20((1, 8, 8), 10), (1, 8, 8)), ())
    assert message is not None and "norm1 (GroupNorm)" in message and "choose criterion=obd_gauss_newton" in message
    assert no_sweep(Network(mlp(), (6,)), ()) is None


def test_measuring_leaves_no_trace():
    module, params = elsewhere(mlp)
    assert_no_trace(module, params, lambda: hessian_sweep(module, params, prunable(module.net), [data(8), data(8, seed=1)]))


class Ends(nn.Module):
    """A chain whose last operation is not what it puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        outputs = self.fc(x)
        self.unused(outputs)
        return outputs


def test_a_chain_has_to_end_with_what_the_network_puts_out():
    assert unswept(Ends()) == ["the outputs of Ends, which are not what its last operation gives"]
