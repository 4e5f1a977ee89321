"""Labels of every kind: their type is kept from the data set to the batch, through cache and partition, or they are refused."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprune.analysis.figures import label_histogram
from fedprune.data import cache
from fedprune.data.batches import Batches, Slice
from fedprune.data.datasets import Dataset, diabetes
from fedprune.data.federate import federate, load_partition, save_partition
from fedprune.data.partition import Dirichlet, Iid, Natural, Partition, QuantitySkew, Shards
from fedprune.data.population import ClassMix
from fedprune.data.sources import Source
from fedprune.errors import ConfigError, DataError

KINDS = {
    "regression": (torch.linspace(-1, 1, 40), torch.float32),
    "float64": (torch.linspace(-1, 1, 40, dtype=torch.float64), torch.float64),
    "half": (torch.linspace(-1, 1, 40).half(), torch.float16),
    "several_targets": (torch.arange(80.0).view(40, 2) / 7, torch.float32),
    "multilabel": ((torch.arange(120).view(40, 3) % 2).float(), torch.float32),
    "classes": (torch.arange(40) % 4, torch.int64),
    "bytes": ((torch.arange(40) % 4).to(torch.uint8), torch.int64),  # what losses of classes take
    "pixels": ((torch.arange(40 * 16).view(40, 4, 4) % 3).to(torch.uint8), torch.int64),
}
"""Labels, and the type that a batch has them in."""


def dataset(y: Tensor, x: Tensor | None = None, **more) -> Dataset:
    inputs = torch.arange(40 * 16, dtype=torch.uint8).view(40, 1, 4, 4) if x is None else x
    return Dataset("mine", inputs, y, inputs[:7].clone(), y[:7].clone(), 4, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_have_the_labels_that_the_data_set_has(kind):
    y, dtype = KINDS[kind]
    data = dataset(y)
    clients = federate(data, Iid(min_examples=2), clients=4, seed=0)
    batches = Batches(data, clients, torch.device("cpu"))
    ((_, labels),) = batches.of(clients.train[1], 100)
    assert labels.dtype == dtype and torch.equal(labels, y[clients.train[1]].to(dtype))
    (first, *_) = batches.evaluation(Slice("global", 2, 5))
    assert torch.equal(first[1], y[2:5].to(dtype))
    assert first[1].dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_kind_are_saved_and_cached_as_they_are(kind, tmp_path, monkeypatch):
    y, _ = KINDS[kind]
    data = dataset(y, mean=(1.0,), std=(2.0,))
    clients = federate(data, QuantitySkew(min_examples=4), clients=3, seed=0, proxy=5)
    assert len(clients.server) == 5
    save_partition(clients, y, tmp_path / "partition.safetensors")
    labels = load_partition(tmp_path / "partition.safetensors")[1]
    assert labels.dtype == y.dtype and torch.equal(labels, y)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reads = []

    @cache.cached(Source("mine", ()), Dataset)
    def load(root: str) -> Dataset:
        reads.append(root)
        return data

    for _ in range(2):
        found = load("data")
        assert found.y.dtype == y.dtype and torch.equal(found.y, y) and torch.equal(found.test_y, y[:7])
    assert len(reads) == 1


@pytest.mark.parametrize("how", [Dirichlet(), Shards(), ClassMix()])
@pytest.mark.parametrize("kind", ["regression", "several_targets", "multilabel", "pixels"])
def test_a_partition_by_classes_is_refused_where_examples_have_none(kind, how):
    data = dataset(KINDS[kind][0])
    with pytest.raises(ConfigError, match=r"data=mine has no class .*choose partition=iid, or partition=quantity_skew"):
        federate(data, how, clients=2, seed=0)
    for works in (Iid(), QuantitySkew(alpha=10.0)):  # what it says to type
        clients = federate(data, works, clients=2, seed=0)
        assert sum(map(len, (*clients.train, *clients.val, *clients.test))) == 40


def test_natural_clients_are_offered_where_there_are_some_and_dirichlet_where_there_are_classes():
    groups = torch.arange(40) // 20
    data = dataset(KINDS["regression"][0], groups=groups)
    with pytest.raises(ConfigError, match="choose partition=natural, partition=iid"):
        federate(data, Dirichlet(), clients=2, seed=0)
    assert len(federate(data, Natural(), clients=2, seed=0).train) == 2
    with pytest.raises(ConfigError, match="no natural clients .*: choose partition=iid"):
        federate(dataset(KINDS["regression"][0]), Natural(), clients=2, seed=0)


class Halves(Partition):
    """By the value of a real-valued label: a partition of one's own."""

    by = "targets"

    def __call__(self, labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        return np.array_split(np.argsort(labels), clients)


def test_a_partition_of_ones_own_may_go_by_real_numbers():
    y = KINDS["regression"][0].flip(0)
    low, high = federate(dataset(y), Halves(), clients=2, seed=0).train
    assert y[low].max() < y[high].min()


def test_there_is_no_histogram_of_real_numbers(tmp_path):
    data = dataset(KINDS["regression"][0])
    save_partition(federate(data, Iid(), clients=2, seed=0), data.y, tmp_path / "partition.safetensors")
    with pytest.raises(DataError, match="no histogram of labels that are real numbers"):
        label_histogram(tmp_path)


@pytest.mark.parametrize(
    ("x", "means", "expected"),
    [
        (torch.tensor([[[[3]]], [[[5]]]], dtype=torch.uint8), (1.0,), [1.0, 2.0]),  # (3 - 1) / 2
        (torch.tensor([[[[3.0]]], [[[5.0]]]]), (1.0,), [1.0, 2.0]),
        (torch.tensor([[[[3.0]]], [[[5.0]]]], dtype=torch.float64), (1.0,), [1.0, 2.0]),
        (torch.tensor([[3.0, 5.0], [5.0, 9.0]]), (1.0, 5.0), [1.0, 0.0, 2.0, 2.0]),  # a mean for each of two features
        (torch.tensor([[3.0, 5.0]], dtype=torch.float64), (), [3.0, 5.0]),
        (torch.tensor([[3, 5]], dtype=torch.uint8), (), [3.0, 5.0]),
    ],
)
def test_inputs_of_every_kind_are_normalised_by_hand(x, means, expected):
    data = Dataset("mine", x, x, x, x, 2, mean=means, std=(2.0,) * len(means))
    before = x.clone()
    found = data.normalise(x)
    assert found.dtype == torch.float32 and found.flatten().tolist() == expected
    assert torch.equal(x, before)  # not in place, also where x is float32 already


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_whole_numbers_without_a_mean_are_tokens(dtype):
    x = torch.tensor([[3, 70_000]], dtype=dtype)
    found = Dataset("mine", x, x, x, x, 2).normalise(x)
    assert found.dtype == torch.int64 and found.tolist() == [[3, 70_000]]


def test_diabetes_is_a_regression_with_standardised_inputs_and_targets():
    data = diabetes()
    assert (data.x.shape, data.test_x.shape) == ((354, 10, 1, 1), (88, 10, 1, 1))
    inputs = data.normalise(data.x)
    for values in (inputs, data.y[:, None]):
        assert torch.allclose(values.mean(0), torch.zeros(()), atol=1e-5)
        assert torch.allclose(values.std(0, correction=0), torch.ones(()), atol=1e-5)
