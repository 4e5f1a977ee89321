"""The federation over a table of partitions: whole, disjoint, a function of the seed, large enough or refused by name."""

import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedprune.data.datasets import Dataset
from fedprune.data.federate import Clients, federate, label_histogram, load_partition, save_partition
from fedprune.data.partition import Dirichlet, Iid, Partition, QuantitySkew, Shards
from fedprune.errors import ConfigError, DataError

PARTITIONS = [Iid(), Dirichlet(0.5), Shards(2), QuantitySkew(2.0), Iid(val=0.0), Iid(test=0.0), Iid(val=0.0, test=0.0)]


def labelled(examples: int, classes: int = 10) -> Dataset:
    x = torch.zeros(examples, 1, 1, 1, dtype=torch.uint8)
    y = torch.arange(examples) % classes
    return Dataset("labels_only", x, y, x, y, classes, mean=(0.0,), std=(1.0,))


def everything(clients: Clients) -> torch.Tensor:
    return torch.cat([*clients.train, *clients.val, *clients.test, clients.server])


def sizes(clients: Clients) -> list[tuple[int, int, int]]:
    return [(len(a), len(b), len(c)) for a, b, c in zip(clients.train, clients.val, clients.test, strict=True)]


def equal(a: Clients, b: Clients) -> bool:
    return sizes(a) == sizes(b) and torch.equal(everything(a), everything(b))


@pytest.mark.parametrize("proxy", [0, 50])
@pytest.mark.parametrize("how", PARTITIONS, ids=repr)
def test_every_example_has_one_owner_and_every_client_enough_of_each(how, proxy):
    data = labelled(1000)
    clients = federate(data, how, clients=12, seed=0, proxy=proxy)
    assert torch.equal(everything(clients).sort().values, torch.arange(1000))
    assert len(clients.server) == proxy
    for train, val, test in sizes(clients):
        total = train + val + test
        assert total >= how.min_examples and train >= 1
        assert val == (max(1, int(total * how.val)) if how.val else 0)
        assert test == (max(1, int(total * how.test)) if how.test else 0)


@pytest.mark.parametrize("how", PARTITIONS, ids=repr)
def test_the_federation_is_a_function_of_the_seed(how):
    first, again, other = (federate(labelled(600), how, clients=6, seed=seed, proxy=20) for seed in (4, 4, 5))
    assert equal(first, again)
    assert not equal(first, other)


def test_the_proxy_set_has_every_class_in_its_share():
    data = labelled(1000)
    clients = federate(data, Dirichlet(0.3), clients=5, seed=0, proxy=100)
    assert torch.bincount(data.y[clients.server]).tolist() == [10] * 10


def test_a_clients_sets_are_random_parts_of_what_it_has():
    clients = federate(labelled(1000), Shards(1), clients=2, seed=0)
    labels = labelled(1000).y
    assert len(labels[clients.test[0]].unique()) == 5, "not cut off the end of examples sorted by label"


class Scripted(Partition):
    """Hands out the scripted sizes, one list per draw; the last one again and again."""

    def __init__(self, *script: list[int], **shared: float) -> None:
        super().__init__(**shared)
        object.__setattr__(self, "script", list(script))

    def __call__(self, labels, clients, rng):
        sizes = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return np.split(np.arange(len(labels)), np.cumsum(sizes)[:-1])


@pytest.mark.parametrize(
    ("examples", "fractions", "expected"),
    [
        (100, (0.1, 0.1), (80, 10, 10)),
        (100, (0.29, 0.57), (14, 29, 57)),
        (19, (0.1, 0.1), (17, 1, 1)),
        (3, (0.1, 0.1), (1, 1, 1)),
        (10, (0.01, 0.9), (1, 1, 8)),
        (10, (0.9, 0.01), (1, 8, 1)),
        (10, (0.0, 0.95), (1, 0, 9)),
        (1, (0.0, 0.0), (1, 0, 0)),
    ],
)
def test_splits_by_hand(examples, fractions, expected):
    how = Scripted([examples], min_examples=1, val=fractions[0], test=fractions[1])
    assert sizes(federate(labelled(examples), how, clients=1, seed=0)) == [expected]


def test_a_draw_that_leaves_a_client_short_is_drawn_again():
    how = Scripted([90, 10], [97, 3], [50, 50], [60, 40], min_examples=20, val=0.0, test=0.0)
    assert sizes(federate(labelled(100), how, clients=2, seed=0)) == [(50, 0, 0), (50, 0, 0)]


