"""The lean loop against plain torch: the same steps where everything lives, and what is dead stays dead under any optimizer."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from fedprune.errors import ConfigError
from fedprune.local.frozen import frozen
from fedprune.local.module import LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.train import Trained, fit, load, unload
from fedprune.pruning.mask import apply
from fedprune.types import Mask, Params, Subnet

SGD = partial(torch.optim.SGD, lr=0.1)
OPTIMIZERS = {
    "sgd": SGD,
    "sgd, momentum, decay": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "sgd, nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "sgd, fused": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.01),
    "adam, fused": partial(torch.optim.Adam, lr=0.01, amsgrad=True, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05, weight_decay=0.01),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
}
MU = 0.7


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batchnorm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def data(steps: int = 5, size: int = 12, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)) for _ in range(steps)]


def subnet(make_net=mlp, seed: int = 0, density: float = 1.0) -> Subnet:
    torch.manual_seed(seed)
    params = unload_net(make_net())
    names = [name for name in params if name.endswith("weight") and params[name].dim() > 1]
    mask = {name: torch.rand(params[name].shape) < density for name in names}
    return Subnet(apply(params, mask), mask)


def unload_net(net: nn.Module) -> Params:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def module(optimizer: Callable = SGD, make_net=mlp, kind=LocalModule) -> LocalModule:
    return kind(make_net(), optimizer)


def plain_torch(
    sent: Subnet, batches, optimizer=SGD, make_net=mlp, penalty=lambda net: 0.0, before_step=lambda net: None
) -> Params:
    """The loop that everybody would write for a dense network."""
    net = make_net()
    net.load_state_dict(sent.params)
    steps = optimizer(net.parameters())
    for x, y in batches:
        steps.zero_grad()
        (F.cross_entropy(net(x), y) + penalty(net)).backward()
        before_step(net)
        steps.step()
    return unload_net(net)


def masked_bits(params: Params, mask: Mask) -> bool:
    """w == w * m, bitwise."""
    return all(torch.equal(params[n].view(torch.int32), (params[n] * m).view(torch.int32)) for n, m in mask.items())


# --- dead weights ----------------------------------------------------------------------------------------------------------


class Watched(LocalModule):
    """Sees the weights at the start of every step, that is, after every step but the last."""

    mask: Mask

    def training_step(self, batch, batch_idx):
        self.seen = getattr(self, "seen", 0) + masked_bits(self.net.state_dict(), self.mask)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dead_weights_are_zero_after_every_step(name, clip_norm):
    sent = subnet(density=0.4)
    watched = module(OPTIMIZERS[name], kind=Watched)
    watched.mask = sent.mask
    trained = fit(watched, sent, data(6), Recipe(clip_norm=clip_norm, proximal_mu=0.1))
    assert watched.seen == 6
    assert masked_bits(trained.params, sent.mask)
    assert not any(bool(trained.params[n][~m].any()) for n, m in sent.mask.items())
    assert bool(
        (trained.params["2.weight"] != sent.params["2.weight"])[sent.mask["2.weight"]].all()
    )  # and the living are trained


class Restless(torch.optim.SGD):
    """Moves every weight, whatever its gradient: noise, as in Langevin dynamics."""

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(0.1)


class Norm(torch.optim.Optimizer):
    """Does not act entry by entry: each tensor moves by its gradient divided by the gradient's norm."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(group["lr"] * parameter.grad / parameter.grad.norm())


@pytest.mark.parametrize("optimizer", [partial(Restless, lr=0.1), partial(Norm, lr=0.1)])
def test_dead_weights_are_zero_even_under_an_optimizer_that_does_not_act_entry_by_entry(optimizer):
    sent = subnet(density=0.4)
    trained = fit(module(optimizer), sent, data(), Recipe())
    assert not any(bool(trained.params[n][~m].any()) for n, m in sent.mask.items())


def test_an_optimizer_that_looks_at_whole_tensors_sees_gradients_of_the_living_only():
    sent = subnet(density=0.4)
    batch = data(1)

    def masks_gradients(net):
        for name, parameter in net.named_parameters():
            parameter.grad.mul_(sent.mask.get(name, 1))

    trained = fit(module(partial(Norm, lr=0.1)), sent, batch, Recipe())
    expected = plain_torch(sent, batch, partial(Norm, lr=0.1), before_step=masks_gradients)
    torch.testing.assert_close(trained.params, apply(expected, sent.mask))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_living_weights_train_as_under_a_mask_in_the_forward_pass(name):
    # torch.nn.utils.prune multiplies by the mask in every forward pass, so that gradients of the dead vanish; the dead
    # originals, which start at zero, are not looked at.
    sent, batches = subnet(density=0.4), data()
    net = mlp()
    net.load_state_dict(sent.params)
    for i in (0, 2):
        prune.custom_from_mask(net[i], "weight", sent.mask[f"{i}.weight"])
    optimizer = OPTIMIZERS[name](net.parameters())
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    for i in (0, 2):
        prune.remove(net[i], "weight")
    torch.testing.assert_close(fit(module(OPTIMIZERS[name]), sent, batches, Recipe()).params, unload_net(net))


