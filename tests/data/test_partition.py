"""Properties over a table of partitions and label sets; and what each partition does to labels in particular."""

from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fedprune.data.divide import stratified
from fedprune.data.partition import Dirichlet, Iid, Partition, QuantitySkew, Shards
from fedprune.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "partition"
PARTITIONS = [
    Iid(),
    Dirichlet(100.0),
    Dirichlet(0.5),
    Dirichlet(0.001),
    Shards(1),
    Shards(2),
    Shards(3),
    QuantitySkew(1.0),
    QuantitySkew(0.01),
]
BALANCED = np.tile(np.arange(10), 60)
UNEVEN = np.repeat([0, 1, 2, 5], [300, 50, 7, 1])
LABELS = {"balanced": BALANCED, "uneven": UNEVEN, "one_class": np.zeros(40, np.int64), "one_each": np.arange(9)}


def draw(how: Partition, labels: np.ndarray, clients: int, seed: int = 0) -> list[np.ndarray]:
    return how(labels, clients, np.random.default_rng(seed))


@pytest.mark.parametrize("clients", [1, 3, 9, 100])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("how", PARTITIONS, ids=str)
def test_every_example_belongs_to_exactly_one_client(how, labels, clients):
    parts = draw(how, labels, clients)
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))


@pytest.mark.parametrize("how", PARTITIONS, ids=str)
def test_a_partition_is_a_function_of_the_generator(how):
    first, again, other = (draw(how, BALANCED, 7, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_yaml_gives_a_partition_whose_keys_are_typed_on_the_command_line(file):
    conf = OmegaConf.load(file)
    how = instantiate(OmegaConf.merge(conf, {"min_examples": 7, "val": 0.2, "test": 0.0}), _convert_="all")
    assert type(how).__name__.lower() == file.stem.replace("_", "")
    assert (how.min_examples, how.val, how.test) == (7, 0.2, 0.0)
    assert {key: getattr(how, key) for key in conf if key not in ("_target_", "min_examples", "val", "test")} == {
        key: value for key, value in conf.items() if key in ("alpha", "classes", "examples")
    }
    assert instantiate(conf) == type(how)(), "the yaml and the class have the same defaults"
    if isinstance(how, Partition):
        assert sum(map(len, draw(how, BALANCED, 10))) == len(BALANCED)  # natural: the labels are the ten groups


def test_there_is_a_yaml_for_every_partition():
    known = {"iid", "dirichlet", "shards", "quantity_skew", "natural", "class_mix"}
    assert {file.stem for file in CONF.glob("*.yaml")} == known


def test_iid_gives_equal_sizes():
    assert sorted(map(len, draw(Iid(), BALANCED, 7))) == [85, 85, 86, 86, 86, 86, 86]


def histogram(parts: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(labels[part], minlength=labels.max() + 1) for part in parts])


def test_dirichlet_with_a_tiny_alpha_gives_nearly_all_of_a_class_to_one_client():
    shares = histogram(draw(Dirichlet(0.001), BALANCED, 10), BALANCED) / 60
    assert np.median(shares.max(axis=0)) > 0.99


def test_dirichlet_with_a_huge_alpha_gives_every_client_the_same_of_every_class():
    counts = histogram(draw(Dirichlet(1e9), BALANCED, 10), BALANCED)
    assert np.abs(counts - 6).max() <= 1


def test_dirichlet_proportions_have_the_mean_and_variance_of_the_distribution():
    clients, alpha, labels = 8, 0.5, np.zeros(1000, np.int64)
    shares = np.array([[len(part) / 1000 for part in draw(Dirichlet(alpha), labels, clients, seed)] for seed in range(3000)])
    mean = 1 / clients
    variance = mean * (1 - mean) / (clients * alpha + 1)
    assert np.allclose(shares.mean(axis=0), mean, atol=0.012)  # 4 standard errors; would show a client that gets nothing
    assert np.allclose(shares.var(axis=0), variance, rtol=0.2)


class InOrder:
    """A generator whose permutations change nothing."""

    @staticmethod
    def permutation(x):
        return np.arange(x) if np.isscalar(x) else x


def test_shards_by_hand():
    # Sorted by label: indices 1 4 6 (0s), 0 3 (1s), 2 5 7 (2s); in four shards of two: [1 4] [6 0] [3 2] [5 7].
    labels = np.array([1, 0, 2, 1, 0, 2, 0, 2])
    parts = Shards(2)(labels, 2, InOrder())
    assert [part.tolist() for part in parts] == [[1, 4, 6, 0], [3, 2, 5, 7]]


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_shards_give_at_most_so_many_labels_where_shards_end_with_labels(classes):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    counts = histogram(draw(Shards(classes), labels, 20 if classes < 5 else 10), labels)
    assert (counts > 0).sum(axis=1).max() <= classes
    assert len(set(counts.sum(axis=1))) == 1


def test_shards_across_borders_give_at_most_twice_as_many_labels_and_only_a_border_adds_one():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 61))
    counts = histogram(draw(Shards(2), labels, 15), labels)
    held = (counts > 0).sum(axis=1)
    assert 2 < held.max() <= 4
    assert held.sum() <= 15 * 2 + 9, "nine borders between ten labels"


