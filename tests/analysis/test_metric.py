"""Tables and figures of tasks that are not judged by accuracy: names, units and which way is better follow run.json."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd
import pytest

from fedprune import analysis
from fedprune.analysis import figures
from fedprune.analysis.by_axes import axes_markdown, by_axes
from fedprune.analysis.by_level import levels_markdown
from fedprune.analysis.by_method import by_method, methods_markdown, pareto_front, target_of
from fedprune.analysis.metric import Metric, metric_of
from fedprune.analysis.read import METHOD
from fedprune.analysis.tuning import tried, tuned, tuning_markdown

JUDGED = {"metric": "mae", "larger_is_better": False}
MAE = Metric("mae", larger_is_better=False)


def test_names_units_and_texts_follow_the_metric():
    accuracy, f1 = Metric(), Metric("f1_macro")
    assert (accuracy.test, accuracy.test_sd, accuracy.axis("test")) == ("test accuracy (%)", "test sd (%)", "test accuracy (%)")
    assert (MAE.test, MAE.test_sd, MAE.axis("val")) == ("test mae (↓)", "test sd (mae)", "val mae (less is better)")
    assert (f1.head("client"), f1.tail_column) == ("client f1 macro (↑)", "client/f1_macro_p10")
    assert (f1.column("tuned"), f1.column("unseen")) == ("client/f1_macro_tuned_mean", "client/f1_macro_unseen_mean")
    assert f1.head("tuned") == "client f1 macro after one local training (↑)"
    assert (MAE.tail_column, MAE.column("client"), MAE.column("val")) == ("client/mae_p90", "client/mae_mean", "val/mae")
    assert (accuracy.spread(83.0, 13**0.5), MAE.spread(0.12345, 0.0012)) == ("83.0 ± 3.6", "0.1235 ± 0.0012")
    assert (accuracy.spread(83.0, float("nan")), MAE.spread(float("nan"), 1.0)) == ("83.0", "")


def write_run(folder: Path, criterion: str, seed: int, values: list[float], metric: dict | None = None) -> None:
    """A finished run that was evaluated in each of its rounds, and pruned after the second."""
    folder.mkdir(parents=True)
    about = {"name": "lth", "axes": {"criterion": criterion}, "seed": seed, "density": 0.5, "overrides": []}
    about |= {"plan": {"rounds": len(values)}} | ({"metric": metric} if metric else {})
    (folder / "run.json").write_text(json.dumps(about))
    name = metric["name"] if metric else "accuracy"
    rows = [
        {
            **{"round": number, "prune/events": int(number >= 2), "density/weights": 1.0 if number < 2 else 0.5},
            **{f"test/{name}": value, f"val/{name}": value + 0.01, "val/loss": value, "wire/total_bytes": 1e6 * (number + 1)},
            **{
                f"client/{name}_mean": value + 0.02,
                f"client/{name}_p90": value + 0.1,
                "wire/up_bytes": 1,
                "wire/down_bytes": 1,
            },
        }
        for number, value in enumerate(values)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"status": "done", "metrics": rows[-1]}))


RUNS = {("magnitude", 0): [0.9, 0.5, 0.6, 0.4], ("magnitude", 1): [0.9, 0.5, 0.6, 0.2], ("random", 0): [0.9, 0.5, 0.8, 0.7]}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for (criterion, seed), values in RUNS.items():
        write_run(tmp_path / f"{criterion}{seed}", criterion, seed, values, {"name": "mae", "larger_is_better": False})
    return tmp_path


def test_a_report_of_a_metric_that_is_better_smaller(sweep: Path):
    table = analysis.report(sweep, sweep / "report")
    # The means over seeds: (0.4 + 0.2) / 2 = 0.3 of magnitude, which is less than the 0.7 of random: it comes first.
    assert table["criterion"].tolist() == ["magnitude", "random"]
    assert table["test mae (↓)"].tolist() == pytest.approx([0.3, 0.7])
    assert table["test sd (mae)"].iloc[0] == pytest.approx(0.02**0.5)  # ((0.1)^2 + (0.1)^2) / (2 - 1)
    assert table["client mae (↓)"].tolist() == pytest.approx([0.32, 0.72])
    assert table["client p90 (↓)"].tolist() == pytest.approx([0.4, 0.8])
    assert not [column for column in table if "accuracy" in column or column in ("metric", "larger_is_better")]
    drawn = {path.stem for path in (sweep / "report" / "figures").iterdir()}
    assert drawn == {"mae_density", "mae_bytes", "mae_rounds"}
    levels = (sweep / "report" / "levels.md").read_text()
    assert "## Test mae (↓) at the end of each level" in levels and "## Test mae (↓) at the early-stopping round" in levels
    assert "accuracy" not in levels and "0.3 ± 0.14" in levels
    assert "0.3000" not in levels  # not in percent, not with more digits than there are


def test_figures_have_the_metric_on_their_axis_and_not_in_percent(sweep: Path):
    rounds = analysis.load_rounds(sweep)
    figure = figures.accuracy_rounds(rounds, ["criterion"])
    assert figure.axes[0].get_ylabel() == "test mae (less is better)"
    heights = {round(float(y), 6) for line in figure.axes[0].get_lines() for y in line.get_ydata()}
    assert {0.3, 0.7} <= heights and max(heights) < 1


def test_the_table_fits_a_terminal_and_joins_mean_and_spread(sweep: Path):
    from rich.console import Console

    console = Console(width=200, record=True)
    console.print(analysis.show(analysis.table(analysis.load_runs(sweep)), console))
    assert "0.3 ± 0.141" in console.export_text()


def test_runs_of_before_are_judged_by_accuracy(tmp_path: Path):
    write_run(tmp_path / "old", "magnitude", 0, [0.1, 0.5, 0.4, 0.6])
    assert analysis.table(analysis.load_runs(tmp_path))["test accuracy (%)"].tolist() == pytest.approx([60])
    assert metric_of(pd.DataFrame({"run": ["a"]})) == Metric()


def test_runs_that_are_judged_by_different_metrics_are_told_apart(sweep: Path, caplog):
    write_run(sweep / "z_old", "random", 3, [0.1, 0.5, 0.4, 0.6])
    with caplog.at_level(logging.WARNING):
        analysis.report(sweep, sweep / "report")
    assert "these runs are judged by mae, accuracy: tables and figures are of mae" in caplog.text


def compared() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Three methods: `good` has the least error and 10 MB, `cheap` more of it and 5 MB, `bad` most of it and 20 MB."""
    runs = [
        {
            **{
                "run": name,
                "status": "done",
                "density": 0.1,
                METHOD: name,
                "seed": 0,
                "client/mae_mean": error,
                "test/mae": error,
            }
        }
        | {"client/mae_p90": error + 0.1, "total/up_bytes": sent * 1e6, "total/down_bytes": 0.0, "density/weights": 0.1}
        | JUDGED
        for name, error, sent in (("bad", 0.5, 20.0), ("good", 0.2, 10.0), ("cheap", 0.3, 5.0))
    ]
    rounds = [
        {"run": run["run"], "round": number, "client/mae_mean": run["client/mae_mean"] + back, "wire/total_bytes": 1e6 * number}
        for run in runs
        for number, back in ((0, 0.2), (1, 0.0))
    ]
    return pd.DataFrame(runs), pd.DataFrame(rounds)