def test_a_network_that_is_dead_altogether_trains_its_biases():
    sent = subnet(density=0.0)
    trained = fit(module(), sent, data(), Recipe())
    assert not any(bool(trained.params[n].any()) for n in sent.mask)
    assert not torch.equal(trained.params["2.bias"], sent.params["2.bias"])


class HalfUsed(nn.Module):
    """One layer of two takes part, and one parameter is frozen."""

    def __init__(self):
        super().__init__()
        self.idle, self.used, self.scale = nn.Linear(6, 3), nn.Linear(6, 3), nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        return self.used(x) * self.scale


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(proximal_mu=MU), Recipe(clip_norm=0.1)], ids=["plain", "proximal", "clip"])
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_layers_without_a_gradient_stay_as_they_are_and_do_not_disturb_the_others(recipe, density):
    sent = subnet(HalfUsed, density=density)
    trained = fit(module(make_net=HalfUsed), sent, data(), recipe).params
    for name in ("idle.weight", "idle.bias", "scale"):
        assert torch.equal(trained[name], sent.params[name])
    alive = sent.mask["used.weight"]
    assert not trained["used.weight"][~alive].any()
    assert bool((trained["used.weight"] != sent.params["used.weight"])[alive].all())


def test_what_is_fixed_stays_as_it_is_once_anything_is_pruned():
    batches = data()
    for density, still in ((1.0, False), (0.5, True)):
        sent = subnet(density=density)
        trained = fit(module(), sent, batches, Recipe(fixed=["0"])).params
        assert torch.equal(trained["0.weight"], sent.params["0.weight"]) is still
        assert torch.equal(trained["0.bias"], sent.params["0.bias"]) is still
        assert not torch.equal(trained["2.weight"], sent.params["2.weight"])


def test_the_learning_rate_is_multiplied_once_anything_is_pruned():
    """The first step of plain SGD moves weights by lr x gradient."""
    (batch,) = data(1)
    plain = partial(torch.optim.SGD, lr=0.1)
    for density, factor in ((1.0, 1.0), (0.5, 0.25)):
        sent = subnet(density=density)
        full, less = (fit(module(plain), sent, [batch], Recipe(retrain_lr=r)).params["0.weight"] for r in (1.0, 0.25))
        start = sent.params["0.weight"]
        torch.testing.assert_close(less - start, factor * (full - start))


def test_a_fixed_layer_whose_name_reads_as_a_number_is_found_by_it_or_asked_for_in_quotes():
    """YAML makes 0.1 of 0.10: the eleventh layer of a Sequential in a Sequential, and not the second."""
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), *(nn.ReLU() for _ in range(9)), nn.Linear(2, 2)))
    with frozen(net, [0.10]):
        assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["0.10.weight", "0.10.bias"]
    net[0][1] = nn.Linear(2, 2)
    message = r"local\.fixed: 0\.1 is 0\.1 or 0\.10: type it in quotes, as '0\.10'"
    with pytest.raises(ConfigError, match=message), frozen(net, [0.10]):
        pass
    with frozen(net, ["0.10"]):
        assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["0.10.weight", "0.10.bias"]


def test_names_that_read_as_numbers_reach_the_recipe_as_they_were_read(compose):
    assert compose("local.fixed=[conv,0.10,'0.10']")[0].local.fixed == ["conv", 0.1, "0.10"]


def test_a_layer_that_is_not_there_cannot_be_fixed():
    message = r"local\.fixed: no layer 'fc9'; the kinds are conv, linear, recurrent, attention, embedding, the layers 0, 2"
    with pytest.raises(ConfigError, match=message), frozen(mlp(), ["fc9"]):
        pass


# --- equivalence with plain torch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_where_everything_lives_it_is_the_plain_loop(name):
    sent, batches = subnet(), data()
    torch.testing.assert_close(
        fit(module(OPTIMIZERS[name]), sent, batches, Recipe()).params, plain_torch(sent, batches, OPTIMIZERS[name])
    )


