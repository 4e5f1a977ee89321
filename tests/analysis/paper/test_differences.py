"""Paired differences to a named cell, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from fedprune.analysis.metric import Metric
from fedprune.analysis.paper.differences import differences, differences_markdown
from fedprune.errors import FedpruneError


def runs(**accuracies: list[float]) -> pd.DataFrame:
    """Runs of several criteria at density 0.1, a seed for each accuracy; `dense` was never pruned and has density 1."""
    rows: list[dict[str, Any]] = [
        {"run": f"{name}{seed}", "status": "done", "name": "x", "criterion": name, "seed": seed, "test/accuracy": accuracy}
        | {"density": 1.0 if name == "dense" else 0.1, "prune/events": int(name != "dense")}
        for name, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_the_interval_is_of_the_differences_of_equal_seeds():
    # Differences: 3, 1, 2 points: mean 2, sample standard deviation 1.
    # t(0.975, 2) = 4.302653, and 4.302653 / sqrt(3) = 2.484138.
    table = differences(runs(magnitude=[0.83, 0.71, 0.62], dense=[0.80, 0.70, 0.60]), "dense")
    (row,) = table.to_dict("records")
    assert (row["metric"], row["cell"], row["density"], row["against"]) == ("test accuracy (%)", "magnitude", 0.1, "dense")
    assert [row[name] for name in ("difference", "low", "high", "seeds")] == pytest.approx([2, 2 - 2.484138, 2 + 2.484138, 3])
    # Of 83, 71, 62 the mean is 72; the sample variance (121 + 1 + 100) / 2 = 111.
    assert [row["mean"], row["sd"]] == pytest.approx([72, math.sqrt(111)])
    assert row["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("accuracies", "verdict"), [([0.9, 0.8, 0.7], "held"), ([0.7, 0.6, 0.5], "reversed"), ([0.9], "not testable here")]
)
def test_the_words_are_those_of_verdicts(accuracies: list[float], verdict: str):
    table = differences(runs(snip=accuracies, dense=[0.80, 0.701, 0.6]), "dense")
    assert list(table["verdict"]) == [verdict]


def test_less_can_be_better():
    frame = runs(snip=[0.5, 0.4], dense=[0.8, 0.7]).rename(columns={"test/accuracy": "test/loss"})
    table = differences(frame.assign(metric="loss", larger_is_better=False), "dense")
    assert list(table["difference"]) == pytest.approx([0.3])


def test_the_reference_is_taken_at_the_same_density_if_it_was_pruned():
    pruned = pd.concat([runs(snip=[0.9, 0.8], random=[0.7, 0.5]), runs(snip=[0.6, 0.6]).assign(density=0.05)])
    table = differences(pruned.assign(run=range(len(pruned))), "random").set_index("density")
    assert table.loc[0.1, "difference"] == pytest.approx(25)  # of 20 and 30
    assert (table.loc[0.05, "seeds"], table.loc[0.05, "verdict"]) == (0, "not testable here")


def test_dense_runs_are_of_density_one_whatever_their_key_says():
    frame = runs(softest=[0.9, 0.8], mean=[0.7, 0.5]).assign(**{"prune/events": 0, "density/weights": 1.0})
    (row,) = differences(frame, "mean").to_dict("records")
    assert (row["cell"], row["density"], row["difference"]) == ("softest", 1.0, pytest.approx(25))


def test_a_dense_cell_is_compared_with_each_density_of_the_reference():
    pruned = pd.concat([runs(snip=[0.9, 0.8]), runs(snip=[0.6, 0.6]).assign(density=0.05), runs(dense=[0.9, 0.9])])
    table = differences(pruned.assign(run=range(len(pruned))), "snip").set_index("density")
    assert list(table["cell"]) == ["dense", "dense"]
    assert [table.loc[density, "difference"] for density in (0.1, 0.05)] == pytest.approx([5, 30])


def test_a_method_is_named_without_its_folder_or_with_it():
    frame = runs(snip=[0.9, 0.8], dense=[0.8, 0.7]).rename(columns={"criterion": "method"})
    frame["method"] = "benchmark/" + frame["method"]
    for name in ("dense", "benchmark/dense"):
        assert list(differences(frame, name)["cell"]) == ["snip"]


def test_an_unknown_cell_is_answered_with_those_there_are():
    with pytest.raises(FedpruneError, match=r"--against 'fedavg': .* choose one of these:\n  dense\n  snip"):
        differences(runs(snip=[0.9], dense=[0.8]), "fedavg")


def test_the_page_has_mean_difference_and_verdict():
    page = differences_markdown(differences(runs(snip=[0.9, 0.8], dense=[0.8, 0.7]), "dense"), Metric())
    assert "## Test accuracy (%) at density 0.1, against dense" in page
    assert "| snip | 85.0 ± 7.1 | +10.0 (+10.0 to +10.0, n = 2) | held |" in page
