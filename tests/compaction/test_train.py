"""Training in a smaller network against training under the mask, which defines the result: all of it, over many steps.

In double precision to 1e-10 of each tensor's largest entry. In single precision sums of fewer terms round otherwise: to 1e-5
after a few steps of SGD (measured: 3e-6); Adam makes steps of equal size of whatever is not zero, rounding too, so there it is
told in double precision alone, and without BatchNorm, under which the gradient of a bias is nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedprune.compaction import sparse_linear
from fedprune.compaction import train as compacted
from fedprune.compaction.forward import Emitter
from fedprune.compaction.sparse_linear import SparseLinear
from fedprune.compaction.train import Compacted, compactor, silent
from fedprune.local.module import LocalModule, SquaredError
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import Regulariser, none
from fedprune.local.regularisers.penalty import l1, penalty
from fedprune.local.regularisers.swat import swat
from fedprune.local.train import Trained, fit
from fedprune.models.cnn import cnn_fedavg, cnn_small
from fedprune.models.lenet import lenet1, lenet5, lenet5_caffe, lenet_300_100
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg_small
from fedprune.pruning.mask import apply
from fedprune.types import Mask, Params, Subnet

IMAGE, SMALL = (1, 16, 16), (1, 4, 4)
NETS: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "lenet_300_100": (lenet_300_100, SMALL),
    "lenet1": (lenet1, IMAGE),
    "lenet5": (lenet5, IMAGE),
    "lenet5_caffe": (lenet5_caffe, IMAGE),
    "cnn_small": (cnn_small, IMAGE),
    "cnn_small, norm": (partial(cnn_small, norm="batch"), IMAGE),
    "cnn_fedavg": (cnn_fedavg, SMALL),
    "vgg_small": (vgg_small, (1, 8, 8)),
    "resnet20": (partial(resnet20, norm="batch"), SMALL),
}
SGD = partial(torch.optim.SGD, lr=0.05)
MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True)
DECAY = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1, fused=True)
NESTEROV = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1)
ADAM = partial(torch.optim.Adam, lr=0.01, weight_decay=0.1)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
RMSPROP = partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True)


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Networks of any size pay."""
    monkeypatch.setattr(compacted, "PER_STEP", -1)
    monkeypatch.setattr(compacted, "PER_JOB", -1)


def shaken(net: nn.Module, generator: torch.Generator) -> Params:
    """Weights as they are; biases, shifts and statistics as after training, of either sign."""
    params = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    for name, tensor in params.items():
        if tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - (0.4 if not name.endswith("var") else -0.5))
    return params


def rows(weight: Tensor, density: float, generator: torch.Generator, last: bool) -> Tensor:
    """Whole filters and neurons, one at least; of the last layer all."""
    alive = torch.rand(len(weight), generator=generator) < density
    alive[int(torch.randint(len(weight), (), generator=generator))] = True
    return (alive | last).view(-1, *[1] * (weight.dim() - 1)).expand(weight.shape).clone()


def columns(weight: Tensor, density: float, generator: torch.Generator, last: bool) -> Tensor:
    """Whole channels and inputs, one at least."""
    return rows(weight.transpose(0, 1), density, generator, False).transpose(0, 1).contiguous()


def entries(weight: Tensor, density: float, generator: torch.Generator, last: bool) -> Tensor:
    """Single weights, so few that units die with them."""
    return torch.rand(weight.shape, generator=generator) < 2.5 / weight[0].numel()


def kernels(weight: Tensor, density: float, generator: torch.Generator, last: bool) -> Tensor:
    """Filters and neurons, and of those that live not all of it."""
    return rows(weight, density, generator, last) & (torch.rand(weight.shape, generator=generator) < 0.7)


