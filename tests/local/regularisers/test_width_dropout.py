"""Training at several widths: by hand, against networks that are really smaller, and how often each width is drawn."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedprune.errors import ConfigError, Incompatible
from fedprune.local.regularisers.base import none, regularised
from fedprune.local.regularisers.check import check_together
from fedprune.local.regularisers.width_dropout import choices, living_units, ordered, ordered_distilled, scaler
from fedprune.local.regularisers.width_slices import leading
from fedprune.models.cnn import cnn_small
from fedprune.pruning.evidence.network import Network


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.constant_(net[0].bias, 2.0)  # no unit is idle
    return net


def under(net: nn.Module, shape: tuple[int, ...], capacity: float) -> dict[str, torch.Tensor]:
    """The weights' part of a slice; the network is put under the whole of it."""
    mask = leading(Network(net, shape), capacity)
    with torch.no_grad():
        for name, alive in mask.items():
            net.get_parameter(name).mul_(alive)
    return {name: alive for name, alive in mask.items() if name.endswith("weight")}


def test_activations_are_divided_by_the_fraction_of_units_that_a_client_has():
    """One of two hidden units, w = 3, b = 1, x = 2: (3 x 2 + 1) / (1/2) = 14; times 5, plus 1: 71. Without training 36."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    state = {"0.weight": [[3.0], [0.0]], "0.bias": [1.0, 0.0], "2.weight": [[5.0, 0.0]], "2.bias": [1.0]}
    net.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    mask = {"0.weight": torch.tensor([[True], [False]]), "2.weight": torch.tensor([[True, False]])}
    x = torch.tensor([[2.0]])
    with regularised(net, mask, (scaler(),), 1):
        assert net(x).item() == 71
    assert net(x).item() == 36


def test_with_everything_alive_nothing_is_scaled():
    net = mlp()
    mask = {name: torch.ones_like(net.get_parameter(name), dtype=torch.bool) for name in ("0.weight", "2.weight")}
    x = torch.randn(5, 3)
    with regularised(net, mask, (scaler(),), 1):
        during = net(x)
    assert torch.equal(during, net(x))


def test_the_widths_of_a_client_are_the_levels_below_its_own_and_its_own():
    """cnn_small has 10, 20 and 50 hidden units. At 0.6: 6, 12, 30; levels 0.2 (2, 4, 10) and 0.4 (4, 8, 20) are below it. Its
    own is there if no level is it, and once if one is."""
    net = cnn_small((1, 28, 28), 10)
    mask = under(net, (1, 28, 28), 0.6)
    names = ("conv1", "conv2", "fc1")
    assert living_units(net, mask) == dict(zip(names, (6, 12, 30), strict=True))
    expected = [dict(zip(names, widths, strict=True)) for widths in ((2, 4, 10), (4, 8, 20), (6, 12, 30))]
    assert choices(net, mask, [0.2, 0.4, 0.6, 0.8, 1.0]) == expected
    assert choices(net, mask, [1.0, 0.4, 0.2]) == expected
    assert choices(net, {}, [0.5])[-1] == dict(zip(names, (10, 20, 50), strict=True))


def smaller(net: nn.Sequential, wide: int) -> nn.Sequential:
    part = nn.Sequential(nn.Linear(3, wide), nn.ReLU(), nn.Linear(wide, 2))
    state = net.state_dict()
    part.load_state_dict(
        {"0.weight": state["0.weight"][:wide], "0.bias": state["0.bias"][:wide], "2.weight": state["2.weight"][:, :wide]}
        | {"2.bias": state["2.bias"]}
    )
    return part


def test_each_batch_runs_a_network_that_is_really_narrower():
    net, x, y, seen = mlp(), torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0]), set()
    mask = {name: torch.ones_like(net.get_parameter(name), dtype=torch.bool) for name in ("0.weight", "2.weight")}
    parts = {wide: smaller(net, wide) for wide in (1, 2, 4)}
    with regularised(net, mask, (ordered([0.25, 0.5, 1.0]),), 1) as term:
        assert term is None
        for _ in range(30):
            net.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            (wide,) = [w for w, part in parts.items() if torch.isclose(F.cross_entropy(part(x), y), loss, atol=1e-6)]
            seen.add(wide)
            parts[wide].zero_grad()
            F.cross_entropy(parts[wide](x), y).backward()
            assert torch.allclose(net[0].weight.grad[:wide], parts[wide][0].weight.grad, atol=1e-7)
            assert torch.allclose(net[2].weight.grad[:, :wide], parts[wide][2].weight.grad, atol=1e-7)
            assert torch.allclose(net[2].bias.grad, parts[wide][2].bias.grad, atol=1e-7)
            assert not net[0].weight.grad[wide:].any() and not net[0].bias.grad[wide:].any()
            assert not net[2].weight.grad[:, wide:].any()
    assert seen == {1, 2, 4}
    assert torch.allclose(net(x), parts[4](x))  # outside of training it is whole


def test_convolutions_run_narrower_too():
    torch.manual_seed(0)
    net = cnn_small((1, 28, 28), 10)
    whole = dict(net.state_dict())
    x, outputs = torch.randn(3, 1, 28, 28), {}
    for level in (0.2, 0.5, 1.0):
        slice_ = leading(Network(net, (1, 28, 28)), level)
        outputs[level] = torch.func.functional_call(net, {n: v * slice_[n] for n, v in whole.items()}, (x,))
    mask, seen = {n: torch.ones_like(v, dtype=torch.bool) for n, v in whole.items() if v.dim() > 1}, set()
    with regularised(net, mask, (ordered([0.2, 0.5, 1.0]),), 1), torch.no_grad():
        for _ in range(20):
            found = net(x)
            seen |= {level for level, right in outputs.items() if torch.allclose(found, right, atol=1e-5)}
    assert seen == {0.2, 0.5, 1.0}


def test_widths_are_equally_likely_and_a_function_of_the_seed():
    """3,000 draws among 3: 1000 each, with a standard deviation of sqrt(3000 x 1/3 x 2/3) = 26."""
    net, x = mlp(), torch.randn(1, 3)
    mask = {name: torch.ones_like(net.get_parameter(name), dtype=torch.bool) for name in ("0.weight", "2.weight")}

    def outputs(seed: int, number: int) -> list[float]:
        torch.manual_seed(seed)
        with regularised(net, mask, (ordered([0.25, 0.5, 1.0]),), 1), torch.no_grad():
            return [net(x)[0, 0].item() for _ in range(number)]

    drawn = Counter(outputs(1, 3000))
    assert len(drawn) == 3 and all(abs(number - 1000) < 130 for number in drawn.values())
    assert outputs(1, 20) == outputs(1, 20) != outputs(2, 20)


def test_the_narrower_network_learns_from_the_whole_one():
    """loss = CE(F_max, y) + CE(F_p, softmax F_max) with the teacher held fixed; of the whole from itself, the gradient is 0."""
    net, x, y, drawn = mlp(), torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0]), set()
    mask = {name: torch.ones_like(net.get_parameter(name), dtype=torch.bool) for name in ("0.weight", "2.weight")}
    with regularised(net, mask, (ordered_distilled([0.25, 1.0]),), 1) as term:
        for _ in range(12):
            net.zero_grad()
            outputs = net(x)
            assert torch.allclose(outputs, smaller(net, 4)(x))  # what is told is of the whole
            imitation = term()
            (F.cross_entropy(outputs, y) + imitation).backward()
            taught = outputs.detach().softmax(1)
            losses = {wide: -(taught * smaller(net, wide)(x).log_softmax(1)).sum(1).mean() for wide in (1, 4)}
            (wide,) = [w for w, value in losses.items() if torch.isclose(value, imitation, atol=1e-6)]
            drawn.add(wide)
            teacher, student = smaller(net, 4), smaller(net, wide)
            F.cross_entropy(teacher(x), y).backward()
            (-(taught * student(x).log_softmax(1)).sum(1).mean()).backward()
            expected = teacher[0].weight.grad.clone()
            expected[:wide] += student[0].weight.grad
            assert torch.allclose(net[0].weight.grad, expected, atol=1e-6)
            if wide == 4:
                assert student[0].weight.grad.abs().max() < 1e-6
    assert drawn == {1, 4}


@pytest.mark.parametrize("option", [ordered, ordered_distilled])
def test_what_cannot_be_ordered_is_refused(option):
    for levels in ([], [0.0, 1.0], [1.5]):
        with pytest.raises(ConfigError, match="local.dropout.levels="):
            option(levels)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(Incompatible, match="choose model=cnn_small, or local/dropout=none"):
        check_together(none(), option([1.0]), net, ())
    check_together(none(), option([1.0]), mlp(), ())


def test_ordered_dropout_does_not_go_with_sampled_gates(tiny):
    with pytest.raises(Incompatible, match="local.penalty samples gates"):
        tiny("local/penalty=l0", "local/dropout=ordered_distilled")
