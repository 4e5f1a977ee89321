"""Curvature equals what autograd says example by example or of the whole Hessian, and small cases worked by hand."""

import pytest
import torch
from torch import nn

from fedprune.local.module import LocalModule
from fedprune.pruning.evidence import curvature, mean
from fedprune.pruning.evidence.curvature import gauss_newton_diag, hessian_diag, sq_grads, sq_grads_sampled, too_large
from fedprune.pruning.evidence.network import Network
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
    losses,
    mlp,
    prunable,
)

ALL = (sq_grads, sq_grads_sampled, gauss_newton_diag, hessian_diag)


def grouped() -> nn.Module:
    """Layers that go the slow way: groups, a padding by name, a linear layer on sequences."""
    return nn.Sequential(
        *(nn.Unflatten(1, (2, 1, 3)), nn.Conv2d(2, 4, (1, 3), groups=2, padding="same"), nn.Tanh(), nn.Flatten(2)),
        *(nn.Linear(3, 2), nn.Flatten(), nn.Linear(8, 3)),
    )


def twice() -> nn.Module:
    """One layer that is called twice, and a ReLU that writes over its input."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.relu, self.last = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(self.layer(self.relu(self.layer(x))))

    return Twice()


def inplace() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


def linear_softmax() -> tuple[LocalModule, dict, list]:
    """Weights with which x = (2, 1) gives p = (3/4, 1/4): the difference of the logits is log 3."""
    module = LocalModule(nn.Linear(2, 2, bias=False), SGD)
    params = {"weight": torch.tensor([[0.5, 0.0], [0.0, 0.0]]) * torch.log(torch.tensor(3.0))}
    return module, params, [(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))]


def test_a_linear_softmax_model_by_hand():
    module, params, batches = linear_softmax()
    # The Hessian is (diag p - p p') x (x x'), with p (1 - p) = 3/16 for both classes: 3/16 (4, 1) = (0.75, 0.1875).
    exact = torch.tensor([[0.75, 0.1875], [0.75, 0.1875]])
    torch.testing.assert_close(hessian_diag(module, params, ("weight",), batches)["weight"], exact)
    # The model is linear in its weights, so that is Gauss-Newton too; with two classes one random vector is exact.
    torch.testing.assert_close(gauss_newton_diag(module, params, ("weight",), batches)["weight"], exact)
    # The given label is 0: g = (p - y) x = -+1/4 (2, 1), squared 1/16 (4, 1) = (0.25, 0.0625). Not the Hessian.
    empirical = torch.tensor([[0.25, 0.0625], [0.25, 0.0625]])
    torch.testing.assert_close(sq_grads(module, params, ("weight",), batches)["weight"], empirical)


def test_the_true_fisher_draws_labels_from_the_predictions_and_is_the_hessian_of_a_linear_softmax_model_on_average():
    module, params, batches = linear_softmax()
    # Label 0 (3/4 of the draws) gives 1/16 (4, 1), label 1 gives 9/16 (4, 1): 3/4 1/16 + 1/4 9/16 = 12/64 = 3/16.
    many = [(batches[0][0].repeat(4000, 1), torch.ones(4000, dtype=torch.long))]
    torch.manual_seed(0)
    found = sq_grads_sampled(module, params, ("weight",), many)["weight"]
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.1875], [0.75, 0.1875]]), rtol=0.06, atol=0)


@pytest.mark.parametrize("make_net", [mlp, cnn, batchnorm_dropout, grouped, twice, inplace])
def test_squares_are_those_of_autograd_one_example_after_the_other(make_net):
    module, params = elsewhere(make_net)
    names = prunable(module.net)
    x, y = data(11)
    module.eval()
    each = [
        torch.func.grad(losses(module, params, (x[i : i + 1], y[i : i + 1])))({n: params[n] for n in names}) for i in range(11)
    ]
    expected = {name: torch.stack([g[name].square() for g in each]).mean(0) for name in names}
    measured = sq_grads(module.train(), params, names, zip(x.split(4), y.split(4), strict=True))
    torch.testing.assert_close(measured, expected)


def test_strides_dilation_and_padding_of_convolutions_are_as_in_autograd():
    def strided():
        conv = nn.Conv2d(1, 4, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        return nn.Sequential(nn.Unflatten(1, (1, 6, 7)), conv, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))

    torch.manual_seed(0)
    x, y = torch.randn(5, 42), torch.tensor([0, 1, 2, 1, 0])
    net = strided()
    net(x)
    module, params = LocalModule(net, SGD), {n: t.detach().clone() for n, t in net.state_dict().items()}
    names = prunable(net)
    each = [
        torch.func.grad(losses(module, params, (x[i : i + 1], y[i : i + 1])))({n: params[n] for n in names}) for i in range(5)
    ]
    expected = {name: torch.stack([g[name].square() for g in each]).mean(0) for name in names}
    torch.testing.assert_close(sq_grads(module, params, names, [(x, y)]), expected)


def test_the_square_of_a_mean_is_not_the_mean_of_the_squares():
    module, params = elsewhere()
    x, y = data(6)
    opposite = [(torch.cat([x, x]), torch.cat([y, y.flip(0)]))]
    mean_gradient = torch.func.grad(losses(module, params, opposite[0]))({"0.weight": params["0.weight"]})["0.weight"]
    assert not torch.allclose(sq_grads(module, params, ("0.weight",), opposite)["0.weight"], mean_gradient.square())


@pytest.mark.parametrize("make_net", [mlp, cnn])
@pytest.mark.parametrize("kind", [LocalModule, Squares])
def test_the_exact_diagonal_is_that_of_the_whole_hessian(make_net, kind, monkeypatch):
    monkeypatch.setattr(curvature, "DIRECTIONS", 7)  # several portions, the last one short
    module, params = elsewhere(make_net, kind)
    x, y = data(9)
    targets = y if kind is LocalModule else torch.randn(9, 3)
    names = prunable(module.net)
    whole, _ = hessian(module, params, names, (x, targets))
    measured = hessian_diag(module, params, names, zip(x.split(4), targets.split(4), strict=True))
    torch.testing.assert_close(flat(measured, names), whole.diagonal(), rtol=1e-4, atol=1e-6)


def test_gauss_newton_is_j_squared_for_one_output_and_half_a_squared_error():
    # L = 1 and z = v tanh(w x): dz/dw = v x (1 - t^2), dz/dv = t, with t = tanh(0.5 * 2) = 0.7616. v = 3:
    # (3 * 2 * (1 - 0.58)) ^ 2 = 2.5198^2 = 6.3495 and 0.7616^2 = 0.5800.
    module = Squares(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)), SGD)
    params = {"0.weight": torch.tensor([[0.5]]), "2.weight": torch.tensor([[3.0]])}
    found = gauss_newton_diag(module, params, tuple(params), [(torch.tensor([[2.0]]), torch.tensor([[0.0]]))])
    assert float(found["0.weight"]) == pytest.approx(6.3495, abs=1e-3)
    assert float(found["2.weight"]) == pytest.approx(0.5800, abs=1e-4)


def test_gauss_newton_is_right_on_average_for_many_outputs():
    module, params = elsewhere(cnn)
    names, (x, y) = prunable(module.net), data(1)
    jacobian = torch.func.jacrev(lambda some: torch.func.functional_call(module.net, params | some, (x,))[0])(
        {n: params[n] for n in names}
    )
    p = torch.func.functional_call(module.net, params, (x,))[0].softmax(0)
    middle = p.diag() - torch.outer(p, p)
    expected = {n: torch.einsum("c...,cd,d...->...", j, middle, j) for n, j in jacobian.items()}
    torch.manual_seed(0)
    found = gauss_newton_diag(module, params, names, [(x.repeat(5000, 1), y.repeat(5000))])
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=0.15, atol=1e-4)
        assert bool((found[name] >= 0).all())


@pytest.mark.parametrize("measure", [sq_grads, hessian_diag], ids=lambda f: f.__name__)
def test_clients_averaged_by_examples_are_the_pooled_data(measure):
    module, params = elsewhere()
    names, (x, y) = prunable(module.net), data(12)
    parts = [
        (measure(module, params, names, [batch]), len(batch[0]))
        for batch in zip(x.split((2, 7, 3)), y.split((2, 7, 3)), strict=True)
    ]
    torch.testing.assert_close(mean(parts), measure(module, params, names, [(x, y)]), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("measure", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make_net", [batchnorm_dropout, grouped])
def test_measuring_leaves_no_trace(measure, make_net):
    module, params = elsewhere(make_net)
    names = prunable(module.net)
    assert_no_trace(module, params, lambda: measure(module, params, names, [data(8), data(5, seed=1)]))


@pytest.mark.parametrize("measure", [sq_grads_sampled, gauss_newton_diag], ids=lambda f: f.__name__)
def test_what_is_drawn_follows_the_callers_seed(measure):
    module, params = elsewhere()

    def measured(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return measure(module, params, ("0.weight",), [data(8)])["0.weight"]

    assert torch.equal(measured(0), measured(0))
    assert not torch.equal(measured(0), measured(1))


def test_small_and_large_batches_give_the_same():
    module, params = elsewhere(cnn)
    names, (x, y) = prunable(module.net), data(300)
    large = sq_grads(module, params, names, [(x, y)])
    torch.testing.assert_close(sq_grads(module, params, names, zip(x.split(7), y.split(7), strict=True)), large)


def test_the_exact_hessian_is_refused_for_large_networks():
    assert too_large(Network(mlp(), (6,)), ("0.weight", "2.weight")) is None
    message = too_large(Network(nn.Linear(300, 100), (300,)), ("weight",))
    assert message is not None and "here 30,000" in message and "choose criterion=obd_gauss_newton" in message
