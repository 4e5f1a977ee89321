"""What a sweep that tries settings of several methods says of them."""

from __future__ import annotations

import pandas as pd
import pytest

from fedprune.analysis.by_method import by_method, named
from fedprune.analysis.read import METHOD
from fedprune.analysis.tuning import settings, tried, tuned, tuning_markdown

LR = "lr"
# method, learning rate, (validation accuracy of seeds 0 and 1), what it was in the end
TRIED = [
    ("trials/one", 0.01, (0.60, 0.62), 0.5),
    ("trials/one", 0.1, (0.70, 0.60), 0.6),  # mean 0.65: the best of one, though not of every seed
    ("trials/two", 0.01, (0.80, 0.80), 0.7),  # as good as the next: the first is taken
    ("trials/two", 0.1, (0.80, 0.80), 0.8),
]


def sweep() -> pd.DataFrame:
    rows = []
    for method, lr, accuracies, test in TRIED:
        for seed, accuracy in enumerate(accuracies):
            which = {"run": f"{method}{lr}{seed}", "status": "done", "density": 0.1, METHOD: method, LR: lr, "seed": seed}
            rows.append(which | {"criterion": method[-3:], "val/accuracy": accuracy, "client/accuracy_mean": test})
    return pd.DataFrame(rows)


def test_a_setting_is_what_varies_within_a_method():
    runs = sweep()
    assert settings(runs) == [LR]  # the criterion varies between methods alone
    assert settings(runs[runs[LR] == 0.1]) == []


def test_the_best_setting_of_each_method_is_that_of_the_greatest_mean_validation_accuracy():
    runs = named(sweep())
    table = tried(runs)
    assert table.loc[(0.1, "one"), "0.01"] == pytest.approx(61)
    assert table.loc[(0.1, "one"), "0.1"] == pytest.approx(65)
    assert sorted(tuned(runs)[["run"]].itertuples(index=False, name=None)) == [
        *[("trials/one0.10",), ("trials/one0.11",)],
        *[("trials/two0.010",), ("trials/two0.011",)],
    ]


def test_a_run_that_did_not_finish_is_no_evidence_for_its_setting():
    runs = named(sweep())
    runs.loc[(runs[METHOD] == "one") & (runs[LR] == 0.1), "status"] = "failed"
    assert set(tuned(runs)[LR]) == {0.01}


def test_a_setting_that_failed_for_one_seed_is_not_taken():
    """Seed 0 alone has 0.9 at the rate of 0.1, which would be the best of `one`; the page shows that it failed."""
    runs = sweep()
    runs.loc[(runs[METHOD] == "trials/one") & (runs[LR] == 0.1), "val/accuracy"] = [0.9, float("nan")]
    runs.loc[(runs[METHOD] == "trials/one") & (runs[LR] == 0.1) & (runs["seed"] == 1), "status"] = "failed"
    assert set(tuned(named(runs))[LR]) == {0.01}
    assert "| one | **61.0** | failed |" in tuning_markdown(named(runs))
    table = by_method(runs, pd.DataFrame({"run": [], "round": []}), target=0.9)
    assert dict(zip(table[METHOD], table["client accuracy (%)"], strict=True)) == {"two": 70.0, "one": 50.0}


def test_settings_stand_by_their_numbers_and_one_that_was_not_tried_is_empty():
    runs = named(sweep())
    runs = pd.concat([runs, runs[(runs[METHOD] == "two") & (runs[LR] == 0.1)].assign(**{LR: 0.05, "val/accuracy": 0.85})])
    page = tuning_markdown(runs)
    assert "| method | 0.01 | 0.05 | 0.1 |" in page
    assert "| one | 61.0 |  | **65.0** |" in page and "| two | 80.0 | **85.0** | 80.0 |" in page


def test_a_comparison_shows_each_method_at_its_best_setting_under_its_own_name():
    rounds = pd.DataFrame({"run": [], "round": []})
    table = by_method(sweep(), rounds, target=0.9)
    assert table[[METHOD, "seeds", "client accuracy (%)"]].to_numpy().tolist() == [["two", 2, 70.0], ["one", 2, 60.0]]


def test_the_page_marks_what_is_taken():
    page = tuning_markdown(named(sweep()))
    assert "by lr" in page and "## Density 0.1" in page
    assert "| one | 61.0 | **65.0** |" in page and "| two | **80.0** | 80.0 |" in page
