"""Compaction: fewer channels, the same outputs; by hand where numbers are folded, at random over masks and networks."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedprune.compaction.export import Compact, compact, told
from fedprune.compaction.resize import resize
from fedprune.errors import ConfigError, Incompatible
from fedprune.models.cnn import cnn_fedavg, cnn_small
from fedprune.models.lenet import lenet5, lenet5_caffe, lenet_300_100
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg11
from fedprune.pruning.mask import apply
from fedprune.pruning.what import What
from fedprune.pruning.what.scope import per_layer
from fedprune.pruning.what.unit import filters
from fedprune.tensors import load_tensors, tensors_of
from fedprune.types import Mask
from helpers.user_networks import Tied, TwoPaths

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


def dead(net: nn.Module, channels: dict[str, list[int]]) -> Mask:
    """A mask of every layer in which these output channels are dead."""
    mask = {f"{name}.weight": torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in layers(net).items()}
    for name, places in channels.items():
        mask[f"{name}.weight"][places] = False
    return mask


def random_mask(net: nn.Module, density: float, generator: torch.Generator, skip: tuple[str, ...] = ()) -> Mask:
    """Whole filters or neurons, alive with that probability; never those of the last layer."""
    names = [name for name in layers(net) if name not in skip][:-1]
    chance = {name: torch.rand(len(layers(net)[name].weight), generator=generator) for name in names}
    return dead(net, {name: (chance[name] > density).nonzero().flatten().tolist() for name in names})


def layers(net: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """Biases, shifts and running statistics that are not zero, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.dim() == 1:
                away = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(away + 0.5 if name.endswith(("var", "weight")) else 0.6 - away)
    return net


def outputs(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(net).eval()(x)


def masked(net: nn.Module, mask: Mask) -> nn.Module:
    net = copy.deepcopy(net)
    net.load_state_dict(apply(net.state_dict(), mask))
    return net


def same(net: nn.Module, mask: Mask, shape: tuple[int, ...], batch: int = 3) -> Compact:
    """The compacted network, whose outputs are those of the masked one on several random inputs, none of them the example."""
    small = compact(net, mask, torch.zeros(2, *shape))
    for seed in range(3):
        x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
        expected = outputs(masked(net, mask), x)
        difference = (outputs(small.net, x) - expected).abs().max()
        assert difference <= 1e-5 * expected.abs().max().clamp_min(1)
    for name, tensor in small.net.named_parameters():
        if name in small.mask:
            assert small.mask[name].shape == tensor.shape
            assert torch.equal(tensor, tensor * small.mask[name])
    return small


def width(net: nn.Module, name: str) -> tuple[int, ...]:
    return tuple(net.get_submodule(name).weight.shape[:2])


# --- by hand ---------------------------------------------------------------------------------------------------------------


def test_a_dead_neurons_bias_goes_to_the_biases_of_those_that_read_it():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    net[0].bias.data = torch.tensor([1.0, 2.0])
    net[2].weight.data = torch.tensor([[1.0, 3.0], [5.0, -1.0]])
    net[2].bias.data = torch.tensor([0.5, 0.0])
    small = same(net, dead(net, {"0": [1]}), (3,))
    assert small.net[2].bias.tolist() == [0.5 + 3 * 2, 0.0 - 1 * 2]
    assert small.net[2].weight.tolist() == [[1.0], [5.0]]
    assert small.survivors == {"0": {"out": [0], "in": [0, 1, 2]}, "2": {"out": [0, 1], "in": [0]}}
    assert (small.net[0].out_features, small.net[2].in_features) == (1, 1)


def test_a_negative_bias_before_a_relu_leaves_nothing_behind():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    net[0].bias.data = torch.tensor([1.0, -2.0])
    before = net[2].bias.tolist()
    assert same(net, dead(net, {"0": [1]}), (3,)).net[2].bias.tolist() == before


def test_a_layer_without_bias_is_given_one_only_if_there_is_something_to_fold():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False))
    net[0].bias.data = torch.tensor([1.0, 2.0])
    net[1].weight.data = torch.tensor([[1.0, 3.0]])
    small = same(net, dead(net, {"0": [1]}), (3,))
    assert small.net[1].bias.tolist() == [6.0]
    assert small.survivors["1"]["bias"] is True
    net[0].bias.data[1] = 0.0
    small = same(net, dead(net, {"0": [1]}), (3,))
    assert small.net[1].bias is None and "bias" not in small.survivors["1"]