def test_quantity_skew_skews_sizes_and_not_labels():
    labels = np.repeat([0, 1], 5000)
    parts = draw(QuantitySkew(0.5), labels, 10)
    large = [part for part in parts if len(part) >= 400]
    assert large and all(abs(labels[part].mean() - 0.5) < 0.1 for part in large)


@pytest.mark.parametrize(("alpha", "least", "most"), [(1e-3, 0.9, 1.0), (0.5, 0.25, 0.5), (1e9, 0.0999, 0.1002)])
def test_quantity_skew_with_a_smaller_alpha_gives_more_to_the_largest_client(alpha, least, most):
    labels = np.zeros(10_000, np.int64)
    largest = [max(map(len, draw(QuantitySkew(alpha), labels, 10, seed))) / 10_000 for seed in range(50)]
    assert least <= np.mean(largest) <= most


@pytest.mark.parametrize("count", [0, 1, 5, 37, 100, 357, 358])
def test_stratified_takes_each_class_in_its_share_to_within_one(count):
    taken = stratified(UNEVEN, count, np.random.default_rng(3))
    assert len(set(taken.tolist())) == count
    shares = np.bincount(UNEVEN) * count / len(UNEVEN)
    assert np.abs(np.bincount(UNEVEN[taken], minlength=6) - shares).max() <= 1


def test_stratified_prefers_no_example_and_no_class():
    labels = np.arange(20) % 10
    taken = np.concatenate([stratified(labels, 5, np.random.default_rng(seed)) for seed in range(400)])
    assert np.abs(np.bincount(taken, minlength=20) - 100).max() < 45  # 5 standard deviations


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Dirichlet(0.0), "partition.alpha=0.0"),
        (lambda: Dirichlet(float("inf")), "partition.alpha=inf"),
        (lambda: QuantitySkew(-1.0), "partition.alpha=-1.0"),
        (lambda: Shards(0), "partition.classes=0"),
        (lambda: Shards(1.5), "partition.classes=1.5"),
        (lambda: Iid(min_examples=-1), "partition.min_examples=-1"),
        (lambda: Iid(val=-0.1), "partition.val=-0.1"),
        (lambda: Iid(val=0.5, test=0.5), "partition.test=0.5"),
    ],
)
def test_senseless_parameters_are_refused_by_name(make, says):
    with pytest.raises(ConfigError) as refusal:
        make()
    assert says in str(refusal.value) and "type" in str(refusal.value)


def test_all_senseless_parameters_are_reported_at_once():
    with pytest.raises(ConfigError) as refusal:
        Dirichlet(-1.0, val=2.0, min_examples=-3)
    assert len(refusal.value.problems) == 3