def test_methods_are_compared_by_the_least_error():
    runs, rounds = compared()
    assert target_of(runs) == pytest.approx(0.21)  # a twentieth worse than 0.2
    table = by_method(runs, rounds, target=0.3)
    assert table[METHOD].tolist() == ["good", "cheap", "bad"]
    assert table["worst decile (↓)"].tolist() == pytest.approx([0.3, 0.4, 0.6])
    assert table["rounds to target"].tolist()[:2] == [2, 2] and pd.isna(table["rounds to target"].iloc[2])
    assert pareto_front(table, MAE).tolist() == [True, True, False]
    text = methods_markdown(table, 0.3, MAE)
    assert "*Client mae* is of" in text and "rounds to 0.3" in text and "the 90th percentile" in text and "accura" not in text
    assert "| **good** (1 seed) | 0.2 |" in text
    assert figures.accuracy_bytes_methods(table, MAE).axes[0].get_ylabel() == "mae of the mean client (less is better)"


def test_of_several_settings_the_one_of_the_least_error_is_taken():
    rows = [
        {"run": f"{lr}", "status": "done", "density": 0.1, METHOD: "one", "lr": lr, "seed": 0, "val/mae": error} | JUDGED
        for lr, error in ((0.01, 0.3), (0.1, 0.1), (1.0, 0.2))
    ]
    runs = pd.DataFrame(rows)
    assert tried(runs).iloc[0].tolist() == [0.3, 0.1, 0.2]
    assert tuned(runs)["lr"].tolist() == [0.1]
    text = tuning_markdown(runs)
    assert text.startswith("Validation mae (↓), mean over seeds") and "**0.1**" in text


def test_a_taxonomy_of_errors():
    axes = {"what": "weights_global", "criterion": "magnitude", "when": "before_training", "how_often": "one_shot"}
    runs = pd.DataFrame([{**axes, "run": "a", "status": "done", "density": 0.1, "seed": 0, "test/mae": 0.25} | JUDGED])
    table = by_axes(runs)
    assert table["test mae (↓)"].tolist() == [0.25]
    assert axes_markdown(table, MAE).startswith("Test mae (↓) at the end") and "| 0.25 |" in axes_markdown(table, MAE)
    assert "0.25" in [text.get_text() for text in figures.accuracy_taxonomy(table, MAE).axes[0].texts]


def test_levels_of_accuracy_are_called_as_they_were(tmp_path: Path):
    for (criterion, seed), values in RUNS.items():
        write_run(tmp_path / f"{criterion}{seed}", criterion, seed, values)
    text = levels_markdown(analysis.by_level(analysis.load_rounds(tmp_path), ["criterion"]))
    assert (
        "## Test accuracy (%) at the end of each level" in text and "## Test accuracy (%) at the early-stopping round" in text
    )
