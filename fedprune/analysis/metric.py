"""The metric that runs are judged by: the names of its columns, which direction is better, and how its numbers are written.

A frame has it in its columns `metric` and `larger_is_better`, which read.py takes from run.json; without them it is accuracy.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pandas as pd

log = logging.getLogger(__name__)

METRIC, LARGER = "metric", "larger_is_better"
"""Columns of a frame."""

OPTIONAL = {"tuned": "client {} after one local training", "unseen": "unseen client {}"}
"""Parts that not every run has measured, with the heads of their columns."""


@dataclass(frozen=True)
class Metric:
    """A metric of a task. name: as in `test/<name>`."""

    name: str = "accuracy"
    larger_is_better: bool = True

    @property
    def percent(self) -> bool:
        """Return whether the metric is a fraction that is shown in percent: an accuracy."""
        return self.name.endswith("accuracy")

    @property
    def factor(self) -> int:
        """Return the factor from the values of a frame to those of tables and figures."""
        return 100 if self.percent else 1

    @property
    def words(self) -> str:
        """Return the metric's name as words."""
        return self.name.replace("_", " ")

    @property
    def unit(self) -> str:
        """Return the text in brackets after a column's name: a unit, or an arrow to the better side."""
        arrow = "↑" if self.larger_is_better else "↓"
        return "%" if self.percent else arrow

    @property
    def tail(self) -> str:
        """Return the percentile of clients that is the worst decile: p10, or p90 where less is better."""
        return "p10" if self.larger_is_better else "p90"

    def column(self, part: str) -> str:
        """Return the metric's name in metrics.jsonl for `test`, `val` or `client` (the mean over clients, each with the network
        with which it begins its next round), `tuned` (after one local training from there) or `unseen` (clients that are in no
        cohort)."""
        if part in OPTIONAL:
            return f"client/{self.name}_{part}_mean"
        return f"client/{self.name}_mean" if part == "client" else f"{part}/{self.name}"

    def measured(self, frame: pd.DataFrame) -> dict[str, tuple[str, float]]:
        """Return the columns of a table for those of OPTIONAL that a run of this frame has measured: (name, factor)."""
        return {self.head(part): (self.column(part), self.factor) for part in OPTIONAL if self.column(part) in frame}

    @property
    def tail_column(self) -> str:
        """Return the name in metrics.jsonl of the worst decile of clients."""
        return f"client/{self.name}_{self.tail}"

    def head(self, part: str, which: str = "") -> str:
        """Return the head of a column of a table: 'test accuracy (%)', 'val mae at early stopping (↓)', 'client accuracy after
        one local training (%)'."""
        if part in OPTIONAL:
            return f"{OPTIONAL[part].format(self.words)}{which} ({self.unit})"
        return f"{part} {self.words}{which} ({self.unit})"

    @property
    def test(self) -> str:
        """Return the head of the column of means on test data."""
        return self.head("test")

    @property
    def test_sd(self) -> str:
        """Return the head of the column of their standard deviations."""
        return "test sd (%)" if self.percent else f"test sd ({self.words})"

    def axis(self, part: str) -> str:
        """Return the label of a vertical axis: 'test accuracy (%)', 'test mae (less is better)'."""
        return f"{part} {self.words} ({self.axis_unit})"

    @property
    def axis_unit(self) -> str:
        """Return the text in brackets after the label of an axis: a unit, or which direction is better."""
        better = "more" if self.larger_is_better else "less"
        return "%" if self.percent else f"{better} is better"

    def text(self, value: float) -> str:
        """Return a value in the metric's unit as text."""
        return f"{value:.1f}" if self.percent else f"{value:.4g}"

    def spread(self, mean: float, sd: float) -> str:
        """Return a mean and a sample standard deviation (NaN for none) as text; '' if the mean is NaN."""
        if pd.isna(mean):
            return ""
        deviation = self.text(sd) if self.percent else f"{sd:.2g}"
        return self.text(mean) + ("" if pd.isna(sd) else f" ± {deviation}")

    def best(self, values: pd.DataFrame) -> pd.Series:
        """Return the column of each row's best value; of equals the first."""
        return values.idxmax(axis=1) if self.larger_is_better else values.idxmin(axis=1)


ACCURACY = Metric()


def metrics_of(frame: pd.DataFrame) -> list[Metric]:
    """Return the metrics of a frame's runs, that of most runs first, else in their order; accuracy if no run names one.

    Where runs are done, the others do not count.
    """
    if METRIC not in frame:
        return [ACCURACY]
    runs = frame.drop_duplicates("run") if "run" in frame else frame
    done = runs[runs["status"] == "done"] if "status" in runs else runs
    counts = (done if len(done) else runs).groupby([METRIC, LARGER], sort=False).size()
    ordered = counts.sort_values(ascending=False, kind="stable").index
    return [Metric(str(name), bool(larger)) for name, larger in ordered] or [ACCURACY]


def metric_of(frame: pd.DataFrame) -> Metric:
    """Return the metric of a frame's runs. Where they have several it is the first; the other runs then have no value."""
    return metrics_of(frame)[0]


def warn_of_several(frame: pd.DataFrame) -> None:
    """Log a warning if the runs are judged by different metrics, which cannot be compared."""
    first, *others = metrics_of(frame)
    if others:
        log.warning(
            "these runs are judged by %s: tables and figures are of %s; for the others analyse their folders by themselves",
            ", ".join([first.name, *(other.name for other in others)]),
            first.name,
        )