def sent(net: nn.Module, kind: Callable, seed: int, density: float = 0.5) -> Subnet:
    generator = torch.Generator().manual_seed(seed)
    params = shaken(net, generator)
    names = [name for name, tensor in params.items() if tensor.dim() > 1]
    mask = {name: kind(params[name], density, generator, name == names[-1]) for name in names}
    return Subnet(apply(params, mask), mask)


def batches(shape: tuple[int, ...], classes: int = 10, steps: int = 4, dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    xs = torch.randn(steps, 6, *shape, generator=generator, dtype=dtype)
    return list(zip(xs, torch.randint(classes, (steps, 6), generator=generator), strict=True))


def module(net: nn.Module, optimizer: Callable = SGD, kind=LocalModule) -> LocalModule:
    return kind(net, optimizer)


def smaller(whole: LocalModule, mask: Mask, shape: tuple[int, ...], recipe: Recipe) -> Compacted:
    found = compactor(whole, shape, recipe)(mask, 1)
    assert found is not None
    return found


def close(a: Params, b: Params, tolerance: float) -> None:
    assert set(a) == set(b)
    for name, value in a.items():
        assert value.shape == b[name].shape and value.dtype == b[name].dtype
        largest = value.abs().max().double().clamp_min(1e-3) if value.numel() else 1.0
        assert (value.double() - b[name].double()).abs().max() <= tolerance * largest, name


def same(a: Trained, b: Trained, mask: Mask, tolerance: float = 1e-10) -> None:
    """All that training returns; and what is dead is zero, and nothing but zero."""
    close(a.params, b.params, tolerance)
    assert set(a.optimizer) == set(b.optimizer)
    for number, state in a.optimizer.items():
        close(state, b.optimizer[number], 10 * tolerance)
    assert (a.steps, a.examples, dict(a.reach)) == (b.steps, b.examples, dict(b.reach))
    assert a.loss == pytest.approx(b.loss, rel=tolerance)
    assert not any(b.params[name][~alive].any() for name, alive in mask.items())


def both(
    name: str,
    kind: Callable,
    recipe: Recipe | None = None,
    optimizer: Callable = SGD,
    seed: int = 0,
    tolerance: float = 1e-10,
    dtype=torch.float64,
    correction: bool = False,
    jobs: int = 1,
) -> Compacted:
    """Train under the mask and in the smaller network, job after job if the optimizer goes on, and compare."""
    recipe = recipe or Recipe()
    make, shape = NETS[name]
    torch.manual_seed(seed)
    net = make(shape, 10).to(dtype)
    subnet, whole = sent(net, kind, seed), module(net, optimizer)
    shifts = shaken(net, torch.Generator().manual_seed(seed + 1)) if correction else {}
    shifts = apply({n: 0.1 * shifts[n] for n, _ in net.named_parameters()}, subnet.mask) if correction else {}
    small, kept = smaller(whole, subnet.mask, shape, recipe), dict[str, Tensor]()
    for job in range(jobs):
        data = batches(shape, dtype=dtype, seed=job)
        expected = fit(whole, subnet, data, recipe, 0.9, None, kept, shifts)
        untouched = {n: t.clone() for n, t in net.state_dict().items()}
        given = {n: t.clone() for n, t in subnet.params.items()}
        found = small.fit_smaller(subnet, data, recipe, 0.9, kept, shifts)
        same(expected, found, subnet.mask, tolerance)
        assert all(torch.equal(t, given[n]) for n, t in subnet.params.items())
        assert all(torch.equal(t, untouched[n]) for n, t in net.state_dict().items())
        subnet, kept = Subnet(expected.params, subnet.mask), expected.optimizer
    return small


KINDS = (rows, columns, entries, kernels)


@pytest.fixture
def thin(monkeypatch):
    """Linear layers are sparse, however small, if not all of what is left of them lives."""
    monkeypatch.setattr(sparse_linear, "LEAST", 0)
    monkeypatch.setattr(sparse_linear, "DENSEST", 0.99)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETS)
