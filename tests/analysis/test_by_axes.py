"""A sweep over the taxonomy seen whole, on runs that can be followed by hand."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from fedprune import analysis
from fedprune.analysis.by_axes import axes_markdown, over_taxonomy
from fedprune.analysis.figures import accuracy_taxonomy
from fedprune.errors import FedpruneError

AXES = {
    "what": ["weights_global", "neurons_global"],
    "criterion": ["snip", "magnitude"],
    "when": ["after_training", "before_training"],
    "how_often": ["gradual", "one_shot"],
}


def run(status: str = "done", accuracy: float = math.nan, seed: int = 0, density: float = 0.1, **which: str) -> dict[str, Any]:
    about = {"run": f"{which}{density}{seed}", "status": status, "reason": "", "name": "grid", "seed": seed, "density": density}
    return about | which | {"test/accuracy": accuracy}


def sweep(densities: tuple[float, ...] = (0.1, 0.5), seeds: int = 3) -> pd.DataFrame:
    """Accuracy 80, 82 and 87 % over the seeds, 10 less at the lower density; gradual means something after training only."""
    rows = []
    for density, *answers in itertools.product(densities, *AXES.values()):
        which = dict(zip(AXES, answers, strict=True))
        refused = which["how_often"] == "gradual" and which["when"] == "before_training"
        for seed, accuracy in enumerate((0.80, 0.82, 0.87)[:seeds]):
            result = {"status": "skipped"} if refused else {"accuracy": accuracy - 0.1 * (density == 0.1)}
            rows.append(run(seed=seed, density=density, **result, **which))
    return pd.DataFrame(rows)


def cell(runs: pd.DataFrame, **which: Any) -> pd.Series:
    return pd.Series(np.logical_and.reduce([runs[key] == value for key, value in which.items()]), index=runs.index)


GONE = {"density": 0.1, "what": "neurons_global", "criterion": "snip", "when": "after_training", "how_often": "one_shot"}


def test_only_a_sweep_over_all_four_axes_and_nothing_else_but_the_density_is_seen_whole():
    runs = sweep()
    assert over_taxonomy(runs)
    assert over_taxonomy(runs[runs["density"] == 0.1])
    assert not over_taxonomy(runs[runs["what"] == "weights_global"])
    assert not over_taxonomy(pd.concat([runs.assign(rewind="none"), runs.assign(rewind="init", run=runs["run"] + "r")]))


def test_a_row_per_cell_with_mean_and_spread_over_its_seeds_by_hand():
    # Of 80, 82, 87: mean 83, sample variance ((-3)^2 + (-1)^2 + 4^2) / 2 = 13.
    table = analysis.by_axes(sweep())
    assert len(table) == 2 * 2**4
    done = table[~table["refused"]]
    assert set(done["seeds"]) == {3}
    assert list(done["test accuracy (%)"]) == pytest.approx([83] * 12 + [73] * 12)  # dense first
    assert list(done["test sd (%)"]) == pytest.approx([math.sqrt(13)] * 24)
    refused = table[table["refused"]]
    assert set(refused["when"]) == {"before_training"} and set(refused["how_often"]) == {"gradual"}
    assert refused["test accuracy (%)"].isna().all() and set(refused["seeds"]) == {0}


def test_answers_are_in_the_order_in_which_one_would_tell_them():
    table = analysis.by_axes(sweep())
    assert list(table["density"].drop_duplicates()) == [0.5, 0.1]
    assert list(zip(table["when"], table["how_often"], strict=True))[:4] == [
        ("before_training", "one_shot"),
        ("before_training", "gradual"),
        ("after_training", "one_shot"),
        ("after_training", "gradual"),
    ]


def test_reading_has_a_table_per_density_without_columns_in_which_all_is_refused():
    runs = sweep()
    runs.loc[cell(runs, **GONE), ["status", "test/accuracy"]] = ["failed", math.nan]
    lines = axes_markdown(analysis.by_axes(runs)).splitlines()
    assert lines[2:7] == [
        "## 0.5 of the units alive",
        "",
        "| what | criterion | before_training · one_shot | after_training · one_shot | after_training · gradual |",
        "| --- | --- | ---: | ---: | ---: |",
        "| neurons_global | magnitude | 83.0 ± 3.6 | 83.0 ± 3.6 | 83.0 ± 3.6 |",
    ]
    assert "| neurons_global | snip | 73.0 ± 3.6 | failed | 73.0 ± 3.6 |" in lines


def test_what_is_refused_for_some_is_told_and_what_was_not_run_is_empty():
    runs = sweep(densities=(0.1,), seeds=1)
    runs.loc[cell(runs, **GONE), ["status", "test/accuracy"]] = ["skipped", math.nan]
    runs = runs[~cell(runs, **GONE | {"criterion": "magnitude", "how_often": "gradual"})]
    lines = axes_markdown(analysis.by_axes(runs)).splitlines()
    assert "| neurons_global | snip | 70.0 | – | 70.0 |" in lines
    assert "| neurons_global | magnitude | 70.0 | 70.0 |  |" in lines


def numbers(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_heat_map_has_a_panel_per_density_and_hatches_what_is_refused():
    runs = sweep()
    runs.loc[cell(runs, **GONE), ["status", "test/accuracy"]] = ["failed", math.nan]
    *panels, bar = accuracy_taxonomy(analysis.by_axes(runs)).axes
    dense, sparse = panels
    assert [panel.get_title() for panel in panels] == ["50 % of the units alive", "10 % of the units alive"]
    assert [label.get_text() for label in dense.get_yticklabels()] == [
        *("neurons_global · magnitude", "neurons_global · snip", "weights_global · magnitude", "weights_global · snip")
    ]
    assert [label.get_text() for label in sparse.get_xticklabels()][:2] == [
        "before_training · one_shot",
        "before_training · gradual",
    ]
    assert (numbers(dense), numbers(sparse)) == (["83"] * 12, ["73"] * 11)
    for panel in panels:
        hatched = {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in panel.patches if patch.get_hatch()}
        assert hatched == {(1, row) for row in range(4)}
        assert panel.images[0].get_clim() == pytest.approx((73, 83))
    assert bar.get_ylabel() == "test accuracy (%)"


def test_a_heat_map_of_nothing_is_refused():
    runs = sweep().assign(status="skipped", **{"test/accuracy": math.nan})
    with pytest.raises(FedpruneError, match="nothing to draw"):
        accuracy_taxonomy(analysis.by_axes(runs))
    assert len(analysis.by_axes(runs.drop(columns="test/accuracy"))) == 32
