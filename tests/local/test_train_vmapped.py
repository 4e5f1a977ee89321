"""Several clients as one batched model against `fit` of each: the same up to rounding, and refused where it would not be."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import nn

from fedprune.federated.client import batched_check
from fedprune.federated.client.batched_check import obstacle
from fedprune.local import train_vmapped
from fedprune.local.module import Batch, LocalModule, SquaredError
from fedprune.local.recipe import Recipe
from fedprune.local.step import ENTRYWISE
from fedprune.local.train import Trained, fit
from fedprune.local.train_vmapped import Share, fit_together
from fedprune.models.char_lstm import char_lstm
from fedprune.models.char_transformer import char_transformer
from fedprune.models.lenet import lenet5, lenet_300_100
from fedprune.models.resnet import resnet20
from fedprune.pruning.mask import apply
from fedprune.tensors import tensors_of
from fedprune.types import Mask, Subnet
from helpers.user_networks import Tied

SGD = partial(torch.optim.SGD, lr=0.1)
OPTIMIZERS = {
    "sgd": SGD,
    "sgd, momentum, decay": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "sgd, nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adam, fused": partial(torch.optim.Adam, lr=0.01, eps=1e-3, weight_decay=0.01, fused=True),
    "adamw, amsgrad": partial(torch.optim.AdamW, lr=0.01, eps=1e-3, weight_decay=0.1, amsgrad=True),
    "nadam": partial(torch.optim.NAdam, lr=0.01, eps=1e-3),
    "radam": partial(torch.optim.RAdam, lr=0.01, eps=1e-3),
    "adamax": partial(torch.optim.Adamax, lr=0.01, eps=1e-3),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05, eps=1e-3, weight_decay=0.01),
    "adadelta": partial(torch.optim.Adadelta, lr=0.5, eps=1e-3),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, eps=1e-3, momentum=0.9, centered=True),
    "asgd": partial(torch.optim.ASGD, lr=0.1),
}
"""An eps that is not tiny: what is divided by next to nothing is rounding, and nothing else."""


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def convs() -> nn.Module:
    layers = (nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.AvgPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 3))


def frozen_batchnorm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (mlp, (6,), 3),
    "convs": (convs, (1, 8, 8), 3),
    "lenet5": (partial(lenet5, (1, 16, 16), 10), (1, 16, 16), 10),
    "lenet_300_100": (partial(lenet_300_100, (1, 8, 8), 10), (1, 8, 8), 10),
    "tied": (Tied, (1, 2, 3), 3),
    "resnet20": (partial(resnet20, (3, 8, 8), 10, norm="group"), (3, 8, 8), 10),
    "char_transformer": (partial(char_transformer, (7,), 11, width=16, heads=2, layers=1), (7,), 11),
}
"""How each is made, the shape of an input and the number of classes."""


def data(name: str, sizes: Sequence[int], seed: int) -> list[Batch]:
    """Batches of these sizes."""
    _, shape, classes = NETS[name]
    generator = torch.Generator().manual_seed(seed)
    if name.startswith("char"):
        return [tuple(torch.randint(classes, (size, *shape), generator=generator) for _ in range(2)) for size in sizes]
    return [
        (torch.randn(size, *shape, generator=generator), torch.randint(classes, (size,), generator=generator)) for size in sizes
    ]


def drawn(net: nn.Module, density: float, seed: int) -> Subnet:
    """Its parameters, moved a little, under a mask of their matrices."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        n: t + 0.05 * torch.rand(t.shape, generator=generator) if t.is_floating_point() else t
        for n, t in tensors_of(net).items()
    }
    names = [n for n, p in net.named_parameters() if p.dim() > 1]
    mask = {n: torch.rand(state[n].shape, generator=generator) < density for n in names}
    return Subnet(apply(state, mask), mask)


def shares(name: str, sizes: Sequence[Sequence[int]], density: float = 1.0, common: Mask | None = None) -> list[Share]:
    """Of as many clients as there are sizes of batches."""
    torch.manual_seed(0)
    net, found = NETS[name][0](), []
    for client, own in enumerate(sizes):
        subnet = drawn(net, density, client)
        subnet = Subnet(apply(subnet.params, common), common) if common else subnet
        found.append(Share(subnet, data(name, own, client), len(own)))
    return found


def compare(module: LocalModule, given: Sequence[Share], recipe: Recipe, decay: float = 1.0) -> list[Trained]:
    """Trains in both ways, asserts that they come to the same, and returns it."""
    made = fit_together(module, given, recipe, decay)
    for share, found in zip(given, made, strict=True):
        alone = fit(module, share.subnet, share.batches, recipe, decay)
        assert list(found.params) == list(alone.params)
        torch.testing.assert_close(found.params, alone.params, rtol=1e-3, atol=2e-5)
        assert found.loss == pytest.approx(alone.loss, rel=1e-4)
        assert found[2:] == alone[2:]
        for n, alive in share.subnet.mask.items():
            assert not found.params[n][~alive].any()
    return made


