"""An exchange within layers: by hand, and against plain sorting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedprune.pruning.criterion.set_exchange import drop_within, grow_within


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def bools(text: str) -> torch.Tensor:
    return torch.tensor([letter == "x" for letter in text])


def test_each_layer_gives_up_its_own_fraction_and_gets_as_many_back():
    mask = {"a": bools("xxxx.."), "b": bools("xx....")}
    drop = {"a": tensor(4, 1, 3, 2, 9, 9), "b": tensor(5, 6, 9, 9, 9, 9)}
    # Half of a's four, the scores 1 and 2; a third of b's two is 2/3, so one, the score 5. The dead's do not matter.
    smaller = drop_within(mask, drop, 0.5)
    assert smaller["a"].tolist() == bools("x.x...").tolist()
    assert drop_within(mask, drop, 1 / 3)["b"].tolist() == bools(".x....").tolist()
    # Growing, the best of the dead, those just dropped among them: in a the scores 8 (dropped a moment ago) and 7; in b the 9.
    grow = {"a": tensor(99, 8, 0, 1, 7, 2), "b": tensor(1, 99, 2, 9, 3, 4)}
    grown = grow_within(smaller, grow, mask)
    assert grown["a"].tolist() == bools("xxx.x.").tolist()
    assert grown["b"].tolist() == bools(".x.x..").tolist()
    assert [mask["a"].tolist(), mask["b"].tolist()] == [bools("xxxx..").tolist(), bools("xx....").tolist()]  # as they were


def test_a_whole_number_is_not_rounded_up_for_a_float_error():
    mask = {"a": torch.ones(10, dtype=torch.bool)}
    assert 0.1 * 3 * 10 > 3  # 3.0000000000000004
    assert int(drop_within(mask, {"a": torch.arange(10.0)}, 0.1 * 3)["a"].sum()) == 7


@pytest.mark.parametrize("seed", range(5))
def test_random_masks_against_sorting(seed):
    random = np.random.default_rng(seed)
    mask = {name: random.random(size) < 0.4 for name, size in (("a", 50), ("b", 9), ("c", 30))}
    drop, grow = ({name: random.permutation(len(m)).astype(float) for name, m in mask.items()} for _ in range(2))
    tensors = [{name: torch.from_numpy(array) for name, array in part.items()} for part in (mask, drop, grow)]
    smaller = drop_within(tensors[0], tensors[1], 0.35)
    grown = grow_within(smaller, tensors[2], tensors[0])
    for name, alive in mask.items():
        living = sorted(np.flatnonzero(alive), key=lambda place: drop[name][place])
        stays = set(living[math.ceil(0.35 * len(living)) :])
        assert set(np.flatnonzero(smaller[name].numpy())) == stays
        dead = sorted(set(range(len(alive))) - stays, key=lambda place: -grow[name][place])
        assert set(np.flatnonzero(grown[name].numpy())) == stays | set(dead[: len(living) - len(stays)])