def test_when_no_draw_does_the_error_names_partition_client_and_remedy():
    how = Dirichlet(0.01, min_examples=30)
    with pytest.raises(DataError) as refusal:
        federate(labelled(600), how, clients=10, seed=0)
    for text in ("Dirichlet(alpha=0.01)", "10 clients", "fewer than 30", "client ", "raise partition.alpha"):
        assert text in str(refusal.value)
    for text in ("lower federated.clients", "lower partition.min_examples (now 30)"):
        assert text in str(refusal.value)


def test_the_error_speaks_of_the_best_draw():
    with pytest.raises(DataError, match=r"1 of 2 clients get fewer than 20 .*client 1 gets 19\."):
        federate(labelled(100), Scripted([99, 1], [81, 19], [90, 10], min_examples=20), clients=2, seed=0)


def test_more_than_there_is_is_refused_before_anything_is_drawn():
    class Never(Iid):
        def __call__(self, labels, clients, rng):
            raise AssertionError("drawn")

    with pytest.raises(DataError, match="11 clients with at least 10 examples each need 110, and there are 100"):
        federate(labelled(100), Never(), clients=11, seed=0)
    with pytest.raises(DataError, match="need 100, and there are 99"):
        federate(labelled(100), Never(), clients=10, seed=0, proxy=1)


def test_a_client_needs_one_example_for_each_set_whatever_the_minimum():
    with pytest.raises(DataError, match="at least 3 examples each .* partition.val=0 or partition.test=0"):
        federate(labelled(5), Iid(min_examples=1), clients=2, seed=0)


@pytest.mark.parametrize(("clients", "proxy", "says"), [(0, 0, "federated.clients=0"), (2, 100, "100"), (2, -1, "-1")])
def test_senseless_numbers_are_refused(clients, proxy, says):
    with pytest.raises(ConfigError, match=says):
        federate(labelled(100), Iid(), clients, seed=0, proxy=proxy)


def test_label_histogram_by_hand():
    clients = Clients(
        train=(torch.tensor([0, 1]), torch.tensor([4])),
        val=(torch.tensor([2]), torch.tensor([5])),
        test=(torch.tensor([3]), torch.tensor([], dtype=torch.int64)),
        server=torch.tensor([6]),
    )
    counts = label_histogram(clients, torch.tensor([0, 0, 1, 3, 2, 2, 2]), classes=4)
    assert counts.tolist() == [[2, 1, 0, 1], [0, 0, 2, 0]]


@pytest.mark.parametrize("how", PARTITIONS, ids=repr)
def test_a_saved_partition_is_read_back_as_it_was(how, tmp_path):
    data = labelled(500)
    clients = federate(data, how, clients=7, seed=1, proxy=30)
    save_partition(clients, data.y, tmp_path / "partition.safetensors")
    again, labels = load_partition(tmp_path / "partition.safetensors")
    assert equal(clients, again) and torch.equal(labels, data.y)


def test_the_saved_tensors_by_hand(tmp_path):
    clients = Clients(
        train=(torch.tensor([1]), torch.tensor([0, 5])),
        val=(torch.tensor([2]), torch.tensor([], dtype=torch.int64)),
        test=(torch.tensor([], dtype=torch.int64), torch.tensor([3])),
        server=torch.tensor([4]),
    )
    save_partition(clients, torch.arange(7), tmp_path / "p.safetensors")
    saved = load_file(tmp_path / "p.safetensors")
    assert (saved["owner"].dtype, saved["split"].dtype) == (torch.int32, torch.uint8)
    assert saved["owner"].tolist() == [1, 0, 0, 1, -1, 1, -1]
    assert saved["split"].tolist() == [0, 0, 1, 2, 3, 0, 4]


def test_what_is_no_saved_partition_is_refused_by_its_name(tmp_path):
    path = tmp_path / "partition.safetensors"
    with pytest.raises(DataError, match=r"partition\.safetensors"):
        load_partition(path)
    path.write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"partition\.safetensors"):
        load_partition(path)
    save_file({"owner": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="split"):
        load_partition(path)


def test_a_large_population_is_divided_in_well_under_a_second():
    data, started = labelled(60_000), time.process_time()  # of this process alone, however busy the machine is
    federate(data, Dirichlet(1.0), clients=1000, seed=0)
    assert time.process_time() - started < 1.0