def test_the_proximal_term_is_the_gradient_of_its_formula():
    sent, batches = subnet(), data()

    def pull(net):
        return MU / 2 * sum((p - sent.params[n]).square().sum() for n, p in net.named_parameters())

    expected = plain_torch(sent, batches, penalty=pull)
    torch.testing.assert_close(fit(module(), sent, batches, Recipe(proximal_mu=MU)).params, expected)
    assert not torch.allclose(expected["0.weight"], plain_torch(sent, batches)["0.weight"], atol=1e-3)


def test_gradients_are_clipped_to_the_norm_of_the_living_with_the_proximal_term():
    sent, batches, norms = subnet(density=0.3), data(), []

    def clip(net):
        for name, p in net.named_parameters():
            p.grad = (p.grad + MU * (p.detach() - sent.params[name])) * sent.mask.get(name, torch.tensor(1))
        norms.append(float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm()))
        for p in net.parameters():
            p.grad.mul_(min(1.0, 0.2 / norms[-1]))

    expected = plain_torch(sent, batches, before_step=clip)
    torch.testing.assert_close(fit(module(), sent, batches, Recipe(clip_norm=0.2, proximal_mu=MU)).params, expected)
    assert min(norms) > 0.2


def test_a_norm_that_is_small_enough_is_not_clipped():
    sent, batches = subnet(), data()
    torch.testing.assert_close(fit(module(), sent, batches, Recipe(clip_norm=1e6)).params, plain_torch(sent, batches))


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.01])
def test_the_learning_rate_is_multiplied_in_every_group(decay):
    def two_groups(parameters, scale=1.0):
        parameters = list(parameters)
        return torch.optim.SGD([{"params": parameters[:2], "lr": 0.3 * scale}, {"params": parameters[2:], "lr": 0.1 * scale}])

    sent, batches = subnet(), data()
    expected = plain_torch(sent, batches, partial(two_groups, scale=decay))
    torch.testing.assert_close(fit(module(two_groups), sent, batches, Recipe(), decay).params, expected)


def test_a_training_step_may_return_a_dictionary_and_is_told_the_number_of_the_step():
    numbers = []

    class Chatty(LocalModule):
        def training_step(self, batch, batch_idx):
            numbers.append(batch_idx)
            return {"loss": super().training_step(batch, batch_idx), "more": "of it"}

    sent, batches = subnet(), data(4)
    torch.testing.assert_close(fit(module(kind=Chatty), sent, batches, Recipe()).params, plain_torch(sent, batches))
    assert numbers == [0, 1, 2, 3]


# --- what it tells, and what it leaves alone ---------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_examples_seen():
    sent = subnet()
    batches = data(1, size=10) + data(1, size=2, seed=1)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    net = mlp()
    net.load_state_dict(sent.params)
    trained = fit(module(partial(torch.optim.SGD, lr=0.0)), sent, batches, Recipe())
    assert trained.loss == pytest.approx(float(F.cross_entropy(net(x), y).detach()))
    assert (trained.steps, trained.examples) == (2, 12)


def test_without_a_batch_nothing_changes():
    sent = subnet()
    assert fit(module(), sent, [], Recipe())[1:] == Trained({}, 0.0, 0, 0, {})[1:]
    assert all(torch.equal(value, sent.params[name]) for name, value in fit(module(), sent, [], Recipe()).params.items())


@pytest.mark.parametrize("make_net", [mlp, batchnorm])
@pytest.mark.parametrize("density", [0.4, 1.0])
def test_the_subnet_is_not_changed_and_shares_no_memory_with_what_comes_back(make_net, density):
    sent = subnet(make_net, density=density)
    before = {name: value.clone() for name, value in (sent.params | {f"mask {n}": m for n, m in sent.mask.items()}).items()}
    local = module(OPTIMIZERS["sgd, momentum, decay"], make_net)
    trained = fit(local, sent, data(), Recipe(proximal_mu=MU))
    memory = [{t.data_ptr() for t in part.values()} for part in (sent.params, trained.params, local.net.state_dict())]
    assert not memory[0] & memory[1]
    assert not memory[1] & memory[2]
    assert not memory[2] & memory[0]
    fit(local, subnet(make_net, seed=5), data(), Recipe())
    now = sent.params | {f"mask {n}": m for n, m in sent.mask.items()}
    assert all(torch.equal(value, before[name]) for name, value in now.items())


@pytest.mark.parametrize("make_net", [mlp, batchnorm])
def test_a_module_remembers_nothing_from_job_to_job(make_net):
    used = module(OPTIMIZERS["sgd, momentum, decay"], make_net)
    for seed, density in ((1, 1.0), (2, 0.3), (3, 0.6)):
        fit(used, subnet(make_net, seed, density), data(seed=seed), Recipe(clip_norm=0.5))
    used.eval()
    sent = subnet(make_net, 4, 0.5)
    again, fresh = (
        fit(local, sent, data(), Recipe()) for local in (used, module(OPTIMIZERS["sgd, momentum, decay"], make_net))
    )
    assert again[1:] == fresh[1:]
    assert all(torch.equal(again.params[n], fresh.params[n]) for n in fresh.params)


