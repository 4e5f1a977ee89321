"""Penalties: values and gradients by hand and against finite differences; what fit makes of them."""

import math
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from fedprune.config import CONF
from fedprune.config.instantiate import make
from fedprune.errors import ConfigError
from fedprune.local.module import LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import add_companions, regularised
from fedprune.local.regularisers.penalty import bn_l1, group_lasso, l0, l1, l2, open_gates, penalty
from fedprune.local.train import fit
from fedprune.pruning.evidence.hard_concrete import BETA
from fedprune.pruning.mask import apply
from fedprune.types import Subnet

SGD = partial(torch.optim.SGD, lr=0.1)
NAMES = ("0.weight", "3.weight")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def data(steps: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)) for _ in range(steps)]


def subnet(density: float = 1.0, regulariser=None) -> Subnet:
    made = net()
    add_companions(made, NAMES, [regulariser] if regulariser else [], torch.Generator())
    params = {name: tensor.detach().clone() for name, tensor in made.state_dict().items()}
    mask = {name: torch.rand(params[name].shape) < density for name in NAMES}
    return Subnet(apply(params, mask), mask)


def trained(sent: Subnet, regulariser, batches=None, optimizer=SGD):
    module = LocalModule(net(), optimizer)
    add_companions(module.net, NAMES, [regulariser], torch.Generator())
    with regularised(module.net, sent.mask, [regulariser], 100) as term:
        return fit(module, sent, data() if batches is None else batches, Recipe(), penalty=term)


# --- formulas by hand ------------------------------------------------------------------------------------------------------

WEIGHTS = {"a": torch.tensor([[3.0, -4.0], [0.0, 1.0]]), "b": torch.tensor([[-2.0, 0.0, 0.0]])}


def test_l1_by_hand():
    assert float(l1(WEIGHTS)) == 3 + 4 + 1 + 2


def test_l2_by_hand():
    assert float(l2(WEIGHTS)) == (9 + 16 + 1 + 4) / 2


def test_group_lasso_by_hand():
    # Rows: (3, -4) of norm 5 and (0, 1) of norm 1, of 2 entries; (-2, 0, 0) of norm 2, of 3 entries.
    assert float(group_lasso(WEIGHTS)) == pytest.approx(math.sqrt(2) * (5 + 1) + math.sqrt(3) * 2)


def test_a_filter_is_a_group_with_all_its_entries():
    # Two filters of 2 x 3 x 3 = 18 entries, of ones and of zeros: sqrt(18) sqrt(18) + 0.
    kernel = torch.stack([torch.ones(2, 3, 3), torch.zeros(2, 3, 3)])
    assert float(group_lasso({"conv": kernel})) == pytest.approx(18)


def test_bn_l1_by_hand():
    assert float(bn_l1({"norm": torch.tensor([0.5, -1.5]), "other": torch.tensor([2.0])})) == 4


def test_open_gates_by_hand():
    # BETA log(-GAMMA / ZETA) = -BETA log 11: at log_alpha = -BETA log 11 a gate is open half the time, BETA log 3 above that
    # with sigmoid(BETA log 3) = 3^BETA / (1 + 3^BETA). The third is dead and does not count.
    at = -BETA * math.log(11)
    gates = {"a": torch.tensor([at, at + BETA * math.log(3), 5.0])}
    expected = 0.5 + 3**BETA / (1 + 3**BETA)
    assert float(open_gates(gates, {"a": torch.tensor([1.0, 1.0, 0.0])})) == pytest.approx(expected)


# --- gradients -------------------------------------------------------------------------------------------------------------


def random_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (3, 4), "b": (2, 3, 2, 2)}
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for n, s in shapes.items()}