RAGGED = ((4, 4, 3), (4,), (4, 4, 4, 1), (2,))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("density", [1.0, 0.4])
def test_clients_of_all_sizes_come_to_what_each_comes_to(name, density):
    compare(
        LocalModule(NETS[name][0](), partial(torch.optim.SGD, lr=0.05, momentum=0.9)), shares(name, RAGGED, density), Recipe()
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_under_any_optimizer_that_treats_each_entry_by_itself(name):
    assert type(OPTIMIZERS[name]([nn.Parameter(torch.ones(1))])) in ENTRYWISE
    compare(LocalModule(mlp(), OPTIMIZERS[name]), shares("mlp", RAGGED, 0.5), Recipe())


def test_whatever_the_clients():
    """Any number of clients, batches and examples; masks of their own or one for all, or none."""
    draw = random.Random(1)
    for _ in range(12):
        sizes = [[draw.randint(1, 5) for _ in range(draw.randint(0, 4))] for _ in range(draw.randint(1, 6))]
        common = drawn(mlp(), 0.5, 99).mask if draw.random() < 0.3 else None
        given = shares("mlp", sizes, draw.choice([1.0, 0.7, 0.2]), common)
        optimizer = OPTIMIZERS[draw.choice(sorted(OPTIMIZERS))]
        kind = draw.choice([LocalModule, SquaredError])
        compare(kind(mlp(), optimizer), given, Recipe(proximal_mu=draw.choice([0.0, 0.7])), draw.choice([1.0, 0.5]))


def test_the_proximal_term_pulls_each_to_what_it_was_sent():
    given, module = shares("mlp", RAGGED), LocalModule(mlp(), SGD)
    pulled, free = compare(module, given, Recipe(proximal_mu=3.0)), fit_together(module, given, Recipe())
    for share, near, far in zip(given, pulled, free, strict=True):
        if share.steps > 1:
            (a, b) = ((one.params["1.weight"] - share.subnet.params["1.weight"]).norm() for one in (near, far))
            assert a < 0.9 * b


def test_what_is_asked_for_once_anything_is_pruned():
    recipe, module = Recipe(retrain_lr=0.25, fixed=["1"]), LocalModule(mlp(), OPTIMIZERS["sgd, momentum, decay"])
    for density, still in ((1.0, False), (0.5, True)):
        given = shares("mlp", RAGGED, density)
        for share, one in zip(given, compare(module, given, recipe), strict=True):
            assert torch.equal(one.params["1.weight"], share.subnet.params["1.weight"]) is still
            assert not torch.equal(one.params["3.weight"], share.subnet.params["3.weight"])
    assert all(parameter.requires_grad for parameter in module.net.parameters())


class Idle(nn.Module):
    """Has a layer that takes no part: weight decay must not reach it."""

    def __init__(self):
        super().__init__()
        self.idle, self.fc = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x)


def test_a_layer_without_a_gradient_stays_as_it_is():
    given = [Share(drawn(Idle(), 0.7, k), data("mlp", sizes, k), len(sizes)) for k, sizes in enumerate(RAGGED)]
    for recipe in (Recipe(), Recipe(proximal_mu=0.7)):
        made = compare(LocalModule(Idle(), OPTIMIZERS["sgd, momentum, decay"]), given, recipe)
        for share, one in zip(given, made, strict=True):
            assert torch.equal(one.params["idle.weight"], share.subnet.params["idle.weight"])


def test_frozen_batchnorm_has_the_statistics_that_each_was_sent():
    torch.manual_seed(0)
    net = frozen_batchnorm()
    given = [Share(drawn(net, 0.7, k), data("mlp", sizes, k), len(sizes)) for k, sizes in enumerate(RAGGED)]
    module, recipe = LocalModule(net, SGD), Recipe(freeze_batchnorm=True)
    assert obstacle(module, recipe, data("mlp", [3], 0)[0]) is None
    for share, one in zip(given, compare(module, given, recipe), strict=True):
        for name in ("2.running_mean", "2.running_var", "2.num_batches_tracked"):
            assert torch.equal(one.params[name], share.subnet.params[name])