def test_a_smaller_network_trains_as_the_masked_one_does(name, kind):
    both(name, kind, Recipe(proximal_mu=0.1), DECAY, seed=len(name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lenet_300_100", "cnn_small", "cnn_small, norm"])
def test_in_single_precision_too_up_to_rounding(name, kind):
    both(name, kind, Recipe(proximal_mu=0.1), DECAY, tolerance=1e-5, dtype=torch.float32)


SETTINGS = {
    "plain": (SGD, Recipe(), False),
    "momentum": (MOMENTUM, Recipe(), False),
    "momentum kept": (MOMENTUM, Recipe(keep_optimizer=True), False),
    "decay kept, clipped": (DECAY, Recipe(keep_optimizer=True, clip_norm=0.5), False),
    "nesterov, pulled, clipped": (NESTEROV, Recipe(proximal_mu=0.5, clip_norm=0.1), False),
    "corrected": (SGD, Recipe(), True),
    "corrected, decay, momentum": (DECAY, Recipe(), True),
    "retrained at another rate": (DECAY, Recipe(retrain_lr=0.1), False),
    "frozen statistics": (DECAY, Recipe(freeze_batchnorm=True), False),
    "adam kept": (ADAM, Recipe(keep_optimizer=True), False),
    "adamw, pulled": (ADAMW, Recipe(proximal_mu=0.5), False),
    "rmsprop kept": (RMSPROP, Recipe(keep_optimizer=True), False),
}


@pytest.mark.parametrize("kind", [rows, columns, entries])
@pytest.mark.parametrize("setting", SETTINGS)
def test_whatever_the_recipe(setting, kind):
    """Two jobs, the second with what was kept of the first."""
    optimizer, recipe, correction = SETTINGS[setting]
    both("cnn_small", kind, recipe, optimizer, correction=correction, jobs=2, seed=3)
    if not setting.startswith(("adam", "rmsprop")):
        both("cnn_small, norm", kind, recipe, optimizer, correction=correction, jobs=2, seed=4)


@pytest.mark.parametrize("setting", SETTINGS)
def test_sparse_layers_train_as_masked_ones_do_whatever_the_recipe(setting, thin):
    optimizer, recipe, correction = SETTINGS[setting]
    for kind in (entries, kernels):
        small = both("lenet_300_100", kind, recipe, optimizer, correction=correction, jobs=2, seed=5)
        assert any(isinstance(layer, SparseLinear) for layer in small.small.net.live.modules())


@pytest.mark.parametrize("name", ["lenet5", "cnn_small", "cnn_small, norm", "cnn_fedavg"])
def test_sparse_layers_behind_convolutions(name, thin):
    small = both(name, kernels, Recipe(), DECAY, seed=6)
    assert isinstance(small.small.net.live.fc1, SparseLinear)
    both(name, kernels, Recipe(), DECAY, seed=6, tolerance=1e-5, dtype=torch.float32)


def test_layers_are_sparse_where_that_pays_and_hold_what_lives():
    """lenet_300_100, of 784 x 300 weights a tenth and of 300 x 100, which are too few, half."""
    net = lenet_300_100((1, 28, 28), 10)
    generator = torch.Generator().manual_seed(0)
    layers = zip(net.named_children(), (0.1, 0.5, 1.0), strict=True)
    mask = {f"{n}.weight": torch.rand(layer.weight.shape, generator=generator) < density for (n, layer), density in layers}
    small = smaller(module(net), mask, (1, 28, 28), Recipe())
    assert small.small.net.live.fc1.values.shape == (int(mask["fc1.weight"].sum()),)
    assert isinstance(small.small.net.live.fc2, nn.Linear)
    assert smaller(module(net), mask, (1, 28, 28), Recipe(batch_size=8)).small.net.live.fc1.weight.dim() == 2


@pytest.mark.parametrize("seed", range(15))
def test_whatever_the_mask(seed):
    """A small network under masks at random, of random densities."""
    both("lenet_300_100", KINDS[seed % 4], Recipe(keep_optimizer=seed % 2 == 0), DECAY, seed=seed, jobs=1 + seed % 2)


# --- by hand ---------------------------------------------------------------------------------------------------------------


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()


def one_dead_unit(bias: float) -> Subnet:
    """Unit 1 is dead, and emits relu(bias)."""
    params = {
        "0.weight": [[1.0, 1.0], [0.0, 0.0]],
        "0.bias": [0.5, bias],
        "2.weight": [[1.0, 2.0], [3.0, 4.0]],
        "2.bias": [0.0, 0.0],
    }
    mask = {"0.weight": torch.tensor([[True, True], [False, False]]), "2.weight": torch.ones(2, 2, dtype=torch.bool)}
    return Subnet({name: torch.tensor(value, dtype=torch.float64) for name, value in params.items()}, mask)


class Sum(LocalModule):
    """The loss is the sum of the outputs, so that gradients can be worked out by hand."""

    def loss(self, outputs, labels, reduction):
        return outputs.sum()


def test_a_constant_is_trained_and_so_is_what_reads_it(monkeypatch):
    """One step at rate 1 on the batch (1, 0), (0, 1), loss = sum of outputs: each output has the gradient 1 for each of 2
    examples. The dead unit emits c = 0.25 twice: its readers get 2 c = 0.5 each, its bias 2 (2 + 4) = 12."""
    monkeypatch.setattr(compacted, "KNOWN", (Sum,))
    subnet, whole = one_dead_unit(0.25), module(mlp(), partial(torch.optim.SGD, lr=1.0), Sum)
    small = smaller(whole, subnet.mask, (2,), Recipe())
    data = [(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))]
    trained = small.fit_smaller(subnet, data, Recipe(), 1.0, {}, {})
    assert trained.params["0.bias"][1] == 0.25 - 12
    assert trained.params["2.weight"][:, 1].tolist() == [2 - 0.5, 4 - 0.5]
    assert trained.params["2.weight"][:, 0].tolist() == [1 - 3, 3 - 3]  # the living unit gives 1.5 for either example
    assert trained.params["0.weight"].tolist() == [[1 - 4, 1 - 4], [0, 0]]
    same(fit(whole, subnet, data, Recipe()), trained, subnet.mask)


@pytest.mark.parametrize(
    ("bias", "decays", "mute"), [(0.0, 0, True), (0.0, 1, True), (-0.5, 0, True), (-0.5, 1, False), (0.1, 0, False)]
)
def test_constants_of_zero_behind_a_relu_are_not_even_computed(bias, decays, mute):
    """Unless the optimizer moves a bias that is below zero, which might come above it."""
    subnet, whole = one_dead_unit(bias), module(mlp(), DECAY if decays else MOMENTUM)
    small, data = smaller(whole, subnet.mask, (2,), Recipe()), batches((2,), 2)
    found = small.fit_smaller(subnet, data, Recipe(), 1.0, {}, {})
    emitter = small.small.net.constant["0"]
    assert isinstance(emitter, Emitter)
    assert emitter.layer.bias.requires_grad == (decays == 1 or not mute)
    assert (small.small.net._run is small.small.net._mute) == mute
    same(fit(whole, subnet, data, Recipe()), found, subnet.mask)


@pytest.mark.parametrize("what", ["kept", "corrected"])
def test_constants_of_zero_that_something_moves_are_computed(what):
    subnet, whole = one_dead_unit(0.0), module(mlp(), MOMENTUM)
    small, data = smaller(whole, subnet.mask, (2,), Recipe()), batches((2,), 2)
    pushes = {name: torch.zeros_like(p) for name, p in subnet.params.items()}
    pushes["0.bias"] = torch.tensor([0.0, -1.0], dtype=torch.float64)  # downhill, so up
    momenta = {number: {"momentum_buffer": push} for number, push in enumerate(pushes.values())}
    kept, shifts = (momenta, {}) if what == "kept" else ({}, pushes)
    found = small.fit_smaller(subnet, data, Recipe(), 1.0, kept, shifts)
    assert found.params["0.bias"][1] != 0
    same(fit(whole, subnet, data, Recipe(), 1.0, None, kept, shifts), found, subnet.mask)


def test_a_tanh_passes_gradients_at_zero_so_its_constants_are_computed():
    both("lenet1", rows, optimizer=MOMENTUM)
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    subnet, whole, data = one_dead_unit(0.0), module(net, MOMENTUM), batches((2,), 2)
    found = smaller(whole, subnet.mask, (2,), Recipe()).fit_smaller(subnet, data, Recipe(), 1.0, {}, {})
    assert found.params["0.bias"][1] != 0
    same(fit(whole, subnet, data, Recipe()), found, subnet.mask)


# --- how small -------------------------------------------------------------------------------------------------------------


def test_layers_are_cut_to_what_lives():
    """cnn_small, 16 x 16: of 10, 20 and 50 units the first 3, 5 and 7 live."""
    net = cnn_small(IMAGE, 10)
    mask = {f"{name}.weight": torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in net.named_children()}
    for alive, left in zip(mask.values(), (3, 5, 7, 10), strict=True):
        alive[left:] = False
    small = smaller(module(net), mask, IMAGE, Recipe())
    shapes = [tuple(p.shape) for p in small.small.net.live.parameters()]
    assert shapes == [(3, 1, 5, 5), (3,), (5, 3, 5, 5), (5,), (7, 5), (7,), (10, 7), (10,)]
    added = [tuple(p.shape) for p in small.small.net.added.parameters()]
    assert added == [(5, 7, 5, 5), (7, 15), (10, 43)]
    assert [tuple(p.shape) for p in small.small.net.constant.parameters()] == [(7,), (15,), (43,)]
    assert small.small.net.live.conv2.in_channels == 3
    assert not small.mask or all(alive.all() for alive in small.mask.values())
    assert len(small.small.net.idle) == 0


def test_where_width_is_cut_nobody_reads_the_rest_and_nothing_of_it_is_computed():
    """As for the clients of HeteroFL: rows and columns."""
    net = lenet_300_100(SMALL, 10)
    mask = {f"{name}.weight": torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in net.named_children()}
    mask["fc1.weight"][100:], mask["fc2.weight"][:, 100:], mask["fc2.weight"][40:], mask["fc3.weight"][:, 40:] = (False,) * 4
    small = smaller(module(net), mask, SMALL, Recipe()).small.net
    assert [tuple(p.shape) for p in small.live.parameters()] == [(100, 16), (100,), (40, 100), (40,), (10, 40), (10,)]
    assert not [*small.constant.parameters(), *small.added.parameters()]
    assert [tuple(p.shape) for p in small.idle] == [(200, 16), (200,), (60, 300), (60,)]
    small.prepare(moved=False, mute=False)
    assert not any(p.requires_grad for p in small.idle)


def test_a_mask_that_came_before_finds_its_network_again():
    net = lenet_300_100(SMALL, 10)
    subnets = [sent(net, rows, seed) for seed in range(2)]
    found = compactor(module(net), SMALL, Recipe())
    first, second, again = found(subnets[0].mask, 1), found(subnets[1].mask, 1), found(dict(subnets[0].mask), 1)
    assert first is again
    assert first is not second


def test_images_are_laid_out_channels_last_unless_a_forward_counts_on_strides():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4 * 4, 3)

        def forward(self, x):
            return self.fc(self.conv2(F.relu(self.conv1(x))).view(-1, 16))

    for net, last in ((cnn_small(IMAGE, 10), True), (Viewed(), False)):
        shape = IMAGE if last else (1, 6, 6)
        subnet, whole = sent(net, rows, 0), module(net)
        small = smaller(whole, subnet.mask, shape, Recipe())
        weight = small.small.net.live.conv2.weight
        assert weight.shape[1] == 1 or weight.is_contiguous(memory_format=torch.channels_last) == last
        data = batches(shape, 3, dtype=torch.float32)
        same(fit(whole, subnet, data, Recipe()), small.fit_smaller(subnet, data, Recipe(), 1.0, {}, {}), subnet.mask, 1e-5)


