"""How a pass is cut into batches: a remainder of one, and batches that are not full."""

from __future__ import annotations

import pytest
import torch

from fedprune.local.recipe import Recipe


@pytest.fixture(scope="module")
def batches(tiny):
    return tiny().executor()._client_round.context.batches


@pytest.mark.parametrize(
    ("examples", "size", "smallest", "drop_last", "expected"),
    [
        (33, 16, 1, False, [16, 16, 1]),
        (33, 16, 2, False, [16, 17]),  # one that is left joins the batch before it
        (34, 16, 2, False, [16, 16, 2]),
        (32, 16, 2, False, [16, 16]),
        (17, 16, 2, False, [17]),
        (1, 16, 2, False, [1]),  # there is none before it: such clients are refused when a run is built
        (5, 16, 2, False, [5]),
        (33, 16, 1, True, [16, 16]),
        (33, 16, 2, True, [16, 16]),
        (4097, 16, 2, False, [16] * 255 + [17]),  # across the stretches that are gathered at once
    ],
)
def test_a_pass_is_cut_into_batches(examples, size, smallest, drop_last, expected, batches):
    indices, generator = torch.arange(examples) % 1000, torch.Generator().manual_seed(0)
    drawn = list(batches.shuffled(indices, size, 1, None, generator, smallest, drop_last))
    assert [len(labels) for _, labels in drawn] == expected
    recipe = Recipe(batch_size=size, smallest=smallest, drop_last=drop_last)
    assert recipe.batches(examples) == len(expected)
    assert recipe.examples_of_a_pass(examples) == sum(expected)
    order = indices[torch.randperm(examples, generator=torch.Generator().manual_seed(0))][: sum(expected)]
    assert torch.equal(torch.cat([labels for _, labels in drawn]), batches.dataset.y[order].long())


def test_steps_go_on_into_passes_that_are_cut_alike(batches):
    drawn = batches.shuffled(torch.arange(33), 16, None, 5, torch.Generator().manual_seed(0), 2)
    assert [len(labels) for _, labels in drawn] == [16, 17, 16, 17, 16]
    drawn = batches.shuffled(torch.arange(33), 16, None, 5, torch.Generator().manual_seed(0), 1, True)
    assert [len(labels) for _, labels in drawn] == [16] * 5
