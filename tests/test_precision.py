"""Half precision: which optimizers are trusted with it, and sums and means that are taken in float32 and rounded once."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedprune.errors import ConfigError
from fedprune.execution.arrays import as_array, as_tensor
from fedprune.federated.server.accumulator import merged
from fedprune.federated.server.aggregate import OverlapMean, intersection, mean_with_zeros
from fedprune.federated.server.optimizer import FedAdam, FedAvgM
from fedprune.federated.server.robust import CoordinateMedian, TrimmedMean
from fedprune.federated.server.scaffold import stepped, summed
from fedprune.local.module import LocalModule
from fedprune.local.recipe import Recipe
from fedprune.local.regularisers.base import regularised
from fedprune.local.regularisers.penalty import l1, penalty
from fedprune.local.state.scaffold import Controls
from fedprune.local.step import clip_wide
from fedprune.local.train import fit, unload
from fedprune.precision import finite, wide
from fedprune.pruning.evidence.curvature import sq_grads
from fedprune.pruning.what.top_k import keep_best
from fedprune.types import Subnet, Update

HALVES = [torch.float16, torch.bfloat16]
OPTIMIZERS = [
    partial(torch.optim.SGD, lr=0.1),
    partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    partial(torch.optim.Adam, lr=0.1, eps=1e-3),
]


def net_of(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, dtype=dtype), nn.Tanh(), nn.Linear(5, 3, dtype=dtype))


def batches(dtype: torch.dtype, number: int = 3, size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 6, generator=generator).to(dtype), torch.arange(size) % 3) for _ in range(number)]


# --- optimizers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_a_network_trains_as_under_plain_torch_whatever_fused_says(dtype, optimizer):
    # torch 2.13's fused SGD leaves bfloat16 and float16 almost as they are.
    module = LocalModule(net_of(dtype), partial(optimizer, fused=True))
    found = fit(module, Subnet(unload(module), {}), batches(dtype), Recipe()).params
    plain = net_of(dtype)
    steps = optimizer(plain.parameters(), fused=dtype in (torch.float32, torch.float64))
    for inputs, labels in batches(dtype):
        steps.zero_grad()
        F.cross_entropy(plain(inputs), labels).backward()
        steps.step()
    assert all(torch.equal(found[name], value) for name, value in plain.state_dict().items())
    assert not torch.equal(found["0.weight"], net_of(dtype)[0].weight)


def test_whole_numbers_beside_the_weights_do_not_stop_an_optimizer():
    # torch: "`fused=True` requires all the params to be floating point Tensors".
    net = net_of(torch.float32)
    net.register_parameter("places", nn.Parameter(torch.tensor([3, 4]), requires_grad=False))
    module = LocalModule(net, partial(torch.optim.SGD, lr=0.1, fused=True))
    found = fit(module, Subnet(unload(module), {}), batches(torch.float32), Recipe()).params
    assert found["places"].tolist() == [3, 4]


class Stubborn(LocalModule):
    """Makes an optimizer of its own."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.1, fused=True)


HALF = ("model._target_=helpers.odd_networks.Odd", "+model.half=bfloat16", "+model.whole=false")


def test_the_user_is_told_that_fused_is_off(tiny, caplog):
    tiny(*HALF)
    assert "local.optimizer.fused=true is for float32 and float64, and the network has bfloat16: it is off" in caplog.text


def test_nobody_is_told_where_it_is_on_or_was_never_asked_for(tiny, caplog):
    tiny()
    tiny(*HALF, "local.optimizer.fused=false")
    assert "fused" not in caplog.text


def test_an_optimizer_of_a_modules_own_that_would_not_train_is_refused(tiny):
    with pytest.raises(ConfigError, match="fused=True.*bfloat16.*leave fused out"):
        tiny(*HALF, f"local.module._target_={__name__}.Stubborn")


# --- training --------------------------------------------------------------------------------------------------------------


def test_a_norm_beyond_float16_does_not_make_all_gradients_zero():
    # The norm of four times 40,000 is 80,000, infinite in float16. Clipped to 2: each is 40,000 x 2 / 80,000 = 1.
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    parameter.grad = torch.full((4,), 40_000.0, dtype=torch.float16)
    assert float(clip_wide([parameter], 2.0)) == 80_000
    assert parameter.grad.tolist() == [1.0] * 4


def test_in_half_precision_gradients_are_clipped_in_a_round():
    # One step of rate 1 moves the weights by the clipped gradient, whose norm is 0.01 up to three digits.
    module = LocalModule(net_of(torch.float16), partial(torch.optim.SGD, lr=1.0))
    sent = unload(module)
    found = fit(module, Subnet(sent, {}), batches(torch.float16, 1), Recipe(clip_norm=0.01)).params
    moved = torch.cat([(found[name].double() - value.double()).flatten() for name, value in sent.items()])
    assert float(moved.norm()) == pytest.approx(0.01, rel=0.05)


