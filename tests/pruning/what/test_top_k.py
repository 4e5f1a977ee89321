"""The best by a sampled cut are the best by a full sort, also where the sample says little; ties by name and index."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprune.pruning.what import top_k
from fedprune.pruning.what.top_k import keep_best, keep_best_of_each

NUMBER = 5_000
RANDOM = np.random.default_rng(0)
VALUES: dict[str, np.ndarray] = {
    "all equal": np.zeros(NUMBER),
    "three values": RANDOM.integers(0, 3, NUMBER),
    "normal": RANDOM.normal(size=NUMBER),
    "rising": np.arange(NUMBER),
    "a few large": np.where(RANDOM.random(NUMBER) < 0.003, 1e30, RANDOM.random(NUMBER)),
    "mostly dead": np.where(RANDOM.random(NUMBER) < 0.9, -math.inf, RANDOM.random(NUMBER)),
    "mostly protected": np.where(RANDOM.random(NUMBER) < 0.6, math.inf, RANDOM.random(NUMBER)),
    "periodic": np.tile([0.0, 1, 2, 3, 4], NUMBER // 5),
    "all dead": np.full(NUMBER, -math.inf),
}


@pytest.mark.parametrize("sample", [1, 30, 1 << 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", VALUES)
def test_the_best_are_those_of_a_stable_sort(case, dtype, sample, monkeypatch):
    monkeypatch.setattr(top_k, "SAMPLE", sample)
    monkeypatch.setattr(top_k, "CHUNK", 777)
    values = torch.from_numpy(VALUES[case].astype("float64")).to(dtype)
    scores = {"b": values[:1200].view(40, 30), "a": values[1200:]}
    flat = torch.cat([scores["a"], scores["b"].flatten()])
    order = np.argsort(-flat.numpy(), kind="stable")
    for number in (0, 1, 2, 500, 2_500, 4_998, 4_999, 5_000):
        expected = torch.zeros(NUMBER, dtype=torch.bool)
        expected[torch.from_numpy(order[:number].copy())] = True
        kept = keep_best(scores, number)
        assert torch.equal(torch.cat([kept["a"], kept["b"].flatten()]), expected & (flat > -math.inf)), number


def test_floats_of_two_kinds_are_compared_as_what_they_are():
    scores = {"a": torch.tensor([0.1]), "b": torch.tensor([0.1], dtype=torch.float64)}  # 0.1 as float32 is a little more
    assert [name for name, kept in keep_best(scores, 1).items() if kept] == ["a"]
    scores["b"] += 1e-12
    assert [name for name, kept in keep_best(scores, 1).items() if kept] == ["a"]
    scores["b"] += 1e-8
    assert [name for name, kept in keep_best(scores, 1).items() if kept] == ["b"]


def test_scores_need_not_be_contiguous():
    scores = torch.arange(12.0).view(3, 4).T
    assert torch.equal(keep_best({"a": scores}, 5)["a"], scores > 6)


@pytest.mark.parametrize("chunk", [1, 8, 1 << 18])
def test_the_best_of_each_group_by_hand(chunk, monkeypatch):
    monkeypatch.setattr(top_k, "CHUNK", chunk)

    def kept(*rows: list[float]) -> Tensor:
        return keep_best_of_each(torch.tensor(rows), 2, 4).int()

    inf = math.inf
    assert kept([1, 2, 3, 4, 4, 3, 2, 1]).tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]
    assert kept([5, 5, 5, 5, 0, 1, 1, 1]).tolist() == [[1, 1, 0, 0, 0, 1, 1, 0]]  # ties to the lower index
    assert kept([-inf, -inf, -inf, 1], [inf, -inf, inf, 1]).tolist() == [[0, 0, 0, 1], [1, 0, 1, 0]]