def all_alive(tensors):
    return {name: torch.ones_like(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("formula", [l1, l2, group_lasso, bn_l1, lambda t: open_gates(t, all_alive(t))])
def test_gradients_are_those_of_finite_differences(formula):
    tensors = random_tensors()
    assert torch.autograd.gradcheck(lambda *values: formula(dict(zip(tensors, values, strict=True))), tuple(tensors.values()))


def gradients(formula, tensors):
    return dict(zip(tensors, torch.autograd.grad(formula(tensors), list(tensors.values())), strict=True))


def test_gradients_are_what_their_docstrings_say():
    tensors = random_tensors()
    for name, w in tensors.items():
        assert torch.equal(gradients(l1, tensors)[name], w.sign())
        torch.testing.assert_close(gradients(l2, tensors)[name], w.detach())
        rows = w.detach().flatten(1)
        units = math.sqrt(rows.shape[1]) * rows / rows.square().sum(1, keepdim=True).sqrt()
        torch.testing.assert_close(gradients(group_lasso, tensors)[name].flatten(1), units)


@pytest.mark.parametrize("formula", [l1, l2, group_lasso])
def test_what_is_zero_stays_zero(formula):
    tensors = {"a": torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)}
    found = gradients(formula, tensors)["a"]
    assert found[0].tolist() == [0, 0] and float(found[1, 1]) == 0 and float(found[1, 0]) > 0


def test_dead_gates_have_no_gradient():
    tensors = {"a": torch.zeros(2, requires_grad=True)}
    found = gradients(lambda t: open_gates(t, {"a": torch.tensor([1.0, 0.0])}), tensors)["a"]
    assert float(found[0]) > 0 and float(found[1]) == 0


# --- in training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_l2_is_weight_decay_on_the_prunable_weights_alone(momentum):
    sent, batches = subnet(), data()
    plain = net()
    plain.load_state_dict(sent.params)
    decayed = [plain[0].weight, plain[3].weight]
    others = [p for p in plain.parameters() if all(p is not d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=momentum)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    found = trained(sent, penalty(l2, 0.3), batches, partial(torch.optim.SGD, lr=0.1, momentum=momentum))
    torch.testing.assert_close(found.params, dict(plain.state_dict()))


def test_one_step_of_bn_l1_moves_scales_by_their_sign_and_nothing_else():
    sent = subnet()
    sent.params["1.weight"].copy_(torch.tensor([0.5, -0.5] * 4))
    with_it, without = trained(sent, penalty(bn_l1, 0.2), data(1)).params, trained(sent, penalty(bn_l1, 0.0), data(1)).params
    torch.testing.assert_close(with_it["1.weight"], without["1.weight"] - 0.1 * 0.2 * sent.params["1.weight"].sign())
    assert all(torch.equal(with_it[name], without[name]) for name in with_it if name != "1.weight")


@pytest.mark.parametrize("option", [penalty(l1, 0.1), penalty(group_lasso, 0.1), l0(0.1, 0.2)])
def test_the_loss_that_is_told_is_the_datas(option):
    sent = subnet(regulariser=option)
    still = partial(torch.optim.SGD, lr=0.0)
    torch.manual_seed(0)
    told = trained(sent, option, optimizer=still).loss
    torch.manual_seed(0)  # the same gates are sampled
    weightless = type(option)(option.formula, 0.0, option.layers, option.companion)
    assert told == trained(sent, weightless, optimizer=still).loss


def test_a_strong_penalty_closes_gates():
    option = l0(1.0, 0.2)
    sent = subnet(regulariser=option)
    adam = partial(torch.optim.Adam, lr=0.5)
    gates = trained(sent, option, data(30), adam).params["0.weight_log_alpha"]
    assert bool((gates < sent.params["0.weight_log_alpha"] - 2).all())


def test_dead_gates_stand_still():
    option = l0(0.1, 0.2)
    sent = subnet(0.5, option)
    gates, alive = trained(sent, option).params["0.weight_log_alpha"], sent.mask["0.weight"]
    start = sent.params["0.weight_log_alpha"]
    assert torch.equal(gates[~alive], start[~alive]) and bool((gates != start)[alive].all())


# --- what is refused -------------------------------------------------------------------------------------------------------


def test_a_penalty_on_what_there_is_not_is_refused_with_what_there_is():
    def lunar(moon): ...

    with pytest.raises(ConfigError, match="asks for moon; known: weights, alive, scales"):
        penalty(lunar, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: penalty(l1, -1.0), "local.penalty.strength=-1.0 must not be negative"),
        (lambda: l0(-1.0, 0.5), "local.penalty.strength=-1.0 must not be negative"),
        (lambda: l0(1.0, 0.0), "local.penalty.drop_rate=0.0"),
        (lambda: l0(1.0, 1.0), "local.penalty.drop_rate=1.0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_every_formula_has_a_yaml():
    formulas = {l1, l2, group_lasso, bn_l1, open_gates}
    roots = [OmegaConf.create({"rounds": 10, "penalty": OmegaConf.load(path)}) for path in CONF.glob("local/penalty/*.yaml")]
    chosen = [make(root.penalty).formula for root in roots]
    assert {formula.func if isinstance(formula, partial) else formula for formula in chosen if formula} == formulas
