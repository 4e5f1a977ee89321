"""Layers that are not what their class of torch is: evidence about them is by their own forward, and never by a formula."""

import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedprune.local.module import LocalModule
from fedprune.plain_layers import is_plain
from fedprune.pruning.evidence.activations import activations, puts_out
from fedprune.pruning.evidence.curvature import by_place, gauss_newton_diag, hessian_diag, sq_grads, sq_grads_sampled
from fedprune.pruning.evidence.data_free import unscaled
from fedprune.pruning.evidence.fisher import DAMPING, fisher_inverse_diag
from fedprune.pruning.evidence.gradients import grads, hessian_grads, movement
from fedprune.pruning.evidence.network import Network
from fedprune.pruning.evidence.obd_sweep import no_sweep
from fedprune.pruning.evidence.per_example import squares
from helpers.measuring import SGD, Squares, living, losses, state


class Cosine(nn.Linear):
    """w x / |w|, by row."""

    def forward(self, x):
        return F.linear(x, F.normalize(self.weight, dim=1))


def patched() -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    layer.forward = types.MethodType(Cosine.forward, layer)
    return layer


def hooked() -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    layer.register_forward_hook(lambda layer, inputs, output: output / layer.weight.norm())
    return layer


class ByHand(nn.Module):
    """A network that never calls its layer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 1, bias=False)

    def forward(self, x):
        return Cosine.forward(self.fc, x)


COSINES = {"subclass": lambda: Cosine(2, 1, bias=False), "patched": patched, "hooked": hooked, "by hand": ByHand}
ONE = (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0]]))


@pytest.mark.parametrize("make", COSINES.values(), ids=COSINES)
def test_squares_of_a_cosine_layer_by_hand(make):
    # y = w x / |w| at w = (3, 4), x = (1, 0): dy/dw = x / |w| - (w x) w / |w|^3 = (1/5 - 9/125, -12/125) = (.128, -.096).
    # The squares of a linear layer would be (1, 0).
    net = make()
    name = next(iter(net.state_dict()))
    wanted = {name: torch.tensor([[3.0, 4.0]])}
    found = squares(net, wanted, {}, ONE[0], torch.ones_like)
    assert found[name].flatten().tolist() == pytest.approx([0.128**2, 0.096**2])


@pytest.mark.parametrize("make", COSINES.values(), ids=COSINES)
def test_evidence_about_a_cosine_layer_by_hand(make):
    # The loss is (y - 0)^2 / 2 with y = .6, J = (.128, -.096): g = .6 J, and the Gauss-Newton matrix is J J'.
    module, batches = Squares(make(), SGD), [ONE]
    name = next(iter(module.net.state_dict()))
    params = {name: torch.tensor([[3.0, 4.0]])}
    expected = {sq_grads: [0.36 * 0.128**2, 0.36 * 0.096**2], gauss_newton_diag: [0.128**2, 0.096**2]}
    for measure, values in expected.items():
        assert measure(module, params, (name,), batches)[name].flatten().tolist() == pytest.approx(values, rel=1e-4)
    # F = g g' + d I for one example with g = .6 J: [F^-1]_11 = (d + g_2^2) / (d (d + |g|^2)).
    first, second = (0.6 * 0.128) ** 2, (0.6 * 0.096) ** 2
    inverse = (DAMPING + second) / (DAMPING * (DAMPING + first + second))
    found = fisher_inverse_diag(module, params, living(params, (name,)), batches)[name]
    assert float(found[0, 0]) == pytest.approx(inverse, rel=1e-3)


class Twice(nn.Module):
    """y = v w (w x): the layer w is called twice."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return self.v(self.w(self.w(x)))


class Tied(nn.Module):
    """y = w x + w: the layer is called once, and its weight is read besides."""

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return self.w(x) + self.w.weight[0]


class Places(nn.Module):
    """The sum over two places of w x_t; the layer is given each place as an example."""

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return self.w(x.reshape(-1, 1)).view(len(x), -1).sum(1, keepdim=True)


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(1, 1, bias=False)

    def forward(self, x):
        return self.w(input=x)