# --- what is drawn, and what is looked at in between -----------------------------------------------------------------------


class Dropping(nn.Module):
    """A network that drops units, and channels before they are read."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3)
        self.drop = nn.Dropout2d(0.3)
        self.fc1, self.fc2 = nn.Linear(8 * 4, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.drop(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return self.fc2(F.dropout(F.relu(self.fc1(x.flatten(1))), 0.5, self.training))


def test_dropout_draws_what_it_draws_under_the_mask():
    torch.manual_seed(0)
    net = Dropping().double()
    subnet, whole, data = sent(net, rows, 1), module(net, MOMENTUM), batches((1, 4, 4), 3)
    small = smaller(whole, subnet.mask, (1, 4, 4), Recipe())
    assert len(small.small.net.live.conv1.weight) < 6  # what nobody draws for is cut
    trained = []
    for train in (partial(fit, whole), partial(small.fit_smaller, decay=1.0, optimizer_state={}, correction={})):
        torch.manual_seed(7)
        trained.append(train(subnet, data, Recipe()))
        trained.append(torch.rand(3))
    assert torch.equal(trained[1], trained[3])
    same(trained[0], trained[2], subnet.mask)


def test_the_network_between_two_batches_can_be_looked_at():
    net = cnn_small(IMAGE, 10, norm="batch").double()
    subnet, whole = sent(net, rows, 2), module(net, DECAY)
    small, seen = smaller(whole, subnet.mask, IMAGE, Recipe()), []

    def watched():
        for number, batch in enumerate(batches(IMAGE)):
            seen.extend([small.unload(subnet.params)] if number == 2 else [])
            yield batch

    small.fit_smaller(subnet, watched(), Recipe(), 1.0, {}, {})
    close(fit(whole, subnet, batches(IMAGE)[:2], Recipe()).params, seen[0], 1e-10)


def test_squared_error_is_known_too():
    net = lenet_300_100(SMALL, 10).double()
    subnet, whole = sent(net, rows, 2), module(net, DECAY, SquaredError)
    small = smaller(whole, subnet.mask, SMALL, Recipe())
    same(
        fit(whole, subnet, batches(SMALL), Recipe()),
        small.fit_smaller(subnet, batches(SMALL), Recipe(), 1.0, {}, {}),
        subnet.mask,
    )


# --- where the mask is trained under ---------------------------------------------------------------------------------------


class Own(LocalModule):
    """Somebody's task."""