def test_an_unpadded_convolution_takes_a_constant_into_its_bias():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3))
    net[0].bias.data = torch.tensor([0.0, 2.0])
    net[1].weight.data[0, 1] = torch.arange(9.0).view(3, 3)
    net[1].bias.data = torch.tensor([1.0])
    small = same(net, dead(net, {"0": [1]}), (1, 7, 7))
    assert small.net[1].bias.item() == pytest.approx(1 + 2 * 36)


def test_a_constant_of_zero_can_go_under_zero_padding_and_another_one_stays():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1))
    net[0].bias.data = torch.tensor([0.0, -1.0, 2.0])
    small = same(net, dead(net, {"0": [1, 2]}), (1, 7, 7))
    assert small.survivors["0"]["out"] == [0, 2]
    assert told(small.stays) == "1 of 0: carries the constants of the dead ones into the zero padding of 2"


def test_of_several_constants_under_zero_padding_the_largest_takes_over_the_others():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    net[0].bias.data = torch.tensor([0.0, 1.0, 4.0, 2.0])
    with torch.no_grad():
        net[2].weight[0, 1], net[2].weight[0, 2], net[2].weight[0, 3] = 8.0, 1.0, 3.0
    small = same(net, dead(net, {"0": [1, 2, 3]}), (1, 7, 7))
    assert small.survivors["0"]["out"] == [0, 2]
    assert small.net[2].weight[0, 1, 0, 0].item() == pytest.approx(8 * 1 / 4 + 1 + 3 * 2 / 4)
    assert not small.mask["0.weight"][1].any()  # it is still dead: it only emits its bias


def test_what_an_heir_takes_over_is_alive_where_it_was_dead():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 1, 3, padding=1))
    net[0].bias.data = torch.tensor([0.0, 1.0, 2.0])
    mask = dead(net, {"0": [1, 2]})
    mask["1.weight"][0, 2, 0, 0] = False
    small = same(net, mask, (1, 7, 7))
    assert small.mask["1.weight"][0, 1].all()


def test_the_shift_of_a_batchnorm_is_a_constant_like_a_bias():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 3))
    net[1].running_mean.copy_(torch.tensor([0.0, 1.0]))
    net[1].running_var.fill_(4 - net[1].eps)
    net[1].weight.data, net[1].bias.data = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])
    net[3].weight.data.fill_(1.0)
    net[3].bias.data.zero_()
    small = same(net, dead(net, {"0": [1]}), (1, 6, 6))
    assert small.net[3].bias.item() == pytest.approx(9 * (2 * (0 - 1) / 2 + 5))
    assert small.net[1].num_features == 1
    assert small.net[1].num_batches_tracked.dim() == 0


def test_a_flattened_channel_is_all_its_pixels():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1))
    net[0].bias.data = torch.tensor([0.0, 3.0])
    net[2].weight.data = torch.arange(8.0).view(1, 8)
    net[2].bias.data.zero_()
    small = same(net, dead(net, {"0": [1]}), (1, 4, 4))
    assert small.survivors["2"]["in"] == [0, 1, 2, 3]
    assert small.net[2].bias.item() == 3 * (4 + 5 + 6 + 7)


