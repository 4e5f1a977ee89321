"""Accuracy at the end of each level and at its early-stopping round, on rounds that can be followed by hand."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedprune import analysis
from fedprune.analysis.by_level import gains_markdown, levels_markdown
from fedprune.analysis.metric import metric_of
from fedprune.analysis.verdict import Interval
from fedprune.errors import FedpruneError

NONE = float("nan")
Points = list[tuple[int, int, float, float, float, float]]

# (round, prune events, density, val/loss, val/accuracy, test/accuracy); every second round is evaluated, and level 1 is longer.
TICKET: Points = [
    (0, 0, 1.0, 0.9, 0.60, 0.61),
    (1, 0, 1.0, NONE, NONE, NONE),
    (2, 0, 1.0, 0.4, 0.80, 0.81),  # the least of level 0: its 3rd round
    (3, 0, 1.0, 0.5, 0.82, 0.83),
    (4, 1, 0.5, 0.3, 0.70, 0.71),  # the least of level 1, twice: its 1st round
    (5, 1, 0.5, NONE, NONE, NONE),
    (6, 1, 0.5, 0.3, 0.72, 0.73),
    (7, 2, 0.25, NONE, NONE, NONE),
    (8, 2, 0.25, 0.8, 0.50, 0.51),  # the only one of level 2: its 2nd round
]


def rounds(points: Points, seed: int = 0, better: float = 0.0, **which: Any) -> pd.DataFrame:
    """The rounds of one run, its test accuracies raised by `better`."""
    columns = ["round", "prune/events", "density/weights", "val/loss", "val/accuracy", "test/accuracy"]
    frame = pd.DataFrame(points, columns=columns)
    frame["test/accuracy"] += better
    return frame.assign(run=f"{which}{seed}", status="done", name="lth", seed=seed, **which)


def by_level(*runs: pd.DataFrame) -> pd.DataFrame:
    frame = pd.concat(runs, ignore_index=True)
    return analysis.by_level(frame, analysis.varying(frame))


def lines(*runs: pd.DataFrame) -> list[str]:
    return [line for line in levels_markdown(by_level(*runs)).splitlines() if line.startswith(("|", "#"))]


def test_early_stopping_is_the_first_round_of_least_validation_loss_counted_from_the_start_of_its_level():
    found = analysis.early_stopping(rounds(TICKET))
    assert list(found["prune/events"]) == [0, 1, 2]
    assert list(found["early/round"]) == [3, 1, 2]
    assert list(found["early/val_accuracy"]) == [0.80, 0.70, 0.50]
    assert list(found["early/test_accuracy"]) == [0.81, 0.71, 0.51]


def test_where_each_level_is_evaluated_once_nothing_stops_early():
    ends = [TICKET[3], TICKET[6], TICKET[8]]
    assert analysis.early_stopping(rounds(ends)).empty
    assert "## Early-stopping round of each level" not in lines(rounds(ends))


def test_early_stopping_agrees_with_a_plain_loop_over_random_runs():
    rng = np.random.default_rng(0)
    points: Points = []
    for round, event in enumerate(np.sort(rng.integers(0, 4, 40))):
        loss = rng.choice([NONE, *rng.integers(1, 5, 3)])
        points.append((round, int(event), 0.5**event, loss, rng.random(), rng.random()))
    frame = pd.concat([rounds(points), rounds(points, seed=1)], ignore_index=True)
    expected = []
    for event in sorted({point[1] for point in points}):
        level = [point for point in points if point[1] == event]
        judged = [point for point in level if not math.isnan(point[3])]
        if judged:
            best = min(judged, key=lambda point: (point[3], point[0]))
            expected.append((event, best[0] - level[0][0] + 1, best[5]))
    found = analysis.early_stopping(frame)
    for _, run in found.groupby("run"):
        assert list(zip(run["prune/events"], run["early/round"], run["early/test_accuracy"], strict=True)) == expected


def test_test_data_have_no_part_in_early_stopping():
    changed = rounds(TICKET)
    changed["test/accuracy"] = 1 - changed["test/accuracy"]
    assert list(analysis.early_stopping(changed)["early/round"]) == [3, 1, 2]


def test_a_level_whose_losses_are_all_missing_has_no_early_stopping_and_infinite_ones_are_numbers():
    points = [(r, e, d, loss * {0: 1, 1: NONE, 2: math.inf}[e], v, t) for r, e, d, loss, v, t in TICKET]
    found = analysis.early_stopping(rounds(points))
    assert list(zip(found["prune/events"], found["early/round"], strict=True)) == [(0, 3), (2, 2)]


def test_means_and_spread_over_seeds_by_hand():
    # Level 0 ends at 81, 83 and 88 %: mean 84, sample variance ((-3)^2 + (-1)^2 + 4^2) / 2 = 13.
    table = by_level(*(rounds(TICKET, seed, better) for seed, better in enumerate([-0.02, 0.0, 0.05])))
    assert list(table["weights remaining (%)"]) == [100, 50, 25]
    assert list(table["level"]) == ["0", "1", "2"]
    assert list(table["seeds"]) == [3, 3, 3]
    assert list(table["test accuracy (%)"]) == pytest.approx([84, 74, 52])
    assert list(table["test accuracy (%) sd"]) == pytest.approx([math.sqrt(13)] * 3)
    assert list(table["early-stopping round"]) == [3, 1, 2]
    assert list(table["early-stopping round sd"]) == [0, 0, 0]
    assert list(table["test accuracy at early stopping (%)"]) == pytest.approx([82, 72, 52])
    assert list(table["val accuracy at early stopping (%)"]) == pytest.approx([80, 70, 50])


ONE_SHOT: Points = [(0, 0, 1.0, 0.4, 0.8, 0.8), (1, 1, 0.25, 0.7, 0.6, 0.6)]


def test_cells_with_different_levels_meet_at_their_densities():
    iterative, one_shot = rounds(TICKET, how_often="iterative"), rounds(ONE_SHOT, how_often="one_shot")
    assert lines(iterative, one_shot)[:6] == [
        "## Test accuracy (%) at the end of each level",
        "| weights remaining (%) | level | iterative | one_shot |",
        "| ---: | ---: | ---: | ---: |",
        "| 100 | 0 | 83.0 | 80.0 |",
        "| 50 | 1 | 73.0 |  |",
        "| 25 | 1, 2 | 51.0 | 60.0 |",
    ]


def test_reading_has_a_table_of_each_measure():
    assert lines(rounds(TICKET), rounds(TICKET, 1, 0.02)) == [
        "## Test accuracy (%) at the end of each level",
        "| weights remaining (%) | level | lth |",
        "| ---: | ---: | ---: |",
        "| 100 | 0 | 84.0 ± 1.4 |",  # 83 and 85: the sample standard deviation is sqrt(2)
        "| 50 | 1 | 74.0 ± 1.4 |",
        "| 25 | 2 | 52.0 ± 1.4 |",
        "## Early-stopping round of each level",
        "| weights remaining (%) | level | lth |",
        "| ---: | ---: | ---: |",
        "| 100 | 0 | 3.0 ± 0.0 |",
        "| 50 | 1 | 1.0 ± 0.0 |",
        "| 25 | 2 | 2.0 ± 0.0 |",
        "## Test accuracy (%) at the early-stopping round",
        "| weights remaining (%) | level | lth |",
        "| ---: | ---: | ---: |",
        "| 100 | 0 | 82.0 ± 1.4 |",
        "| 50 | 1 | 72.0 ± 1.4 |",
        "| 25 | 2 | 52.0 ± 1.4 |",
    ]


def test_a_seed_without_a_value_is_told():
    shorter = TICKET[:-1]  # its level 2 was never evaluated
    assert "| 25 | 2 | 51.0 (1 of 2) |" in lines(rounds(TICKET), rounds(shorter, 1))


def test_without_validation_there_is_no_early_stopping():
    frame = rounds(TICKET).drop(columns=["val/loss", "val/accuracy"])
    text = levels_markdown(by_level(frame))
    assert "| 50 | 1 | 73.0 |" in text
    assert "arly" not in text


def test_cells_that_differ_in_the_target_density_only_are_one():
    quarter = rounds(ONE_SHOT, density=0.25)
    half = rounds([(0, 0, 1.0, 0.4, 0.8, 0.8), (1, 1, 0.5, 0.7, 0.7, 0.7)], density=0.5)
    assert lines(quarter, half)[1:6] == [
        "| weights remaining (%) | level | lth |",
        "| ---: | ---: | ---: |",
        "| 100 | 0 | 80.0 |",
        "| 50 | 1 | 70.0 |",
        "| 25 | 1 | 60.0 |",
    ]


def test_where_the_mask_only_changes_the_last_level_of_a_density_counts():
    swapped = rounds([(0, 1, 0.25, 0.7, 0.6, 0.6), (1, 2, 0.25, 0.6, 0.7, 0.7)])
    assert "| 25 | 2 | 70.0 |" in lines(swapped)


def test_too_many_cells_for_one_table_get_one_for_each_value_of_a_column():
    runs = [rounds(TICKET, what=what, criterion=f"c{i}") for what in ("a", "b") for i in range(8)]
    heads = [line for line in lines(*runs) if not line.startswith("| ") or "level" in line]
    assert heads[:5] == [
        "## Test accuracy (%) at the end of each level",
        "### a",
        "| weights remaining (%) | level | " + " | ".join(f"c{i}" for i in range(8)) + " |",
        "### b",
        "| weights remaining (%) | level | " + " | ".join(f"c{i}" for i in range(8)) + " |",
    ]


# --- gains, by equal seeds ---

DENSE: Points = [(0, 0, 1.0, 0.4, 0.8, 0.7), (5, 0, 1.0, 0.4, 0.8, 0.85)]  # longer, and never pruned


def three(points: Points, *better: float, **which: Any) -> list[pd.DataFrame]:
    return [rounds(points, seed, more, **which) for seed, more in enumerate(better)]


def gains(against: str | None, *runs: pd.DataFrame) -> dict[tuple[str, float], tuple[float, float, float]]:
    frame = pd.concat(runs, ignore_index=True)
    found = analysis.gains(frame, analysis.varying(frame), against)
    rows = found.itertuples(index=False)
    return {(cell, x): (gain.mean, gain.low, gain.high) for cell, x, gain in rows}


def test_a_gain_over_level_0_is_of_equal_seeds():
    # Seeds 0, 1, 2: level 0 at 83, level 1 at 73 for all; with level 1 raised by 1, 2 and 3 points the differences are -9, -8
    # and -7: mean -8, s = 1, and t(0.975, 2) = 4.302653 makes -8 +- 4.302653 / sqrt(3) = -8 +- 2.484138.
    # The spread of level 0 between the seeds (`better`) does not matter.
    runs = three(TICKET[:7], 0.0, 0.1, -0.2)
    for seed, run in enumerate(runs):
        run.loc[run["prune/events"] == 1, "test/accuracy"] += (seed + 1) / 100
    assert gains(None, *runs) == {("lth", 50): pytest.approx((-8, -10.484138, -5.515862), abs=1e-6)}


def test_a_gain_over_another_cell_is_at_equal_density_or_over_its_end_if_it_was_never_pruned():
    tickets, shots = three(TICKET, 0, 0, 0.03, how_often="iterative"), three(ONE_SHOT, 0, 0, 0, how_often="one_shot")
    dense = three(DENSE, 0, 0, 0, how_often="never")
    # one shot has 80 at 100 % and 60 at 25 %; the ticket 83 and 51, the third seed 3 more; dense ends at 85.
    over_shot = gains("one_shot", *tickets, *shots, *dense)
    assert {pair: gain[0] for pair, gain in over_shot.items()} == {
        ("iterative", 100): pytest.approx(4),
        ("iterative", 25): pytest.approx(-8),
        ("never", 100): pytest.approx(5),
    }
    over_dense = gains("never", *tickets, *shots, *dense)
    assert over_dense["iterative", 50] == pytest.approx((-11, -11 - 4.302653, -11 + 4.302653), abs=1e-5)  # s = sqrt(3)
    assert set(over_dense) == {("iterative", x) for x in (100, 50, 25)} | {("one_shot", 100), ("one_shot", 25)}


def test_a_gain_is_positive_where_less_is_better_and_the_cell_has_less():
    runs = [run.rename(columns={"test/accuracy": "test/mae"}) for run in three(TICKET[:7], 0, 0, 0)]
    assert gains(None, *(run.assign(metric="mae", larger_is_better=False) for run in runs))["lth", 50][0] == pytest.approx(0.1)


def test_the_section_of_gains_is_bold_where_the_interval_does_not_cover_0():
    frame = pd.concat(three(TICKET, 0, 0.1, 0.2), ignore_index=True)
    text = gains_markdown(analysis.gains(frame, analysis.varying(frame)), metric_of(frame))
    assert "## Gain in test accuracy (%) over level 0 of the same cell" in text
    assert "| 50 | **-10.0 (-10.0 to -10.0)** |" in text
    wide = pd.DataFrame({"cell": ["lth"], "weights remaining (%)": [50.0], "gain": [Interval(1.0, -0.5, 2.5, 3)]})
    assert "| 50 | +1.0 (-0.5 to +2.5) |" in gains_markdown(wide, metric_of(frame), "dense")


def test_one_seed_has_no_gains_and_an_unknown_label_is_told_with_those_that_there_are():
    assert gains(None, rounds(TICKET)) == {}
    assert gains_markdown(analysis.gains(rounds(TICKET), []), metric_of(rounds(TICKET))) == ""
    with pytest.raises(FedpruneError, match=r"no cell is called 'dens'; choose one of these:\n  iterative\n  one_shot"):
        gains("dens", rounds(TICKET, how_often="iterative"), rounds(ONE_SHOT, how_often="one_shot"))