@pytest.mark.parametrize(
    ("make", "x", "expected"),
    [
        (Twice, [[1.0]], 144.0),  # y = v w^2 x at v = 3, w = 2: dy/dw = 2 v w x = 12; by one call alone it is 6
        (Tied, [[3.0]], 16.0),  # dy/dw = x + 1 = 4
        (Places, [[1.0, 2.0]], 9.0),  # dy/dw = 1 + 2 = 3; place by place it is 1^2 + 2^2
        (ByKeyword, [[3.0]], 9.0),
    ],
)
def test_squares_of_layers_that_are_called_otherwise_by_hand(make, x, expected):
    weights = {"w.weight": torch.tensor([[2.0]])}
    rest = {"v.weight": torch.tensor([[3.0]])} if make is Twice else {}
    found = squares(make(), weights, rest, torch.tensor(x), torch.ones_like)
    assert found["w.weight"].item() == pytest.approx(expected)


def test_a_layer_whose_outputs_are_dropped_has_squares_of_zero():
    class Dropped(Twice):
        def forward(self, x):
            self.w(x)
            return self.v(x)

    params = {"w.weight": torch.tensor([[2.0]]), "v.weight": torch.tensor([[3.0]])}
    found = squares(Dropped(), params, {}, torch.tensor([[5.0]]), torch.ones_like)
    assert found["w.weight"].item() == 0
    assert found["v.weight"].item() == 25


# --- networks that batching, or one tensor of outputs, is no match for ------------------------------------------------------


class Recurrent(nn.Module):
    """[B, 6] as two steps of three."""

    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.rnn, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.rnn(x.view(-1, 2, 3))[0][:, -1])


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(3, 1, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        x = x.view(-1, 2, 3)
        return self.head(self.attention(x, x, x, need_weights=False)[0].flatten(1))


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 2), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.table((x.abs() * 2).long().clamp(max=6)).flatten(1))


def convolution(layer: nn.Module, *shape: int) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, shape), layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


NETWORKS = {
    **{kind.__name__: (lambda kind=kind: Recurrent(kind)) for kind in (nn.GRU, nn.RNN, nn.LSTM)},
    "attention": Attentive,
    "embedding": Embedded,
    "transposed": lambda: convolution(nn.ConvTranspose2d(2, 2, 2), 2, 1, 3),
    "grouped": lambda: convolution(nn.Conv2d(2, 4, 1, groups=2), 2, 1, 3),
    "1d": lambda: convolution(nn.Conv1d(2, 3, 2), 2, 3),
    "3d": lambda: convolution(nn.Conv3d(1, 2, (1, 2, 2)), 1, 1, 2, 3),
    "same padding": lambda: convolution(nn.Conv2d(2, 3, (1, 2), padding="same", padding_mode="reflect"), 2, 1, 3),
}


class Whole(LocalModule):
    """A classifier of whatever a network puts out: a tensor, a dict or a tuple."""

    def training_step(self, batch, batch_idx):
        outputs = self.net(batch[0])
        outputs = outputs["logits"] if isinstance(outputs, dict) else outputs[0] if isinstance(outputs, tuple) else outputs
        return F.cross_entropy(outputs, batch[1])


class Packed(nn.Module):
    def __init__(self, net: nn.Module, pack):
        super().__init__()
        self.inner, self.pack = net, pack

    def forward(self, x):
        return self.pack(self.inner(x))


def hidden() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


NETWORKS |= {
    "dict": lambda: Packed(hidden(), lambda y: {"logits": y, "classes": y.argmax(1)}),
    "tuple": lambda: Packed(hidden(), lambda y: (y, {"more": [y * 2]})),
}


def made(name: str) -> tuple[LocalModule, dict, tuple[str, ...], list]:
    torch.manual_seed(0)
    net = NETWORKS[name]()
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    net(x)
    names = tuple(n for n, p in net.named_parameters() if p.dim() > 1)
    return Whole(net, SGD), state(net), names, [(x, y)]