def test_what_nobody_reads_goes_and_so_does_what_only_it_read():
    net = shaken(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)))
    mask = dead(net, {})
    mask["4.weight"][:, 2] = False  # nobody reads unit 2 of the second layer ...
    mask["2.weight"][:2, 0] = False  # ... which alone reads unit 0 of the first
    small = same(net, mask, (4,))
    assert (small.survivors["0"]["out"], small.survivors["2"]["out"]) == ([1, 2], [0, 1])


def test_a_layer_that_is_all_dead_keeps_one_channel():
    net = shaken(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    small = same(net, dead(net, {"0": [0, 1, 2]}), (4,))
    assert width(small.net, "0") == (1, 4)
    assert told(small.stays).startswith("1 of 0: the last of its layer")


def test_outputs_of_the_network_stay():
    net = shaken(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    small = same(net, dead(net, {"2": [1]}), (4,))
    assert small.survivors == {}
    assert small.stays == {"2": {"an output of the network": [1]}}


# --- topologies ------------------------------------------------------------------------------------------------------------


class Joined(nn.Module):
    """Two branches concatenated, normalised, and read by a convolution; `norm` by name."""

    def __init__(self, norm: nn.Module | None = None):
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.norm = norm or nn.BatchNorm2d(8)
        self.both = nn.Conv2d(8, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        return self.fc(self.both(x).mean((2, 3)))


class Residual(nn.Module):
    """x + f(x), read by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(F.relu(x + self.outer(F.relu(self.inner(x)))).mean((2, 3)))


def test_a_concatenation_shifts_the_numbers_of_the_second_branch():
    net = shaken(Joined())
    small = same(net, dead(net, {"left": [0], "right": [1, 3], "both": [2]}), (2, 6, 6))
    assert small.survivors["norm"]["out"] == small.survivors["both"]["in"] == [1, 2, 3, 4, 6]
    assert small.survivors["fc"]["in"] == [0, 1, 3]


def test_a_residual_channel_goes_only_if_all_that_is_added_up_in_it_is_dead():
    net = shaken(Residual())
    net.stem.bias.data[2] = 0.0  # or it would be felt by the padded `inner`
    small = same(net, dead(net, {"stem": [1, 2], "outer": [2, 3], "inner": [0]}), (2, 6, 6))
    assert small.survivors["stem"]["out"] == small.survivors["outer"]["out"] == [0, 1, 3, 4, 5]
    assert "added to" in told({"stem": small.stays["stem"]}) and small.stays["stem"].popitem()[1] == [1]


def test_groupnorm_gives_up_whole_groups():
    net = shaken(Joined(nn.GroupNorm(4, 8)))
    small = same(net, dead(net, {"left": [0, 1, 2], "right": [2, 3]}), (2, 6, 6))
    assert small.survivors["norm"]["out"] == [2, 3, 4, 5]
    assert (small.net.norm.num_groups, small.net.norm.num_channels) == (2, 4)
    (reason,) = small.stays["left"]
    assert "normalised with" in reason and small.stays["left"][reason] == [2]


def test_groupnorm_with_something_alive_in_every_group_is_refused():
    net = shaken(Joined(nn.GroupNorm(4, 8)))
    with pytest.raises(Incompatible, match="no dead unit of Joined can be removed: 2 of left: not constant where both"):
        compact(net, dead(net, {"left": [0, 2]}), torch.zeros(1, 2, 6, 6))


def test_a_channel_that_nobody_reads_stays_if_groupnorm_counts_it():
    net = shaken(Joined(nn.GroupNorm(2, 8)))
    mask = dead(net, {})
    mask["both.weight"][:, 0] = False
    assert same(net, mask, (2, 6, 6)).survivors == {}


class Fixed(nn.Module):
    """Reshapes to a width that it takes for granted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).reshape(len(x), 4, -1).mean(2))


class Mixed(nn.Module):
    """A softmax over channels, behind which nothing is as before."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).softmax(1))


def test_a_forward_that_counts_on_a_width_is_refused():
    net = shaken(Fixed())
    with pytest.raises(Incompatible, match=r"Fixed (cannot be made smaller|cannot be traced)|no dead unit of Fixed"):
        compact(net, dead(net, {"conv": [1]}), torch.zeros(1, 1, 6, 6))


def test_a_function_that_mixes_channels_is_refused():
    net = shaken(Mixed())
    mask = dead(net, {})
    mask["fc2.weight"][:, 1] = False
    with pytest.raises(Incompatible, match="outputs would differ"):
        compact(net, mask, torch.zeros(1, 3))


def test_grouped_convolutions_stay_as_they_are():
    net = shaken(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 2)))
    with pytest.raises(Incompatible, match=r"passes 1 \(Conv2d\), which cannot be cut"):
        compact(net, dead(net, {"0": [1]}), torch.zeros(1, 2, 6, 6))


# --- the networks of the package, masks at random --------------------------------------------------------------------------

NETWORKS = {
    "lenet5": (lambda: lenet5(MNIST, 10), MNIST, ()),
    "lenet5_caffe": (lambda: lenet5_caffe(MNIST, 10), MNIST, ("fc1",)),
    "lenet_300_100": (lambda: lenet_300_100(MNIST, 10), MNIST, ()),
    "cnn_small": (lambda: cnn_small(MNIST, 10), MNIST, ()),
    "cnn_fedavg": (lambda: cnn_fedavg(MNIST, 10), MNIST, ()),
    "resnet20": (lambda: resnet20(CIFAR, 10, norm="batch"), CIFAR, ()),
    "vgg11": (lambda: vgg11(CIFAR, 10, norm="batch"), CIFAR, ()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_the_filters_make_a_smaller_network_with_the_same_outputs(name):
    make, shape, skip = NETWORKS[name]
    net = shaken(make())
    small = same(net, random_mask(net, 0.5, torch.Generator().manual_seed(1), skip), shape, batch=2)
    before, after = (sum(p.numel() for p in n.parameters()) for n in (net, small.net))
    assert after < 0.75 * before


@pytest.mark.parametrize("make", [Joined, Residual, lambda: Joined(nn.GroupNorm(4, 8))], ids=["joined", "residual", "group"])
@pytest.mark.parametrize("seed", range(12))
def test_any_mask_gives_the_same_outputs_or_a_refusal(make, seed):
    generator = torch.Generator().manual_seed(seed)
    net = shaken(make(), seed)
    mask = random_mask(net, float(torch.rand((), generator=generator)), generator)
    for alive in mask.values():  # and some weights and columns of those that are left
        alive &= torch.rand(alive.shape, generator=generator) > 0.2
        alive[:, torch.rand(alive.shape[1], generator=generator) < 0.2] = False
    try:
        small = same(net, mask, (2, 6, 6))
    except Incompatible as refusal:
        if "no dead unit" not in str(refusal):
            raise
    else:
        assert all(width > 0 for layer in layers(small.net).values() for width in layer.weight.shape)


@pytest.mark.parametrize("seed", range(8))
def test_any_mask_of_a_chain_removes_every_dead_filter_but_one_heir(seed):
    generator = torch.Generator().manual_seed(seed)
    net = shaken(cnn_fedavg((1, 12, 12), 3), seed)
    mask = random_mask(net, 0.4, generator)
    small = same(net, mask, (1, 12, 12))
    for name in ("conv1", "conv2", "fc1"):
        alive = int(mask[f"{name}.weight"].flatten(1).any(1).sum())
        assert alive <= width(small.net, name)[0] <= alive + (name == "conv1")


# --- what it leaves alone --------------------------------------------------------------------------------------------------


def test_the_network_its_modes_and_random_state_stay_as_they_are():
    net = shaken(lenet5(MNIST, 10)).train()
    net.conv1.requires_grad_(False)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    mask = dead(net, {"conv1": [2], "fc2": [0, 5]})
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    kept_mask = {name: alive.clone() for name, alive in mask.items()}
    small = compact(net, mask, torch.zeros(1, *MNIST))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(torch.equal(kept_mask[name], alive) for name, alive in mask.items())
    assert torch.equal(state, torch.get_rng_state())
    assert net.training and small.net.training
    assert {name: p.requires_grad for name, p in small.net.named_parameters()} == flags
    assert not any(module._forward_hooks for module in [*net.modules(), *small.net.modules()])


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_with_autograd_off_and_frozen_parameters(around):
    net = shaken(lenet5(MNIST, 10)).requires_grad_(False)
    with around():
        small = compact(net, dead(net, {"conv1": [2]}), torch.zeros(1, *MNIST))
    assert width(small.net, "conv1") == (5, 1)


def test_the_smaller_network_trains():
    net = shaken(resnet20(CIFAR, 10, norm="batch"))
    small = compact(net, random_mask(net, 0.5, torch.Generator().manual_seed(0)), torch.zeros(1, *CIFAR)).net.train()
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small(torch.randn(4, *CIFAR)).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    optimizer.step()


def test_indices_and_a_state_dict_are_the_whole_of_a_smaller_network():
    net = shaken(Joined())
    small = compact(net, dead(net, {"left": [0], "right": [1, 3]}), torch.zeros(1, 2, 6, 6))
    again = resize(Joined(), json.loads(json.dumps(small.survivors)))
    again.load_state_dict(small.net.state_dict())
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(outputs(again, x), outputs(small.net, x))


def test_indices_of_another_network_are_refused_by_layer():
    with pytest.raises(ConfigError, match=r"layer conv9 of the smaller network does not fit Lenet5"):
        resize(lenet5(MNIST, 10), {"conv9": {"out": [0], "in": [0]}})
    with pytest.raises(ConfigError, match=r"layer conv1 .* does not fit Lenet5 \(.*out of bounds|layer conv1"):
        resize(lenet5(MNIST, 10), {"conv1": {"out": [6], "in": [0]}})


def test_without_torch_pruning_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedprune\[structured\]'"):
        compact(lenet5(MNIST, 10), {}, torch.zeros(1, *MNIST))


def test_integers_cannot_say_what_depends_on_them():
    with pytest.raises(ConfigError, match=r"torch.int64 .* give floats"):
        compact(lenet5(MNIST, 10), {}, torch.zeros(1, *MNIST, dtype=torch.int64))


# --- layers that are not ours ----------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, groups=groups)


def between(*layers: nn.Module, outputs: int = 4, inputs: int = 4) -> nn.Module:
    """A convolution, these layers, and another convolution with a head."""
    return nn.Sequential(conv(1, outputs), *layers, conv(inputs, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


PARTLY = {
    "affine=False": (lambda: between(nn.BatchNorm2d(4, affine=False), nn.ReLU()), 2),
    "track_running_stats=False": (lambda: between(nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()), 2),
    "neither": (lambda: between(nn.BatchNorm2d(4, affine=False, track_running_stats=False), nn.ReLU()), 2),
    "GroupNorm affine=False": (lambda: between(nn.GroupNorm(4, 4, affine=False), nn.ReLU()), 2),
    "GLU": (lambda: between(nn.GLU(1), outputs=8), 8),
    "PixelShuffle": (lambda: between(nn.PixelShuffle(2), outputs=8, inputs=2), 8),
    "grouped": (lambda: between(nn.ReLU(), conv(4, 4, groups=2), nn.ReLU()), 4),
    "ConvTranspose": (lambda: between(nn.ReLU(), nn.ConvTranspose2d(4, 4, 3), nn.ReLU()), 4),
    "PReLU": (lambda: between(nn.PReLU(4)), 4),
    "weight_norm": (lambda: between(nn.ReLU(), nn.utils.parametrizations.weight_norm(conv(4, 4)), nn.ReLU()), 4),
}
"""Networks, and how many filters the first convolution is left with when two of them are dead: all, where what follows cannot
be cut (GLU and PixelShuffle make another number of channels; others have weights of their own)."""


@pytest.mark.parametrize("name", PARTLY)
def test_what_can_be_cut_is_and_what_cannot_stays_with_a_reason(name):
    torch.manual_seed(0)
    make, left = PARTLY[name]
    net, last = make().eval(), None
    mask = {"0.weight": torch.ones_like(net[0].weight, dtype=torch.bool)}
    last = f"{len(net) - 4}.weight"
    mask[last] = torch.ones_like(net.get_parameter(last), dtype=torch.bool)
    mask["0.weight"][:2], mask[last][1] = False, False
    small = compact(net, mask, torch.zeros(1, 1, 10, 10))
    assert len(small.net[0].weight) == left and len(small.net.get_parameter(last)) == 3
    assert bool(small.stays.get("0")) == (left > 2)
    x = torch.randn(5, 1, 10, 10)
    masked = copy.deepcopy(net)
    masked.load_state_dict(apply(net.state_dict(), mask))
    torch.testing.assert_close(small.net(x), masked(x), rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_be_copied_is_refused():
    with pytest.warns(FutureWarning):
        net = between(nn.utils.weight_norm(conv(4, 4)))
    with pytest.raises(Incompatible, match="Sequential cannot be copied .*keep it masked"):
        compact(net, {"0.weight": torch.ones(4, 1, 3, 3, dtype=torch.bool)}, torch.zeros(1, 1, 10, 10))


def test_tied_weights_are_refused_with_both_layers_and_two_paths_are_one_layer():
    net = TwoPaths((1, 10, 10), 3).eval()
    mask = {"body.0.weight": torch.ones(4, 1, 3, 3, dtype=torch.bool)}
    mask["body.0.weight"][:2] = False
    small = compact(net, mask, torch.zeros(1, 1, 10, 10)).net
    load_tensors(net, apply(tensors_of(net), mask))
    x = torch.randn(5, 1, 10, 10)
    assert len(small.body[0].weight) == 2 and small.first is small.body[0]
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(Incompatible, match="there.weight is the same tensor in there and back, and it cannot be cut for one"):
        compact(Tied(), {"there.weight": torch.ones(6, 6, dtype=torch.bool)}, torch.zeros(1, 1, 2, 3))


class Telling(nn.Module):
    """Puts out logits, and more that is no tensor."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = between(nn.ReLU()), nn.Linear(3, 2)

    def forward(self, x):
        logits = self.fc(self.body(x).relu())
        return {"logits": logits, "labels": logits.argmax(1), "sure": logits > 0, "names": None, "number": 2}


def test_networks_that_put_out_more_than_one_tensor_are_cut_and_compared():
    torch.manual_seed(0)
    net, mask = Telling().eval(), {"body.0.weight": torch.ones(4, 1, 3, 3, dtype=torch.bool)}
    mask["body.0.weight"][:2] = False
    small = compact(net, mask, torch.zeros(1, 1, 10, 10)).net
    net.load_state_dict(apply(net.state_dict(), mask))
    x = torch.randn(5, 1, 10, 10)
    assert len(small.body[0].weight) == 2
    torch.testing.assert_close(small(x)["logits"], net(x)["logits"], rtol=1e-4, atol=1e-5)


class Branches(nn.Module):
    """Two branches of one stem, brought together somehow."""

    def __init__(self, together: Callable) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.fc = (nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 3))
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.stem(x))  # a dead unit gives other than 0
        return self.fc(self.together(F.relu(self.a(y)), self.b(y)))


