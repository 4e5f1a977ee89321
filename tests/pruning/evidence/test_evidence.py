"""Gradients equal autograd on the pooled data, federated or not, and measuring them leaves no trace."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedprune.local.module import LocalModule
from fedprune.pruning.criterion import snip
from fedprune.pruning.evidence import grads, mean, needs, unknown
from fedprune.pruning.mask import ones, shrink
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import globally
from fedprune.pruning.what.unit import weights
from fedprune.types import Params
from helpers.measuring import SGD, batchnorm_dropout, data, mlp, state


def assert_same(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def module_at_other_weights(make_net=mlp) -> tuple[LocalModule, Params, tuple[str, ...]]:
    """A module, and the parameters of another network of the same kind, at which to measure."""
    torch.manual_seed(1)
    module = LocalModule(make_net(), SGD)
    params = state(make_net())
    return module, params, tuple(name for name in params if name.endswith("weight") and params[name].dim() > 1)


def autograd(make_net, params: Params, names: tuple[str, ...], x: torch.Tensor, y: torch.Tensor) -> Params:
    net = make_net()
    net.load_state_dict(params)
    F.cross_entropy(net.train()(x), y).backward()
    found = dict(net.named_parameters())
    return {name: found[name].grad for name in names}


@pytest.mark.parametrize("sizes", [(13,), (5, 5, 3), (1, 8, 4)])
def test_grads_are_those_of_the_mean_loss_over_all_batches(sizes):
    module, params, names = module_at_other_weights()
    x, y = data(13)
    measured = grads(module, params, names, zip(x.split(sizes), y.split(sizes), strict=True))
    torch.testing.assert_close(measured, autograd(mlp, params, names, x, y))


def test_grads_are_had_for_the_named_tensors_only_and_also_where_nothing_reaches():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.used(x)

    module, params, _ = module_at_other_weights(Unused)
    measured = grads(module, params, ("used.weight", "unused.weight"), [data(4)])
    assert measured.keys() == {"used.weight", "unused.weight"}
    assert bool(measured["used.weight"].any())
    assert not measured["unused.weight"].any()


def test_gradients_of_dead_entries_are_measured_too():
    module, params, names = module_at_other_weights()
    params["2.weight"].zero_()
    assert bool(grads(module, params, names, [data(8)])["2.weight"].any())


def test_gradients_of_clients_averaged_by_examples_are_those_of_the_pooled_data():
    module, params, names = module_at_other_weights()
    x, y = data(30)
    sizes = (20, 3, 7)
    parts = [
        (grads(module, params, names, [batch]), len(batch[0])) for batch in zip(x.split(sizes), y.split(sizes), strict=True)
    ]
    pooled = autograd(mlp, params, names, x, y)
    torch.testing.assert_close(mean(parts), pooled)

    prunable = {name: params[name] for name in names}
    what = What(weights, globally, names=names)
    alive = ones(params, names)
    masks = [shrink(alive, snip(prunable, g), 0.4, what) for g in (mean(parts), pooled)]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in names)


def test_mean_by_hand():
    parts = [({"w": torch.tensor([1.0, 2.0])}, 1), ({"w": torch.tensor([5.0, -2.0])}, 3)]
    # (1 + 3 x 5) / 4 and (2 - 3 x 2) / 4
    assert mean(iter(parts))["w"].tolist() == [4.0, -1.0]


def test_grads_are_measured_in_the_mode_that_the_module_is_in():
    def batchnorm():
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))

    module, params, names = module_at_other_weights(batchnorm)
    x, y = data(16)
    expected = autograd(batchnorm, params, names, x, y)
    torch.testing.assert_close(grads(module.train(), params, names, [(x, y)]), expected)
    normalised_with_running_statistics = grads(module.eval(), params, names, [(x, y)])
    assert not torch.allclose(normalised_with_running_statistics["0.weight"], expected["0.weight"])


def test_measuring_leaves_no_trace():
    module, params, names = module_at_other_weights(batchnorm_dropout)
    module.train()
    module.net[1].eval()  # flags that differ
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    flags = [part.training for part in module.modules()]
    module_before, random_before = state(module.net), torch.get_rng_state()
    params_before = {name: value.clone() for name, value in params.items()}

    grads(module, params, names, [data(8), data(8, seed=1)])

    assert [part.training for part in module.modules()] == flags
    assert_same(state(module.net), module_before)
    assert_same(params, params_before)
    assert not any(value.requires_grad for value in params.values())
    assert all(bool((parameter.grad == 7.0).all()) for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), random_before)


def test_dropout_draws_from_the_callers_seed():
    module, params, names = module_at_other_weights(batchnorm_dropout)

    def measured(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return grads(module, params, names, [data(8)])["0.weight"]

    assert torch.equal(measured(0), measured(0))
    assert not torch.equal(measured(0), measured(1))


def test_what_is_measured_shares_no_memory_with_the_parameters():
    module, params, names = module_at_other_weights()
    for gradient in grads(module, params, names, [data(4)]).values():
        assert not gradient.requires_grad
        gradient.fill_(9.0)
    assert not any(bool((value == 9.0).any()) for value in [*params.values(), *state(module.net).values()])


def test_a_training_step_may_return_a_dictionary_with_the_loss():
    class Chatty(LocalModule):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "seen": len(batch[0])}

    module, params, names = module_at_other_weights()
    torch.testing.assert_close(
        grads(Chatty(module.net, SGD), params, names, [data(4)]), grads(module, params, names, [data(4)]), rtol=0, atol=0
    )


def test_needs_are_the_arguments_without_a_default_also_of_partials():
    def formula(params, grads, alpha=1.0, *, generator, beta=2.0, **rest): ...

    assert needs(formula) == ("params", "grads", "generator")
    assert needs(partial(formula, alpha=3.0)) == ("params", "grads", "generator")
    assert needs(partial(formula, beta=0.0, alpha=3.0)) == ("params", "grads", "generator")


def test_unknown_lists_what_nobody_can_measure():
    def formula(params, moon_phase, grads, tide): ...

    assert unknown(formula) == ["moon_phase", "tide"]
    assert unknown(snip) == []