class Heavy(LocalModule):
    """Has a loss of 100 on every batch."""

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).sum() * 0 + 100


def test_the_mean_of_half_precision_losses_is_not_taken_in_half_precision():
    # 100 batches of 8 with a loss of 100 each: the weighted sum, 80,000, is infinite in float16.
    module = Heavy(net_of(torch.float16), partial(torch.optim.SGD, lr=0.0))
    assert fit(module, Subnet(unload(module), {}), batches(torch.float16, 100), Recipe()).loss == 100.0


def test_gradients_are_added_up_in_float32():
    # 512 gradients of 1 and then 512 more: in bfloat16 a sum stops at 256, since 256 + 1 rounds to 256.
    class Summed(LocalModule):
        def training_step(self, batch, batch_idx):
            return self.net.weight.sum()

    module = Summed(nn.Linear(2, 1, bias=False, dtype=torch.bfloat16), partial(torch.optim.SGD, lr=0.0))
    data = batches(torch.bfloat16, 1) * 1024
    sums = fit(module, Subnet(unload(module), {}), data, Recipe(), summed=("weight",)).gradients
    assert sums["weight"].dtype == torch.float32
    assert sums["weight"].tolist() == [[1024.0, 1024.0]]


def test_a_penalty_is_worked_out_in_float32():
    # 0.1 x 4 x 49,984 = 19,993.6, of a sum that is infinite in float16; and 0.1 times its gradient, 1, is 0.1 rounded once.
    net = nn.Linear(2, 2, bias=False, dtype=torch.float16)
    nn.init.constant_(net.weight, 49_984)
    with regularised(net, {"weight": torch.ones(2, 2, dtype=torch.bool)}, [penalty(l1, 0.1)], 1) as term:
        assert term is not None
        assert float(term().detach()) == pytest.approx(19_993.6)
        with torch.no_grad():
            net.weight.fill_(10.0)
        term().backward()  # of the weights as they are now
        assert float(term().detach()) == pytest.approx(4.0)
    assert net.weight.grad.tolist() == torch.full((2, 2), 0.1).half().tolist()


def test_squares_of_small_gradients_are_not_lost():
    # Each example's loss is 2^-13 times the weight: the mean square of its gradient is 2^-26, which float16 does not have.
    class Scaled(LocalModule):
        def training_step(self, batch, batch_idx):
            return (self.net(batch[0]) * 2.0**-13).mean()

    module = Scaled(nn.Linear(1, 1, bias=False, dtype=torch.float16), partial(torch.optim.SGD, lr=0.1))
    batch = (torch.ones(4, 1, dtype=torch.float16), torch.zeros(4, dtype=torch.int64))
    found = sq_grads(module, unload(module), ("weight",), [batch])
    assert found["weight"].tolist() == [[2.0**-26]]


@pytest.mark.parametrize("dtype", HALVES)
def test_the_proximal_pull_is_mu_times_the_way_rounded_once(dtype):
    # One step of rate 1 without a loss goes nowhere; the second pulls by mu (w - sent) = 0.5 x (1 - 0) from where the first
    # batch's gradient of -1 has brought it.
    class Once(LocalModule):
        def training_step(self, batch, batch_idx):
            return -self.net.weight.sum() * (batch_idx == 0)

    net = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.zeros_(net.weight)
    module = Once(net, partial(torch.optim.SGD, lr=1.0))
    found = fit(module, Subnet(unload(module), {}), batches(dtype, 2), Recipe(proximal_mu=0.5))
    assert found.params["weight"].tolist() == [[0.5]]


# --- means -----------------------------------------------------------------------------------------------------------------


def clients(values: list[float], dtype: torch.dtype) -> list[tuple[Subnet, float]]:
    alive = {"w": torch.tensor([True])}
    return [(Subnet({"w": torch.tensor([v], dtype=dtype), "b": torch.tensor([v], dtype=dtype)}, alive), 1.0) for v in values]


@pytest.mark.parametrize("merge", [OverlapMean(), mean_with_zeros, intersection, CoordinateMedian(), TrimmedMean(0.0)])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_mean_of_half_precision_is_rounded_once(dtype, merge):
    # Twice as many at 1 as at 1 + 1/64, one after the other: the mean is 1 + 1/192. A running mean in bfloat16 (steps of 1/128)
    # never gets off 1 by so little; float64 rounded once is the nearest there is.
    values = [1.0, 1.0, 1.0 + 1 / 64] * 20
    server = {name: torch.zeros(1, dtype=dtype) for name in ("w", "b")}
    mean = np.median(values) if isinstance(merge, CoordinateMedian) else np.mean(values)
    found = merged(merge, server, clients(values, dtype))
    assert all(tensor.dtype == dtype for tensor in found.values())
    assert found["w"].tolist() == found["b"].tolist() == torch.tensor([mean]).to(dtype).tolist()