class Norm(torch.optim.Optimizer):
    """Does not act entry by entry."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})

    def step(self, closure=None):
        pass


def grouped(parameters):
    return torch.optim.SGD([{"params": [p]} for p in [*parameters, nn.Parameter(torch.ones(1))]], lr=0.1)


@pytest.mark.parametrize(
    ("recipe", "change"),
    [
        (Recipe(compact="never"), {}),
        (Recipe(error_feedback=True), {}),
        (Recipe(fixed=["conv1"]), {}),
        (Recipe(), {"kind": Own}),
        (Recipe(), {"optimizer": Norm}),
        (Recipe(), {"optimizer": grouped}),
    ],
)
def test_what_could_differ_is_trained_under_the_mask(recipe, change):
    net = cnn_small(IMAGE, 10)
    assert compactor(module(net), IMAGE, Recipe())(sent(net, rows, 0).mask, 1) is not None
    assert compactor(module(net, **change), IMAGE, recipe)(sent(net, rows, 0).mask, 1) is None


def test_so_are_hooks_of_one_object_and_of_a_parameters_gradient():
    mask = sent(cnn_small(IMAGE, 10), rows, 0).mask
    patched, listening = module(cnn_small(IMAGE, 10)), module(cnn_small(IMAGE, 10))
    patched.on_after_backward = lambda: None
    listening.net.conv1.weight.register_hook(lambda gradient: gradient)
    assert compactor(patched, IMAGE, Recipe())(mask, 1) is None
    assert compactor(listening, IMAGE, Recipe())(mask, 1) is None


def test_so_are_networks_that_cannot_be_read_and_masks_that_leave_all_or_cut_the_network_in_two():
    net = cnn_small(IMAGE, 10)
    found, mask = compactor(module(net), IMAGE, Recipe()), sent(net, rows, 0).mask
    assert found({name: torch.ones_like(alive) for name, alive in mask.items()}, 1) is None
    assert found(mask | {"conv2.weight": torch.zeros_like(mask["conv2.weight"])}, 1) is None
    net.conv1.register_forward_hook(lambda *_: None)
    assert compactor(module(net), IMAGE, Recipe())(mask, 1) is None


def test_so_is_what_does_not_pay(monkeypatch):
    """lenet_300_100, 152 of its first 300 units left, 19 eights of 38: half of 784 x 300 + 300 x 100 products are saved, for
    each of 32 examples 132,600; of 4.24 million for a batch 2 are lost again to constants: 27 batches get a job's 60 back."""
    monkeypatch.undo()
    net = lenet_300_100((1, 28, 28), 10)
    mask = {f"{name}.weight": torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in net.named_children()}
    mask["fc1.weight"][152:] = False
    found = compactor(module(net), (1, 28, 28), Recipe(batch_size=32))
    assert found(mask, 26) is None
    assert found(mask, 27) is not None
    mask["fc2.weight"][:, 152:] = False  # nobody reads them now, so there are no constants: 15 batches do
    assert found(dict(mask) | {"fc2.weight": mask["fc2.weight"].clone()}, 14) is None
    assert found(dict(mask) | {"fc2.weight": mask["fc2.weight"].clone()}, 15) is not None