def test_load_and_unload_copy():
    sent, local = subnet(batchnorm), module(make_net=batchnorm)
    load(local, sent.params)
    back = unload(local)
    assert all(torch.equal(back[name], sent.params[name]) for name in sent.params)
    for tensor in back.values():
        tensor.fill_(9)
    assert all(torch.equal(unload(local)[name], sent.params[name]) for name in sent.params)


# --- BatchNorm -------------------------------------------------------------------------------------------------------------


def test_batchnorm_trains_with_its_batches_and_counts_them():
    sent = subnet(batchnorm)
    trained = fit(module(make_net=batchnorm), sent, data(5), Recipe())
    torch.testing.assert_close(trained.params, plain_torch(sent, data(5), make_net=batchnorm))
    assert int(trained.params["1.num_batches_tracked"]) == 5
    assert not torch.equal(trained.params["1.running_mean"], sent.params["1.running_mean"])


def test_frozen_batchnorm_normalises_with_the_statistics_that_it_was_sent():
    def frozen():
        net = batchnorm()
        net[1].eval()
        return net

    sent = subnet(batchnorm)
    sent.params["1.running_mean"].copy_(torch.linspace(-1, 1, 8))
    sent.params["1.running_var"].copy_(torch.linspace(0.5, 2, 8))
    trained = fit(module(make_net=batchnorm), sent, data(), Recipe(freeze_batchnorm=True)).params
    torch.testing.assert_close(trained, plain_torch(sent, data(), make_net=frozen))
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(trained[name], sent.params[name])
    assert not torch.equal(trained["1.weight"], sent.params["1.weight"])  # scale and shift are trained


# --- refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda p: None, "returned None: return a torch optimizer"),
        (lambda p: [SGD(p), SGD(p)], "returned 2 optimizers: return one"),
        (lambda p: 3, "Unknown configuration"),
        (lambda p: {"lr_scheduler": None}, "optimizer"),
        (
            lambda p: {
                "optimizer": (o := SGD(p)),
                "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(o), "monitor": "train/loss"},
            },
            "ReduceLROnPlateau compares epochs",
        ),
    ],
)
def test_anything_but_one_optimizer_is_refused(answer, message):
    class Mine(LocalModule):
        def configure_optimizers(self):
            return answer([*self.net.parameters()])

    with pytest.raises(ConfigError, match=rf"Mine\.configure_optimizers.*{message}"):
        fit(module(kind=Mine), subnet(), data(), Recipe())


@pytest.mark.parametrize(
    "answer", [lambda o: o, lambda o: {"optimizer": o}, lambda o: [o], lambda o: ([o], []), lambda o: ({"optimizer": o},)]
)
def test_one_optimizer_may_come_in_any_form_that_lightning_takes(answer):
    class Mine(LocalModule):
        def configure_optimizers(self):
            return answer(SGD(self.net.parameters()))

    sent, batches = subnet(), data()
    torch.testing.assert_close(fit(module(kind=Mine), sent, batches, Recipe()).params, plain_torch(sent, batches))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": None}, "local.epochs=None and local.steps=None: give one"),
        ({"steps": 3}, "local.epochs=1 and local.steps=3: give one"),
        ({"epochs": 0}, "local.epochs=0 must be at least 1"),
        ({"epochs": None, "steps": 0}, "local.steps=0 must be at least 1"),
        ({"batch_size": 0}, "local.batch_size=0 must be at least 1"),
        ({"lr_decay": 0.0}, "local.lr_decay=0.0 multiplies the learning rate"),
        ({"clip_norm": 0.0}, "local.clip_norm=0.0 must be positive"),
        ({"clip_norm": -1.0}, "local.clip_norm=-1.0 must be positive"),
        ({"proximal_mu": -0.1}, "local.proximal_mu=-0.1 must not be negative"),
    ],
)
def test_a_recipe_out_of_range_is_refused_by_name(values, message):
    with pytest.raises(ConfigError) as caught:
        Recipe(**values)
    assert len(caught.value.problems) == 1
    assert message in caught.value.problems[0]


def test_all_problems_of_a_recipe_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        Recipe(epochs=0, batch_size=0, clip_norm=-1.0)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("values", [{}, {"epochs": None, "steps": 1}, {"clip_norm": 0.1, "proximal_mu": 0.0, "lr_decay": 0.99}])
def test_a_sound_recipe_is_accepted(values):
    Recipe(**values)