def test_a_running_mean_in_bfloat16_would_be_another():
    # 256 clients at 1 and as many at 3: the mean is 2; taken in bfloat16, each late step of 1/256 of the way is lost.
    server = {name: torch.zeros(1, dtype=torch.bfloat16) for name in ("w", "b")}
    assert merged(OverlapMean(), server, clients([1.0] * 256 + [3.0] * 256, torch.bfloat16))["w"].tolist() == [2.0]


def test_momentum_of_the_server_is_not_rounded_to_half_precision():
    # v <- v + (w - mean), w <- w - 2^-9 v with w - mean = 1 each time and beta 1: v is 1, 2, 3, ..., 300; in bfloat16 it would
    # stop at 256.
    step, momentum = FedAvgM(lr=2.0**-9, beta=1.0), {}
    server = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    for _ in range(300):
        after, momentum = step(server, {"w": torch.full((1,), -1.0, dtype=torch.bfloat16)}, momentum, ("w",))
    assert momentum["v"]["w"].tolist() == [300.0]
    assert after["w"].dtype == torch.bfloat16
    assert after["w"].tolist() == torch.tensor([-300 / 512]).bfloat16().tolist()


def test_fedadam_in_float16_does_not_lose_its_squares():
    # delta = 2^-13, whose square 2^-26 float16 does not have. With beta1 = 0, beta2 = 0 and tau = 2^-13 the step is
    # lr delta / (|delta| + tau) = 1 / 2.
    step = FedAdam(lr=1.0, beta1=0.0, beta2=0.0, tau=2.0**-13)
    server, mean = ({"w": torch.tensor([value], dtype=torch.float16)} for value in (0.0, 2.0**-13))
    after, momentum = step(server, mean, {}, ("w",))
    assert after["w"].tolist() == [0.5]
    assert momentum["v"]["w"].tolist() == [2.0**-26]


def test_controls_are_summed_in_float32():
    # 512 changes of 1, of 512 clients: c is 1, where bfloat16 would stop at 256 / 512.
    changes = {}
    for client in range(512):
        changed = {"w": torch.ones(1, dtype=torch.bfloat16)}
        changes = summed(changes, Update(client, None, 1, control=changed))
    assert stepped({}, changes, 512)["w"].tolist() == [1.0]


def test_a_control_is_rounded_once():
    # c_k+ = c_k - c + (w - y) / reach = 1 - 1 + (1 - 0.75) / 3 = 1 / 12
    one, three_quarters = (torch.tensor([value], dtype=torch.bfloat16) for value in (1.0, 0.75))
    change, kept = Controls({"w": one}, {"w": one}).change_and_next({"w": one}, {"w": three_quarters}, {"w": 3.0})
    assert kept["w"].tolist() == torch.tensor([1 / 12]).bfloat16().tolist()
    assert kept["w"].dtype == change["w"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", HALVES)
def test_the_best_of_half_precision_scores_are_found(dtype):
    scores = {"w": torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=dtype)}
    assert keep_best(scores, 2)["w"].tolist() == [False, True, False, True]


def test_a_sum_beyond_float16_is_no_divergence():
    assert finite(torch.full((4,), 60_000.0, dtype=torch.float16))
    assert not finite(torch.tensor([1.0, torch.inf], dtype=torch.float16))
    assert finite(torch.tensor([2**62, 2**62, 2**62]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_every_type_crosses_between_processes_as_an_array(dtype, shape):
    tensor = torch.ones(shape).to(dtype)
    back = as_tensor(as_array(tensor).copy())
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_only_half_precision_is_widened():
    for dtype in (torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64):
        tensor = torch.ones(2).to(dtype)
        assert wide(tensor) is tensor
    assert wide(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32


# --- whole runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("federated=fedadam", "federated.optimizer_state=kept", "criterion=snip"),
        ("federated=scaffold", "federated.batchnorm=local"),
        ("local/penalty=l0", "criterion=hard_concrete"),
        ("whose=personal", "whose.uncommon=own", "executor=processes", "executor.workers=1"),
        ("criterion=woodfisher", "how_often=one_shot", "when=after_training", "rounds=1", "federated.batchnorm=frozen"),
        ("how_often=one_shot", "when=after_training", "rewind=constant", "rounds=1"),
        ("criterion=prunefl", "how_often=dynamic", "how_often.every=1", "what=weights_global", "where=all_clients"),
    ],
    ids=lambda overrides: " ".join(overrides) or "fedavg",
)
def test_a_network_in_half_precision_runs_and_stays_in_it(overrides, tiny, play):
    played = play(tiny(*HALF, "rounds=2", *overrides))
    params = played[-1][0].server.params
    assert params["first.weight"].dtype == torch.bfloat16
    assert not torch.equal(params["last.weight"], played[0][0].init["last.weight"])