@pytest.mark.parametrize(
    ("regularisers", "expected"),
    [
        ((), True),
        ((none(), none()), True),
        ((penalty(l1, 0.0),), True),
        ((penalty(l1, 0.1),), False),
        ((none(), swat(0.5)), False),
    ],
)
def test_regularisers_that_do_nothing_are_silent(regularisers: tuple[Regulariser, ...], expected):
    assert silent(regularisers) == expected


class Branches(nn.Module):
    """Two branches of one stem, brought together somehow; a dead unit of the stem gives a half."""

    def __init__(self, together: Callable) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.fc = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 10)
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.stem(x))
        return self.fc(self.together(F.relu(self.a(y)), self.b(y)))


BRANCHES: dict[str, Callable] = {
    "difference": torch.sub,
    "gate": lambda a, b: a * torch.sigmoid(b),
    "quotient": lambda a, b: a / (1 + b.exp()),
    "concatenation": lambda a, b: torch.cat([a[:, :3], b[:, 3:]], 1),
    "softmax": lambda a, b: torch.softmax(a, 1) * b,
    "statistics": lambda a, b: F.layer_norm(a, (6,)) * b,
    "other branch": lambda a, b: torch.where(b > 0, a, -1),
}


@pytest.mark.parametrize("kind", [rows, entries])
@pytest.mark.parametrize("name", BRANCHES)
def test_branches_that_come_together_are_trained_smaller_with_the_same_result(name, kind, monkeypatch):
    monkeypatch.setitem(NETS, name, (lambda shape, classes: Branches(BRANCHES[name]), (8,)))
    both(name, kind, optimizer=DECAY)
