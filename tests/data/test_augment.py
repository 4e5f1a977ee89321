"""Augmentation of batches: which pixels go where, whose draws they are, and what else stays as it is."""

import random

import numpy as np
import pytest
import torch

from fedprune.data.augment import CropFlip, EachExample, cut, drawing
from fedprune.data.batches import Batches
from fedprune.data.datasets import Dataset
from fedprune.errors import ConfigError, RunError
from fedprune.randomness import torch_stream

CPU = torch.device("cpu")

# The image [[1, 2], [3, 4]] with a border of one zero is
#     0 0 0 0
#     0 1 2 0
#     0 3 4 0
#     0 0 0 0
# and each row has (top, left, mirrored) and the 2 x 2 piece from there.
PIECES = [
    (1, 1, False, [[1, 2], [3, 4]]),
    (0, 0, False, [[0, 0], [0, 1]]),
    (2, 1, False, [[3, 4], [0, 0]]),
    (1, 2, False, [[2, 0], [4, 0]]),
    (1, 1, True, [[2, 1], [4, 3]]),
    (0, 1, True, [[0, 0], [2, 1]]),
    (1, 2, True, [[0, 2], [0, 4]]),
]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pieces_by_hand(dtype):
    first = torch.tensor([[1, 2], [3, 4]], dtype=dtype)
    images = torch.stack([first, 10 * first]).expand(len(PIECES), 2, 2, 2)  # two channels are cut at one place
    tops, lefts, mirrored, wanted = zip(*PIECES, strict=True)
    made = cut(images, 1, torch.tensor(tops), torch.tensor(lefts), torch.tensor(mirrored))
    assert torch.equal(made[:, 0], torch.tensor(wanted, dtype=dtype))
    assert torch.equal(made[:, 1], 10 * torch.tensor(wanted, dtype=dtype))
    assert made.dtype == dtype


def test_every_place_is_drawn_and_so_many_are_mirrored():
    images = torch.zeros(20_000, 1, 5, 5)
    images[:, 0, 2, 2] = 1  # a pixel in the middle says where a piece was cut
    images[:, 0, 2, 1] = 2  # and this one whether it was mirrored
    made = CropFlip(padding=1, flip=0.3)(images)[:, 0]
    places = (made == 1).flatten(1).float().argmax(1)
    counts = places.bincount(minlength=25).view(5, 5)[1:4, 1:4]
    assert counts.sum() == len(images)
    assert (counts / len(images) - 1 / 9).abs().max() < 0.01  # the standard deviation is 0.0022
    right = (made == 2).flatten(1).float().argmax(1) > places
    assert right.float().mean() == pytest.approx(0.3, abs=0.015)  # the standard deviation is 0.0032


def test_without_padding_only_mirrors_are_left():
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(CropFlip(padding=0, flip=0.0)(images), images)
    assert torch.equal(CropFlip(padding=0, flip=1.0)(images), images.flip(3))


@pytest.mark.parametrize(("values", "says"), [({"padding": -1}, "padding=-1"), ({"flip": 2.0}, "flip=2.0 is a probability")])
def test_values_out_of_range(values, says):
    with pytest.raises(ConfigError, match=says):
        CropFlip(**values)


@pytest.mark.parametrize("shape", [(4, 30), (4, 6, 1, 128), (4, 3, 4, 4)])
def test_inputs_that_are_no_images_are_refused(shape):
    with pytest.raises(ConfigError, match=r"takes images \[C, H, W\] of more than padding=4 .* type .*data/augment=none"):
        CropFlip()(torch.zeros(shape))


def noise(inputs):
    """Draw from all three global generators."""
    return inputs + torch.rand(inputs.shape) + float(np.random.rand()) + random.random()


def test_draws_are_those_of_the_stream_and_nobody_elses():
    inputs, batches = torch.zeros(2, 3), 3
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    untouched = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    first = drawing(noise, torch_stream(5, "augment", 1, 2), CPU)
    made = [first(inputs) for _ in range(batches)]
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == untouched
    again = drawing(noise, torch_stream(5, "augment", 1, 2), CPU)
    assert all(torch.equal(again(inputs), one) for one in made)
    other = drawing(noise, torch_stream(5, "augment", 1, 3), CPU)(inputs)
    assert len({float(one[0, 0]) for one in [*made, other]}) == batches + 1


def test_two_clients_whose_batches_alternate_draw_what_each_draws_alone():
    """As under executor=batched."""
    inputs = torch.zeros(2, 3)
    alone = {client: drawing(noise, torch_stream(0, "augment", 1, client), CPU) for client in (0, 1)}
    wanted = {client: [change(inputs) for _ in range(3)] for client, change in alone.items()}
    beside = {client: drawing(noise, torch_stream(0, "augment", 1, client), CPU) for client in (0, 1)}
    for number in range(3):
        assert all(torch.equal(change(inputs), wanted[client][number]) for client, change in beside.items())


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        (lambda inputs: inputs[:, :2], r"changes the shape of inputs, to \[2, 2\] for a batch of \[2, 3\]"),
        (lambda inputs: inputs.double(), r"from float32 to float64: leave out what converts .* \.to\(torch.float32\)"),
        (lambda inputs: None, "returns a NoneType and no tensor"),
    ],
)
def test_other_shapes_and_types_end_the_run(augment, says):
    with pytest.raises(RunError, match=says):
        drawing(augment, torch_stream(0, "augment"), CPU)(torch.zeros(2, 3))


def test_each_example_has_draws_of_its_own():
    made = EachExample(lambda example: example + torch.rand(1))(torch.zeros(4, 2))
    assert len(made[:, 0].unique()) == 4
    with pytest.raises(ConfigError, match=r"needs a transform: type \+data.augment.transform._target_=MODULE.CLASS"):
        EachExample()(torch.zeros(4, 2))


def test_batches_are_changed_before_they_are_normalised_and_only_where_it_is_asked():
    x = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    dataset = Dataset("ten", x, torch.arange(10), x[:2], torch.arange(2), classes=10, mean=(1.0,), std=(2.0,))
    batches, seen = Batches(dataset, None, CPU), []

    def halved(inputs):
        seen.append((len(inputs), inputs.dtype))
        return inputs // 2

    indices = torch.tensor([8, 6, 4, 2, 0])
    made = list(batches.of(indices, 2, smallest=2, change=halved))
    assert [inputs.flatten().tolist() for inputs, _ in made] == [[1.5, 1.0], [0.5, 0.0, -0.5]]  # (x // 2 - 1) / 2
    assert [labels.tolist() for _, labels in made] == [[8, 6], [4, 2, 0]]
    assert seen == [(2, torch.uint8), (3, torch.uint8)]
    assert [inputs.flatten().tolist() for inputs, _ in batches.of(indices, 2)] == [[3.5, 2.5], [1.5, 0.5], [-0.5]]
    assert torch.equal(dataset.x, x)


def test_a_batch_that_is_not_asked_for_is_not_changed():
    x = torch.zeros(100, 1, 1, 1, dtype=torch.uint8)
    batches, calls = Batches(Dataset("zeros", x, torch.zeros(100), x, torch.zeros(100), classes=1), None, CPU), []
    generator = torch.Generator().manual_seed(0)
    steps = batches.shuffled(torch.arange(100), 10, None, 3, generator, change=lambda inputs: calls.append(1) or inputs)
    assert len(list(steps)) == len(calls) == 3