def of_each(module: LocalModule, params: dict, names: tuple[str, ...], batch) -> list[dict]:
    """Each example's own gradient by autograd, in evaluation mode."""
    module.net.eval()
    rows = []
    for x, y in zip(*batch, strict=True):
        wanted = {name: params[name].clone().requires_grad_() for name in names}
        outputs = torch.func.functional_call(module.net, params | wanted, (x[None],))
        outputs = outputs["logits"] if isinstance(outputs, dict) else outputs[0] if isinstance(outputs, tuple) else outputs
        slopes = torch.autograd.grad(F.cross_entropy(outputs, y[None]), list(wanted.values()))
        rows.append(dict(zip(names, slopes, strict=True)))
    return rows


@pytest.mark.parametrize("name", NETWORKS)
def test_squared_gradients_are_those_of_autograd_whatever_the_network_is(name):
    module, params, names, batches = made(name)
    rows = of_each(module, params, names, batches[0])
    found = sq_grads(module, params, names, batches)
    for one in names:
        torch.testing.assert_close(found[one], sum(row[one].square() for row in rows) / 5, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_inverse_fisher_is_that_of_autograd_whatever_the_network_is(name):
    module, params, names, batches = made(name)
    one = names[0]
    rows = torch.stack([row[one].flatten()[:32] for row in of_each(module, params, names, batches[0])]).double()
    fisher = rows.T @ rows / 5 + DAMPING * torch.eye(rows.shape[1]).double()
    found = fisher_inverse_diag(module, params, living(params, names), batches)[one].flatten()[:32]
    torch.testing.assert_close(found.double(), torch.linalg.inv(fisher).diagonal(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("dict", "tuple")])
def test_the_gauss_newton_diagonal_is_right_on_average_whatever_the_network_is(name):
    # At the same examples many times over, the mean of its draws is diag J' L J, L = diag p - p p'.
    module, params, names, ((x, y),) = made(name)
    one = names[0]
    found = gauss_newton_diag(module, params, (one,), [(x[:1].expand(400, -1), y[:1].expand(400))])[one]
    module.net.eval()
    w = params[one].clone()
    jacobian = torch.stack(
        [
            torch.autograd.grad(
                torch.func.functional_call(module.net, params | {one: (v := w.clone().requires_grad_())}, (x[:1],))[0, k], v
            )[0].flatten()
            for k in range(3)
        ]
    )
    p = torch.func.functional_call(module.net, params, (x[:1],))[0].softmax(0).detach()
    expected = (jacobian * ((p.diag() - p.outer(p)) @ jacobian)).sum(0)
    assert float((found.flatten() - expected).norm() / expected.norm()) < 0.25
    assert float(expected.norm()) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_first_derivatives_are_served_whatever_the_network_is(name):
    module, params, names, batches = made(name)
    module.eval()
    mean = grads(module, params, names, batches)
    rows = of_each(module, params, names, batches[0])
    for one in names:
        torch.testing.assert_close(mean[one], sum(row[one] for row in rows) / 5, rtol=1e-3, atol=1e-6)
    alive = {one: torch.ones_like(params[one], dtype=torch.bool) for one in names}
    for measure in (hessian_grads, movement):
        assert all(value.isfinite().all() for value in measure(module, params, alive, batches).values())


class Penalised(LocalModule):
    """Its training step asks the network for more than its outputs: w^2 / 2 over all weights is added."""

    def training_step(self, batch, batch_idx):
        outputs = self.net(batch[0])
        return (outputs - batch[1]).square().sum(1).mean() / 2 + sum(w.square().sum() for w in self.net.parameters()) / 2


def test_a_training_step_that_looks_at_the_weights_is_part_of_each_examples_gradient():
    # (w x - y)^2 / 2 + w^2 / 2 at w = 2, x = 1, y = 0: g = 2 + 2, not 2.
    module = Penalised(nn.Linear(1, 1, bias=False), SGD)
    params, batches = {"weight": torch.tensor([[2.0]])}, [(torch.ones(1, 1), torch.zeros(1, 1))]
    assert sq_grads(module, params, ("weight",), batches)["weight"].item() == pytest.approx(16)


# --- evidence that is refused, by layer -------------------------------------------------------------------------------------


def test_plain_layers_are_of_exactly_the_class_and_unchanged():
    assert is_plain(nn.Linear(1, 1), (nn.Linear,))
    assert not any(is_plain(layer, (nn.Linear,)) for layer in (Cosine(1, 1), patched(), hooked(), nn.Conv2d(1, 1, 1)))


class Cut(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.first, self.head = layer, nn.Linear(1, 2)

    def forward(self, x):
        return self.head(self.first(x).relu())


@pytest.mark.parametrize("make", [lambda: Cosine(2, 1, bias=False), patched, hooked], ids=["subclass", "patched", "hooked"])
def test_the_sweep_refuses_layers_with_a_forward_of_their_own(make):
    assert no_sweep(Network(Cut(nn.Linear(2, 1)), (2,)), ()) is None
    assert "choose criterion=obd_gauss_newton" in str(no_sweep(Network(Cut(make()), (2,)), ()))


def test_the_sweep_refuses_a_layer_that_is_called_twice():
    assert "w, which is called more than once" in str(no_sweep(Network(Twice(), (1,)), ()))


def test_activity_of_a_layer_that_is_never_called_is_refused_and_not_zero():
    network = Network(ByHand(), (2,))
    assert "fc (Linear) is not called as a layer that puts out its units: choose what.skip=[fc]" in str(
        puts_out(network, ("fc.weight",))
    )
    # y = w x / |w| of (3, 4) at (1, 0) is .6, by whatever forward the layer has.
    net, params = Cut(Cosine(2, 1, bias=False)), {"first.weight": torch.tensor([[3.0, 4.0]])}
    found = activations(LocalModule(net, SGD), state(net) | params, ("first.weight",), [(ONE[0], torch.tensor([0]))])
    assert found["first.weight"].flatten().tolist() == pytest.approx([0.6, 0.6])


def test_the_scale_of_a_normalisation_of_ones_own_is_not_its_weight():
    class OnePlus(nn.BatchNorm1d):
        def forward(self, x):
            return F.batch_norm(x, self.running_mean, self.running_var, 1 + self.weight, self.bias)

    def problem(norm: type) -> str | None:
        net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), norm(2), nn.Linear(2, 2))
        return unscaled(Network(net, (2,)), ("0.weight", "2.weight"))

    assert problem(nn.BatchNorm1d) is None
    assert "no normalisation follows 2: choose what.skip=[2]" in str(problem(OnePlus))


