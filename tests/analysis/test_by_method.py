"""A sweep over methods seen whole, on runs that can be followed by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedprune import analysis
from fedprune.analysis.by_method import (
    DENSE,
    FIXED,
    KIND,
    MOVING,
    OTHER,
    PERSONAL,
    by_method,
    kind_of,
    methods_markdown,
    over_methods,
    pareto_front,
    target_of,
)
from fedprune.analysis.read import METHOD

# method: (client accuracies over the seeds, MB up, MB down); at density 0.05 everybody is 0.1 less accurate for half the bytes.
METHODS = {
    "dense": ((0.80, 0.82, 0.87), 40.0, 40.0),
    "sparse": ((0.80, 0.80, 0.80), 4.0, 6.0),
    "slow": ((0.70, 0.70, 0.70), 8.0, 8.0),
}


def sweep() -> tuple[pd.DataFrame, pd.DataFrame]:
    """(runs, rounds): two rounds each, the first at half the bytes and 0.2 below the end."""
    runs, rounds = [], []
    for density in (0.1, 0.05):
        for name, (accuracies, up, down) in METHODS.items():
            for seed, accuracy in enumerate(accuracies):
                less, share = (0.1, 0.5) if density == 0.05 else (0.0, 1.0)
                which: dict[str, Any] = {"run": f"{name}{density}{seed}", "status": "done", "density": density, METHOD: name}
                end = {"client/accuracy_mean": accuracy - less, "client/accuracy_p10": accuracy - less - 0.3}
                totals = {"total/up_bytes": up * share * 1e6, "total/down_bytes": down * share * 1e6}
                runs.append(which | {"seed": seed} | end | totals | {"test/accuracy": 0.5, "density/weights": density})
                for number, back in ((0, 0.2), (1, 0.0)):
                    sent = (up + down) * share * 1e6 * (number + 1) / 2
                    seen = {"round": number, "client/accuracy_mean": accuracy - less - back, "wire/total_bytes": sent}
                    rounds.append(which | seen)
    return pd.DataFrame(runs), pd.DataFrame(rounds)


def row(table: pd.DataFrame, density: float, name: str) -> pd.Series:
    (found,) = table[(table["density"] == density) & (table[METHOD] == name)].to_dict("records")
    return found


def test_a_row_per_density_and_method_with_mean_and_spread_by_hand():
    # Of 80, 82, 87: mean 83, sample variance ((-3)^2 + (-1)^2 + 4^2) / 2 = 13.
    table = by_method(*sweep(), target=0.75)
    assert list(table[METHOD]) == ["dense", "sparse", "slow"] * 2
    dense = row(table, 0.1, "dense")
    assert (dense["seeds"], dense["client accuracy (%)"]) == (3, pytest.approx(83))
    assert dense["client accuracy (%) sd"] == pytest.approx(math.sqrt(13))
    assert dense["worst decile (%)"] == pytest.approx(53)
    assert (dense["up (MB)"], row(table, 0.05, "dense")["down (MB)"]) == (pytest.approx(40), pytest.approx(20))


def test_what_is_alive_is_of_the_clients_own_masks_where_they_have_them():
    runs, rounds = sweep()
    runs.loc[runs[METHOD] == "slow", "client/density_mean"] = 0.25
    table = by_method(runs, rounds, target=0.75)
    assert row(table, 0.1, "slow")["alive (%)"] == pytest.approx(25)
    assert row(table, 0.1, "dense")["alive (%)"] == pytest.approx(10)


def test_moments_that_were_measured_have_columns_and_others_have_none():
    runs, rounds = sweep()
    assert not [column for column in by_method(runs, rounds, target=0.75) if "local training" in column or "unseen" in column]
    runs["client/accuracy_tuned_mean"] = runs["client/accuracy_mean"] + 0.1
    runs.loc[runs[METHOD] == "sparse", "client/accuracy_unseen_mean"] = 0.25
    table = by_method(runs, rounds, target=0.75)
    assert row(table, 0.1, "dense")["client accuracy after one local training (%)"] == pytest.approx(93)
    assert row(table, 0.1, "sparse")["unseen client accuracy (%)"] == pytest.approx(25)
    text = methods_markdown(table, 0.8)
    assert "| client accuracy (%) | client accuracy after one local training (%) | unseen client accuracy (%) | worst" in text
    assert "| **sparse** | 80.0 ± 0.0 | 90.0 ± 0.0 | 25.0 ± 0.0 | 50.0 ± 0.0 |" in text
    assert "| slow | 70.0 ± 0.0 | 80.0 ± 0.0 |  | 40.0" in text


def test_what_the_target_took_is_said_where_every_seed_reached_it():
    # At 0.8, `sparse` is there after its second round, with all of its 10 MB; at 0.82, two of three seeds of `dense`.
    table = by_method(*sweep(), target=0.8)
    assert (row(table, 0.1, "sparse")["rounds to target"], row(table, 0.1, "sparse")["MB to target"]) == (2, pytest.approx(10))
    assert math.isnan(row(table, 0.1, "slow")["rounds to target"])
    assert math.isnan(row(by_method(*sweep(), target=0.82), 0.1, "dense")["MB to target"])
    # At 0.6, the first round of `sparse` and of `dense` will do (80 - 20 = 60), for half of the bytes.
    early = row(by_method(*sweep(), target=0.6 - 1e-9), 0.1, "sparse")
    assert (early["rounds to target"], early["MB to target"]) == (1, pytest.approx(5))


def test_the_front_is_whom_nobody_beats():
    table = by_method(*sweep(), target=0.75)
    ten = table[table["density"] == 0.1]
    assert dict(zip(ten[METHOD], pareto_front(ten), strict=True)) == {"dense": True, "sparse": True, "slow": False}
    # As accurate as another one for more bytes is beaten, too; two that are the same in both are not.
    points = pd.DataFrame({"up (MB)": [1.0, 2, 1], "down (MB)": [0.0, 0, 0], "client accuracy (%)": [80.0, 80, 80]})
    assert list(pareto_front(points)) == [True, False, True]


def test_the_target_is_five_points_below_the_best_run_that_is_done():
    runs, _ = sweep()
    assert target_of(runs) == pytest.approx(0.82)
    assert target_of(runs.assign(status="failed")) == 0.0


def test_the_page_has_a_table_per_density_and_the_front_in_bold():
    table = by_method(*sweep(), target=0.8)
    text = methods_markdown(table, 0.8)
    assert text.index("## Density 0.1\n") < text.index("## Density 0.05\n")
    assert "| **dense** | 83.0 ± 3.6 | 53.0 ± 3.6 | 50.0 ± 0.0 | 10.0 | 40.0 | 40.0 |" in text
    assert "| slow | 70.0 ± 0.0 |" in text
    assert "MB to 80 %" in text


def test_only_a_sweep_over_methods_is_seen_so():
    runs, rounds = sweep()
    assert over_methods(runs)
    assert not over_methods(runs[runs[METHOD] == "dense"])
    assert not over_methods(runs.drop(columns=METHOD))
    assert len(by_method(runs.assign(status="unfinished"), rounds, 0.5)) == 0


def test_a_sweep_over_methods_from_the_command_line_is_compared(command):
    tiny = ("federated.clients=3", "federated.cohort=2", "local.epochs=null", "local.steps=2", "logger=none", "executor=serial")
    words = ("+experiment@_global_=fedavg,snip_fedavg", "data=digits", "model=lenet_300_100", "name=bench", "rounds=2")
    result = command(*words, *tiny, "density=0.5", "eval_every=1", "-m")
    assert result.rc == 0, result.text
    page = Path("outputs/bench/methods.md").read_text()
    assert "fedavg" in page and "snip_fedavg" in page
    assert Path("outputs/bench/figures/accuracy_bytes_methods.png").stat().st_size > 1000
    assert analysis.load_runs("outputs/bench")[METHOD].nunique() == 2


def test_a_method_without_a_density_stands_at_each_and_was_run_once():
    runs, rounds = sweep()
    once = (runs[METHOD] != "dense") | (runs["density"] == 0.1)
    runs, rounds = runs[once], rounds[rounds["run"].isin(runs["run"][once])]
    runs = runs.assign(density=runs["density"].where(runs[METHOD] != "dense", 1.0))
    table = by_method(runs, rounds, target=0.8)
    assert list(table["density"]) == [0.1] * 3 + [0.05] * 3
    for density in (0.1, 0.05):
        assert (row(table, density, "dense")["seeds"], row(table, density, "dense")["up (MB)"]) == (3, pytest.approx(40))
    # Alone, or beside others that were also run at other densities, a method at density 1 is what it is.
    assert set(by_method(runs[runs[METHOD] == "dense"], rounds, 0.8)["density"]) == {1.0}


@pytest.mark.parametrize(
    ("whose", "when", "how_often", "up", "kind"),
    [
        ("shared", "during_training", "never", 40.0, DENSE),
        ("shared", "during_training", "never", 1.4, OTHER),  # 40 MB down: its updates are compressed
        ("nested", "during_training", "never", 40.0, OTHER),
        ("shared", "before_training", "one_shot", 4.0, FIXED),
        ("voted", "during_training", "dynamic", 4.0, MOVING),
        ("personal", "once_accurate", "stepwise", 4.0, PERSONAL),
        ("personal", "during_training", "never", 0.0, PERSONAL),
    ],
)
def test_the_kind_of_a_method_follows_from_its_axes_and_bytes(whose, when, how_often, up, kind):
    axes = {"whose": [whose], "when": [when], "how_often": [how_often]}
    assert kind_of(pd.DataFrame({**axes, "total/up_bytes": [up * 1e6], "total/down_bytes": [40e6]})) == kind


def test_without_axes_the_kind_is_not_known():
    assert set(by_method(*sweep(), target=0.8)[KIND]) == {OTHER}
