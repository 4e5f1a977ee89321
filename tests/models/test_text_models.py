"""Networks that read text: exact sizes, causality, and the LSTM and the attention written out once more with numpy."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fedprune.errors import ConfigError
from fedprune.models.char_lstm import char_lstm
from fedprune.models.char_transformer import char_transformer
from fedprune.models.cnn import cnn_fedavg, cnn_small
from fedprune.models.lenet import lenet1, lenet5, lenet5_caffe, lenet_300_100
from fedprune.models.resnet import resnet20
from fedprune.models.vgg import vgg11, vgg_small

CONF = Path(__file__).parents[2] / "conf" / "model"
TEXT = ((80,), 74)
FACTORIES = (char_lstm, char_transformer)
IMAGES = (lenet_300_100, lenet1, lenet5, lenet5_caffe, cnn_fedavg, cnn_small, resnet20, vgg11, vgg_small)


def small(factory) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"embedding": 3, "hidden": 4, "layers": 2} if factory is char_lstm else {"width": 6, "heads": 2, "layers": 2}
    net = factory((7,), 5, **sizes)
    for parameter in net.parameters():  # so that biases, too, take part
        nn.init.normal_(parameter, std=0.5)
    return net


def numbers(examples: int = 3, length: int = 7, classes: int = 5) -> torch.Tensor:
    return torch.randint(classes, (examples, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 74 x 32; 4 x 64 rows of 32 + 64 inputs and two biases; 64 x 74 and 74 biases.
        ("char_lstm", 74 * 32 + 256 * (32 + 64 + 2) + 65 * 74),
        # 74 and 80 rows of 64; two blocks of attention's four matrices with biases, 64 - 256 - 64, and two norms; norm; output.
        ("char_transformer", 154 * 64 + 2 * (4 * 64 * 65 + 256 * 65 + 64 * 257 + 4 * 64) + 2 * 64 + 65 * 74),
    ],
)
def test_every_yaml_builds_a_network_of_the_stated_size_with_logits_at_every_place(name, expected):
    path = CONF / f"{name}.yaml"
    net = instantiate(OmegaConf.load(path), shape=TEXT[0], classes=TEXT[1], _convert_="all")
    assert sum(parameter.numel() for parameter in net.parameters()) == expected
    assert f"{expected:,}" in path.read_text()
    assert net(torch.zeros(2, 80, dtype=torch.int64)).shape == (2, 74, 80)


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("training", [True, False])
def test_a_place_knows_what_came_before_and_nothing_of_what_comes_after(factory, training):
    net = small(factory).train(training)
    x = numbers()
    other = x.clone()
    other[:, 4] = (other[:, 4] + 1) % 5
    with torch.no_grad():
        before, after = net(x), net(other)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert (before[:, :, 4:] != after[:, :, 4:]).any(1).all()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_the_lstm_is_the_textbooks():
    # Hochreiter & Schmidhuber 1997 with forget gates: i, f, o = sigmoid, g = tanh; c' = f c + i g, h' = o tanh(c').
    net, x = small(char_lstm), numbers()
    w = {name: value.detach().double().numpy() for name, value in net.state_dict().items()}
    sequence = w["embedding.weight"][x.numpy()]
    for layer in range(2):
        h, c, outputs = np.zeros((3, 4)), np.zeros((3, 4)), []
        for t in range(7):
            z = sequence[:, t] @ w[f"lstm.weight_ih_l{layer}"].T + h @ w[f"lstm.weight_hh_l{layer}"].T
            i, f, g, o = np.split(z + w[f"lstm.bias_ih_l{layer}"] + w[f"lstm.bias_hh_l{layer}"], 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            outputs.append(h)
        sequence = np.stack(outputs, axis=1)
    expected = (sequence @ w["fc.weight"].T + w["fc.bias"]).transpose(0, 2, 1)
    np.testing.assert_allclose(net(x).detach().numpy(), expected, atol=1e-5)


def normed(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift


@pytest.mark.parametrize("training", [True, False])
def test_the_transformer_is_pre_norm_with_softmax_over_the_places_so_far(training):
    net, x = small(char_transformer).train(training), numbers()
    w = {name: value.detach().double().numpy() for name, value in net.state_dict().items()}
    y = w["embedding.weight"][x.numpy()] + w["position.weight"]
    for block in ("blocks.0.", "blocks.1."):
        p = {name.removeprefix(block): value for name, value in w.items() if name.startswith(block)}
        z = normed(y, p["norm1.weight"], p["norm1.bias"]) @ p["attention.in_proj_weight"].T + p["attention.in_proj_bias"]
        q, k, v = np.split(z, 3, axis=2)
        heads = []
        for head in (slice(0, 3), slice(3, 6)):
            scores = q[..., head] @ k[..., head].transpose(0, 2, 1) / np.sqrt(3)
            weights = np.exp(scores) * np.tril(np.ones((7, 7)))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[..., head])
        y = y + np.concatenate(heads, axis=2) @ p["attention.out_proj.weight"].T + p["attention.out_proj.bias"]
        hidden = normed(y, p["norm2.weight"], p["norm2.bias"]) @ p["fc1.weight"].T + p["fc1.bias"]
        y = y + np.maximum(hidden, 0) @ p["fc2.weight"].T + p["fc2.bias"]
    expected = (normed(y, w["norm.weight"], w["norm.bias"]) @ w["fc.weight"].T + w["fc.bias"]).transpose(0, 2, 1)
    with torch.no_grad():
        np.testing.assert_allclose(net(x).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("factory", FACTORIES)
def test_initial_values_are_a_function_of_torchs_seed(factory):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(factory(*TEXT).state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].dim() == 2)


def test_the_transformers_initial_weights_have_the_stated_deviation():
    net = char_transformer(*TEXT)
    for name, parameter in net.named_parameters():
        if parameter.dim() == 2:
            # 64 inputs: 1/8. Two blocks of two branches: half of it; half again from 256 inputs.
            std = {"out_proj.weight": 1 / 16, "fc2.weight": 1 / 32}.get(".".join(name.split(".")[-2:]), 1 / 8)
            assert abs(float(parameter.detach().std()) / std - 1) < 0.05, name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name and name.endswith("weight")))), name


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_parameter_takes_part_and_networks_survive_pickling_and_copying(factory):
    net, x = small(factory), numbers()
    expected = net(x)
    expected.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), expected)
    called = torch.func.functional_call(copy.deepcopy(net), dict(net.state_dict()), x)  # without gradients: another kernel
    torch.testing.assert_close(called, expected)


@pytest.mark.parametrize("factory", FACTORIES)
def test_images_are_refused_with_what_to_type(factory):
    with pytest.raises(ConfigError, match=rf"model={factory.__name__} takes sequences.*1x28x28: type data=shakespeare"):
        factory((1, 28, 28), 10)


@pytest.mark.parametrize("factory", IMAGES)
def test_networks_for_images_refuse_text_with_what_to_type(factory):
    with pytest.raises(
        ConfigError, match=rf"model={factory.__name__} takes images.*80 numbers or characters: type model=char_lstm or"
    ):
        factory(*TEXT)


@pytest.mark.parametrize(
    ("factory", "sizes", "says"),
    [
        (char_lstm, {"hidden": 0}, "model.hidden=0"),
        (char_lstm, {"layers": 0, "embedding": -1}, "model.embedding=-1"),
        (char_transformer, {"layers": 0}, "model.layers=0"),
        (char_transformer, {"width": 66}, "model.heads=4 does not divide model.width=66: type e.g. model.width=64"),
    ],
)
def test_senseless_sizes_are_refused(factory, sizes, says):
    with pytest.raises(ConfigError, match=says):
        factory(*TEXT, **sizes)