def test_true_fisher_labels_are_for_classifiers():
    module = Squares(nn.Linear(2, 1), SGD)
    with pytest.raises(Exception, match="choose criterion=fisher_empirical"):
        sq_grads_sampled(module, state(module.net), ("weight",), [ONE])


def test_the_gauss_newton_matrix_of_outputs_without_a_dimension_of_classes():
    # y = w x, a number per example; the loss (y - t)^2 has curvature 2 by y: 2 x^2 = 18.
    class Number(LocalModule):
        def training_step(self, batch, batch_idx):
            return (self.net(batch[0]) - batch[1]).square().mean()

    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0))
    batches = [(torch.tensor([[3.0]]), torch.tensor([1.0]))]
    found = gauss_newton_diag(Number(net, SGD), {"0.weight": torch.tensor([[2.0]])}, ("0.weight",), batches)
    assert found["0.weight"].item() == pytest.approx(18)


def test_hessian_of_a_cosine_layer_is_exact():
    module, params = Squares(Cosine(2, 1, bias=False), SGD), {"weight": torch.tensor([[3.0, 4.0]])}
    whole = torch.func.hessian(lambda w: losses(module, params, ONE)({"weight": w}))(params["weight"])
    expected = torch.stack([whole[0, i, 0, i] for i in range(2)])
    torch.testing.assert_close(hessian_diag(module, params, ("weight",), [ONE])["weight"].flatten(), expected)


@pytest.mark.parametrize("name", ["dict", "tuple"])
def test_what_is_advised_in_the_place_of_a_hessian_is_what_the_network_can_do(name):
    module, params, names, batches = made(name)
    network = Network(module.net, (6,))
    for refuse in (no_sweep, by_place):
        assert str(refuse(network, names)).endswith("choose criterion=fisher_empirical")
    assert sq_grads(module, params, names, batches).keys() == {*names}