def test_it_comes_to_the_same_bits_again_and_leaves_what_it_was_given():
    given, module = shares("lenet5", RAGGED, 0.5), LocalModule(NETS["lenet5"][0](), OPTIMIZERS["sgd, momentum, decay"])
    before = [{n: t.clone() for n, t in share.subnet.params.items()} for share in given]
    random_state = torch.get_rng_state()
    first, second = (fit_together(module, given, Recipe()) for _ in range(2))
    for a, b, share, old in zip(first, second, given, before, strict=True):
        assert a[1:] == b[1:]
        assert all(torch.equal(a.params[n], b.params[n]) for n in a.params)
        assert all(torch.equal(share.subnet.params[n], old[n]) for n in old)
    assert torch.equal(torch.get_rng_state(), random_state)
    memory = [t.untyped_storage().data_ptr() for one in first for t in one.params.values()]
    assert len(set(memory)) == len(memory)


def test_a_step_is_made_for_those_alone_who_have_a_batch(monkeypatch):
    seen, joined = [], train_vmapped._joined
    monkeypatch.setattr(train_vmapped, "_joined", lambda batches: (seen.append(len(batches)), joined(batches))[1])
    fit_together(LocalModule(mlp(), SGD), shares("mlp", ((2,), (2, 2, 2), (), (2, 2, 1))), Recipe())
    assert seen == [3, 2, 2]


# --- obstacles ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", [LocalModule, SquaredError])
def test_to_these_networks_there_is_no_obstacle(name, kind):
    assert obstacle(kind(NETS[name][0](), OPTIMIZERS["adam, fused"]), Recipe(), data(name, [3], 0)[0]) is None


class Mine(LocalModule):
    """Might do anything in a step."""


class Mixing(nn.Module):
    """Each example is seen beside the mean of its batch."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x - x.mean(0))


class Counting(nn.Module):
    """Remembers something of what it saw."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x):
        self.seen = self.seen + x.detach().mean(0)
        return self.fc(x)


class Choosing(nn.Module):
    """Goes by the values that it sees."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x) if float(x.sum()) > 0 else -self.fc(x)


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))


class Restless(torch.optim.SGD):
    """Not one of those that are known."""


@pytest.mark.parametrize(
    ("module", "recipe", "why"),
    [
        (Mine(mlp(), SGD), Recipe(), "what Mine does in a step is not known"),
        (LocalModule(mlp(), SGD), Recipe(clip_norm=1.0), "local.clip_norm"),
        (LocalModule(mlp(), SGD), Recipe(error_feedback=True), "local.error_feedback"),
        (LocalModule(mlp(), SGD), Recipe(keep_optimizer=True), "federated.optimizer_state=kept"),
        (LocalModule(mlp(), partial(Restless, lr=0.1)), Recipe(), "Restless may not treat each entry by itself"),
        (LocalModule(frozen_batchnorm(), SGD), Recipe(), "BatchNorm looks at whole batches"),
        (LocalModule(with_dropout(), SGD), Recipe(), "cannot be batched .*random"),
        (LocalModule(Choosing(), SGD), Recipe(), "cannot be batched"),
        (LocalModule(Mixing(), SGD), Recipe(), "batched, comes to something else"),
        (LocalModule(Counting(), SGD), Recipe(), "batched, comes to something else"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_not_come_to_the_same_is_refused(module, recipe, why):
    assert re.search(why, obstacle(module, recipe, data("mlp", [3], 0)[0]) or "")


def test_a_recurrent_layer_would_run_client_by_client_after_all():
    batch = tuple(torch.randint(11, (3, 7)) for _ in range(2))
    assert "cannot be batched" in (obstacle(LocalModule(char_lstm((7,), 11), SGD), Recipe(), batch) or "")


def test_a_batched_model_that_is_wrong_is_found_out(monkeypatch):
    """The trial sees a gradient that is a little off in one layer."""
    right = fit_together

    def wrong(module, given, recipe):
        made = right(module, given, recipe)
        start, params = given[1].subnet.params["1.bias"], dict(made[1].params)
        params["1.bias"] = start + 1.1 * (params["1.bias"] - start)
        return [made[0], made[1]._replace(params=params)]

    monkeypatch.setattr(batched_check, "fit_together", wrong)
    assert "something else" in (obstacle(LocalModule(mlp(), SGD), Recipe(), data("mlp", [3], 0)[0]) or "")


def test_hooks_of_one_object_and_of_a_parameters_gradient_are_an_obstacle():
    batch = data("mlp", [3], 0)[0]
    patched, listening = LocalModule(mlp(), SGD), LocalModule(mlp(), SGD)
    patched.on_after_backward = lambda: None
    next(listening.net.parameters()).register_post_accumulate_grad_hook(lambda parameter: None)
    assert "not known" in (obstacle(patched, Recipe(), batch) or "")
    assert "hooks wait for gradients" in (obstacle(listening, Recipe(), batch) or "")
