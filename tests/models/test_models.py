"""Every model, on every data set's shape: its exact size and logits, or a refusal that names models which do fit."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fedprune.errors import ConfigError
from fedprune.models.char_lstm import char_lstm
from fedprune.models.char_transformer import char_transformer
from fedprune.models.cnn import cnn_fedavg, cnn_small, cnn_small_narrow
from fedprune.models.cnn_1d import cnn_1d
from fedprune.models.lenet import lenet1, lenet5, lenet5_caffe, lenet_300_100
from fedprune.models.mlp import mlp
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg11, vgg_small

CONF = Path(__file__).parents[2] / "conf" / "model"
DIGITS, MNIST, CIFAR10, CIFAR100 = ((1, 8, 8), 10), ((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 32, 32), 100)
DATA = {"digits": DIGITS, "mnist": MNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}
FACTORIES = (lenet_300_100, lenet1, lenet5, lenet5_caffe, cnn_fedavg, cnn_small, cnn_small_narrow, resnet20, vgg11, vgg_small)
SMALLEST = {
    "lenet1": 16,
    "lenet5": 16,
    "lenet5_caffe": 16,
    "cnn_small": 16,
    "cnn_small_narrow": 16,
    "cnn_fedavg": 4,
    "resnet20": 4,
    "vgg11": 32,
    "vgg_small": 8,
}


def build(name: str, shape: tuple[int, int, int], classes: int, **overrides: str) -> nn.Module:
    root = OmegaConf.create({"model": OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), overrides), "density": 0.5})
    return instantiate(root.model, shape=shape, classes=classes, _convert_="all")


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_there_is_a_yaml_for_every_model():
    factories = (*FACTORIES, cnn_1d, mlp, char_lstm, char_transformer)  # the last two read text: see test_text_models.py
    of_other_packages = {"torchvision", "timm"}  # see test_zoo.py
    assert {file.stem for file in CONF.glob("*.yaml")} == {factory.__name__ for factory in factories} | of_other_packages


@pytest.mark.parametrize(
    ("factory", "data", "own", "expected"),
    [
        (lenet_300_100, MNIST, {}, 266_610),
        # 32 of 5 x 6 inputs, 64 of 5 x 32, 64 of 5 x 64, 7 of 64, and a bias of each
        (cnn_1d, ((6, 1, 128), 7), {}, 32 * 31 + 64 * 161 + 64 * 321 + 7 * 65),
        (lenet1, MNIST, {}, 3_246),
        (lenet5, MNIST, {}, 44_426),
        (lenet5, CIFAR10, {}, 62_006),
        (lenet5_caffe, MNIST, {}, 431_080),
        (cnn_fedavg, MNIST, {}, 1_663_370),
        (cnn_small, MNIST, {}, 21_840),
        (cnn_small, MNIST, {"norm": "batch"}, 21_900),  # a scale and a shift for each of 10 and 20 channels
        (resnet20, CIFAR10, {"norm": "batch"}, 269_722),
        (resnet20, CIFAR10, {"norm": "group"}, 269_722),
        # 160, 320 and 640 channels: 9 (3a + 6aa + ab + 5bb + bc + 5cc) weights, 2 (7a + 6b + 6c) of norms, 10c + 10
        (resnet20, CIFAR10, {"width": 10}, 26_750_890),
        (vgg_small, MNIST, {"norm": "batch"}, 15_554),
        (vgg11, CIFAR10, {"norm": "none"}, 9_225_610),
        (vgg11, CIFAR10, {"norm": "batch"}, 9_228_362),
        (vgg11, CIFAR10, {"norm": "group"}, 9_228_362),
    ],
)
def test_the_number_of_parameters_is_the_published_one(factory, data, own, expected):
    assert parameters(factory(*data, **own)) == expected


@pytest.mark.parametrize(
    ("factory", "weights"),
    [(lenet_300_100, 266_200), (lenet1, 3_220), (lenet5_caffe, 430_500)],
    ids=["lenet_300_100", "lenet1", "lenet5_caffe"],
)
def test_the_number_of_weights_is_the_published_one(factory, weights):
    network = factory(*MNIST)
    assert sum(parameter.numel() for name, parameter in network.named_parameters() if name.endswith("weight")) == weights


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("name", [factory.__name__ for factory in FACTORIES])
def test_every_yaml_builds_a_network_with_the_right_logits_or_refuses_with_models_that_do(name, data):
    shape, classes = data
    x = torch.rand(2, *shape)
    if min(shape[1:]) >= SMALLEST.get(name, 1):
        assert build(name, shape, classes)(x).shape == (2, classes)
        return
    with pytest.raises(InstantiationException) as refusal:  # hydra's, around the ConfigError
        build(name, shape, classes)
    message = str(refusal.value.__cause__)
    size = SMALLEST[name]
    assert f"model={name} takes images of {size}x{size}" in message and "x".join(map(str, shape)) in message
    instead = [other.split(",")[0] for other in message.split("type model=")[1].split(" or model=")]
    assert instead and all(build(other, shape, classes)(x).shape == (2, classes) for other in instead)


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_size_is_taken_and_one_less_is_refused(name):
    factory = {factory.__name__: factory for factory in FACTORIES}[name]
    side = SMALLEST[name]
    assert factory((1, side, side), 3)(torch.rand(2, 1, side, side)).shape == (2, 3)
    with pytest.raises(ConfigError, match=f"model={name} takes images of {side}x{side}"):
        factory((1, side, side - 1), 3)


@pytest.mark.parametrize("name", [factory.__name__ for factory in FACTORIES])
def test_images_need_not_be_square(name):
    assert build(name, (2, 33, 45), 4)(torch.rand(2, 2, 33, 45)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "norm", "kind"),
    [
        ("resnet20", "batch", nn.BatchNorm2d),
        ("resnet20", "group", nn.GroupNorm),
        ("vgg11", "batch", nn.BatchNorm2d),
        ("vgg11", "group", nn.GroupNorm),
        ("vgg11", "none", None),
        ("vgg_small", "batch", nn.BatchNorm2d),
    ],
)
def test_the_norm_is_the_one_asked_for(name, norm, kind):
    network = build(name, *CIFAR10, norm=norm)
    norms = [type(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)]
    convs = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert norms == ([kind] * convs if kind else [])
    assert all(group.num_channels == 16 * group.num_groups for group in network.modules() if isinstance(group, nn.GroupNorm))


@pytest.mark.parametrize("factory", [resnet20, vgg11])
def test_an_unknown_norm_is_refused_with_those_that_are_known(factory):
    with pytest.raises(ConfigError, match=f"model.norm=layer is not known to model={factory.__name__}.*model.norm=batch"):
        factory(*CIFAR10, norm="layer")


@pytest.mark.parametrize("factory", FACTORIES)
def test_initial_values_are_a_function_of_torchs_seed(factory):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(factory(*CIFAR10).state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, value in first.items() if value.ndim > 1]
    assert drawn and not any(torch.equal(first[name], other[name]) for name in drawn)


def fans(weight: torch.Tensor) -> tuple[int, int]:
    field = weight[0, 0].numel()
    return weight.shape[1] * field, weight.shape[0] * field


@pytest.mark.parametrize(
    ("factory", "variance", "bounded"),
    [
        (lenet_300_100, lambda fan_in, fan_out: 2 / (fan_in + fan_out), False),
        (lenet5, lambda fan_in, fan_out: 2 / (fan_in + fan_out), False),
        (lenet5_caffe, lambda fan_in, fan_out: 1 / fan_in, True),
        (cnn_fedavg, lambda fan_in, fan_out: 2 / (fan_in + fan_out), True),
        (cnn_small, lambda fan_in, fan_out: 1 / (3 * fan_in), True),
        (resnet20, lambda fan_in, fan_out: 2 / fan_in, False),
        (vgg11, lambda fan_in, fan_out: 2 / fan_in, False),
    ],
)
def test_initial_weights_have_the_stated_distribution_and_biases_are_zero(factory, variance, bounded):
    torch.manual_seed(0)
    for name, parameter in factory(*CIFAR10).state_dict().items():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name and name.endswith("weight"))))
        elif parameter.numel() > 2000:
            std = variance(*fans(parameter)) ** 0.5
            assert abs(float(parameter.std()) / std - 1) < 0.1, name
            assert (float(parameter.abs().max()) <= 3**0.5 * std * (1 + 1e-6)) == bounded, name


def nets() -> list[nn.Module]:
    torch.manual_seed(0)
    return [factory(*CIFAR10) for factory in FACTORIES] + [resnet20(*CIFAR10, norm="batch"), vgg11(*CIFAR10, norm="group")]


def test_networks_survive_pickling_and_copying_and_are_called_with_other_parameters():
    x = torch.rand(2, 3, 32, 32)
    for network in map(nn.Module.eval, nets()):
        expected = network(x)
        assert torch.equal(pickle.loads(pickle.dumps(network))(x), expected)
        assert torch.equal(torch.func.functional_call(copy.deepcopy(network), dict(network.state_dict()), x), expected)
        zeros = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
        assert torch.equal(torch.func.functional_call(network, zeros, x), torch.zeros(2, 10))


def test_every_parameter_takes_part_and_the_input_is_left_alone():
    x = torch.rand(8, 3, 32, 32)
    before = x.clone()
    for network in nets():
        network(x).square().sum().backward()
        assert torch.equal(x, before)
        assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_per_example_gradients_can_be_taken():
    network = cnn_small(*MNIST)
    params, x = dict(network.named_parameters()), torch.rand(3, 1, 28, 28)

    def loss(params, example):
        return torch.func.functional_call(network, params, example[None]).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    total = torch.func.grad(lambda params: torch.func.functional_call(network, params, x).square().sum())(params)
    assert all(torch.allclose(grads[name].sum(0), total[name], rtol=1e-4, atol=1e-6) for name in params)


def test_lenet5_caffe_has_its_only_relu_after_fc1():
    network = lenet5_caffe(*MNIST)
    x = torch.rand(2, 1, 28, 28)
    pooled = nn.functional.max_pool2d
    hidden = network.fc1(pooled(network.conv2(pooled(network.conv1(x), 2)), 2).flatten(1))
    assert torch.equal(network(x), network.fc2(hidden.relu()))


@pytest.mark.parametrize("factory", [lenet5, cnn_fedavg, cnn_small])
def test_relu_after_pooling_is_relu_before_it(factory):
    network = factory(*MNIST)
    x = torch.rand(2, 1, 28, 28)
    y = x
    for conv in (network.conv1, network.conv2):
        y = nn.functional.max_pool2d(conv(y).relu(), 2)
    y = network.fc1(y.flatten(1)).relu()
    y = network.fc3(network.fc2(y).relu()) if factory is lenet5 else network.fc2(y)
    assert torch.equal(network(x), y)


def test_the_shortcut_of_a_growing_block_takes_every_second_pixel_and_adds_zero_channels():
    block = resnet20(*CIFAR10).eval().stage2[0]
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 16, 6, 6)
    y = block(x)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2]) and torch.equal(y[:, 16:], torch.zeros(1, 16, 3, 3))


@pytest.mark.parametrize(
    ("fraction", "widths", "expected"),
    [
        # 26 x first + (25 x first + 1) x second + (16 x second + 1) x hidden + 10 x (hidden + 1)
        (1.0, (10, 20, 50), 21_840),  # 260 + 5,020 + 16,050 + 510
        (0.5, (7, 14, 35), 10_881),  # 182 + 2,464 + 7,875 + 360; 36 hidden units would be 11,116, and half is 10,920
        (0.1, (3, 6, 15), 2_149),  # 78 + 456 + 1,455 + 160; 16 hidden units would be 2,256, and a tenth is 2,184
    ],
)
def test_the_narrow_network_is_the_widest_with_at_most_a_fraction_of_the_parameters(fraction, widths, expected):
    network = cnn_small_narrow(*MNIST, fraction=fraction)
    assert parameters(network) == expected <= fraction * 21_840
    assert (network.conv1.out_channels, network.conv2.out_channels, network.fc1.out_features) == widths


def test_the_narrow_network_of_any_fraction_is_the_widest_that_fits():
    """Counted on real networks: every hidden size, its channels a fifth and two fifths of it to the nearest, at least 1."""
    sizes = [parameters(cnn_small_narrow(*MNIST, fraction=k / 200)) for k in range(1, 201)]
    assert sizes == sorted(sizes) and all(size <= k / 200 * 21_840 for k, size in enumerate(sizes, 1))
    for fraction in (0.005, 0.03, 0.21, 0.77):
        network = cnn_small_narrow(*MNIST, fraction=fraction)
        k = network.fc1.out_features + 1
        first, second = (max(int(part * k / 50 + 0.5 + 1e-9), 1) for part in (10, 20))
        wider = 26 * first + (25 * first + 1) * second + (16 * second + 1) * k + 10 * (k + 1)
        assert wider > fraction * 21_840


def test_a_fraction_that_no_network_fits_is_refused_with_the_least_that_does():
    """One of everything: 26 + 26 + 17 + 20 = 89 parameters, 0.004075 of 21,840."""
    with pytest.raises(ConfigError, match=r"model.fraction=0.001 .* at least 0.0041"):
        cnn_small_narrow(*MNIST, fraction=0.001)
    assert parameters(cnn_small_narrow(*MNIST, fraction=0.0041)) == 89
    with pytest.raises(ConfigError, match="model.fraction=0 "):
        cnn_small_narrow(*MNIST, fraction=0)


def test_mlp_has_the_parameters_that_its_layers_say():
    net = mlp((30,), 2)
    # 30*64 + 64 = 1,984; 64*32 + 32 = 2,080; 32*2 + 2 = 66
    assert sum(p.numel() for p in net.parameters()) == 1_984 + 2_080 + 66
    assert net(torch.zeros(5, 30)).shape == (5, 2)
    assert [name for name, _ in mlp((2, 3), 4, hidden=[]).named_parameters()] == ["fc1.weight", "fc1.bias"]
    assert mlp((2, 3), 4, hidden=[])(torch.zeros(5, 2, 3)).shape == (5, 4)
    for wrong in (64, [0], "64"):
        with pytest.raises(ConfigError, match=r"type model.hidden=\[64,32\]"):
            mlp((30,), 2, hidden=wrong)


def test_a_series_is_read_along_time_in_any_length_and_other_data_are_refused():
    assert build("cnn_1d", (6, 1, 9), 3)(torch.rand(2, 6, 1, 9)).shape == (2, 3)
    for shape in ((6, 1, 3), (20,), (6, 128)):
        with pytest.raises(ConfigError, match=f"model=cnn_1d takes series .*{'x'.join(map(str, shape))}: type model=mlp"):
            cnn_1d(shape, 3)
    torch.manual_seed(0)
    network, x = cnn_1d((2, 1, 64), 3), torch.zeros(1, 2, 1, 64)
    x[0, 0, 0, 28] = 1.0
    later = x.roll(4, dims=3)  # by whole pools and away from the ends, the mean over time is the same
    assert torch.allclose(network(x), network(later), atol=1e-6)