BRANCHES: dict[str, Callable] = {
    "sum": torch.add,
    "difference": torch.sub,
    "product": torch.mul,
    "gate": lambda a, b: a * torch.sigmoid(b),
    "quotient": lambda a, b: a / (1 + b.exp()),
    "larger": torch.maximum,
    "concatenation": lambda a, b: torch.cat([a[:, :3], b[:, 3:]], 1),
    "softmax": lambda a, b: torch.softmax(a, 1) * b,
    "length": lambda a, b: F.normalize(a) - b,
    "statistics": lambda a, b: F.layer_norm(a, a.shape[1:]) * b,
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_are_made_smaller_with_the_same_outputs_or_not_at_all(name):
    smaller = 0
    for seed in range(4):
        torch.manual_seed(seed)
        net = shaken(Branches(BRANCHES[name]), seed).eval()
        mask = random_mask(net, 0.5, torch.Generator().manual_seed(seed))
        try:
            smaller += sum(p.numel() for p in same(net, mask, (5,)).net.parameters()) < sum(p.numel() for p in net.parameters())
        except Incompatible:
            assert name in ("concatenation", "softmax", "length", "statistics")
    assert smaller or name in ("concatenation", "softmax", "length", "statistics")


class ByTheSign(nn.Module):
    """Which layer comes next depends on the input."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3, self.sign = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3), sign

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        return self.fc2(y) if self.sign * x.sum() > 0 else self.fc3(y)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_forward_that_goes_another_way_for_other_inputs_is_not_made_smaller(sign):
    net = ByTheSign(sign)
    with pytest.raises(Incompatible, match="ByTheSign cannot be made smaller"):
        compact(net, dead(net, {"fc1": [1, 2]}), torch.zeros(2, 4))  # on zeros it is fc3's turn


# --- round_to --------------------------------------------------------------------------------------------------------------


def conv_bn_relu(*widths: int, padding: int = 1) -> nn.Sequential:
    """Convolutions with norms whose shifts make dead filters emit constants, and a linear layer."""
    torch.manual_seed(0)
    pairs = zip((1, *widths), widths, strict=False)
    layers = [m for i, o in pairs for m in (nn.Conv2d(i, o, 3, padding=padding, bias=False), nn.BatchNorm2d(o), nn.ReLU())]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return net


@pytest.mark.parametrize(("padding", "living"), [(1, [23, 31, 16]), (0, [24, 32, 16])])
def test_the_exported_widths_are_multiples(padding, living):
    """0.4 of 64, 96 and 48 filters are 26, 38 and 19. With the filter that carries constants into the zero padding of the next
    layer 27, 39 and 19: so 24, 32 and 16, of which 23, 31 and 16 live. Without padding all live."""
    net = conv_bn_relu(64, 96, 48, padding=padding)
    what = What(filters, per_layer, layers=("conv",), min_per_layer=1, round_to=8).bind(net)
    mask = what.select({name: net.get_parameter(name).detach().abs() for name in what.names}, 0.4)
    assert list(what.alive_by_layer(mask).values()) == living
    small = compact(net, mask, torch.zeros(2, 1, 12, 12), round_to=8).net
    assert [layer.out_channels for layer in small if isinstance(layer, nn.Conv2d)] == [24, 32, 16]


def test_any_mask_is_exported_at_multiples_with_dead_filters_that_nothing_reads():
    """21 of 64 live: with the carrier 22, so 24 stay. Of 20 filters 18 live, and all stay, as there are no 24."""
    net = conv_bn_relu(64, 20)
    mask = {name: torch.ones_like(net.get_parameter(name), dtype=torch.bool) for name in ("0.weight", "3.weight")}
    mask["0.weight"][21:], mask["3.weight"][18:] = False, False
    x = torch.randn(3, 1, 8, 8)
    small = compact(net, mask, x, round_to=8)
    assert [layer.out_channels for layer in small.net if isinstance(layer, nn.Conv2d)] == [24, 20]
    masked = copy.deepcopy(net)
    masked.load_state_dict({**net.state_dict(), **{name: net.state_dict()[name] * alive for name, alive in mask.items()}})
    torch.testing.assert_close(small.net(x), masked(x), rtol=1e-4, atol=1e-5)
    assert [layer.out_channels for layer in compact(net, mask, x).net if isinstance(layer, nn.Conv2d)] == [22, 18]
