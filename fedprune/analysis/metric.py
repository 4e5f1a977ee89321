"""The metric that runs are judged by: what its columns are called, which way is better, and how its numbers are written.

A frame has it in its columns `metric` and `larger_is_better`, which `read` takes from run.json; without them it is accuracy.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pandas as pd

log = logging.getLogger(__name__)

METRIC, LARGER = "metric", "larger_is_better"


@dataclass(frozen=True)
class Metric:
    """name: as in `test/<name>`."""

    name: str = "accuracy"
    larger_is_better: bool = True

    @property
    def percent(self) -> bool:
        """Return whether it is a fraction that is shown in percent: an accuracy."""
        return self.name.endswith("accuracy")

    @property
    def factor(self) -> int:
        return 100 if self.percent else 1

    @property
    def words(self) -> str:
        return self.name.replace("_", " ")

    @property
    def unit(self) -> str:
        """Return what stands in brackets: a unit, or an arrow to the better side."""
        return "%" if self.percent else "↑" if self.larger_is_better else "↓"

    @property
    def tail(self) -> str:
        """Return the name of the percentile of clients that is the bad one."""
        return "p10" if self.larger_is_better else "p90"

    def column(self, part: str) -> str:
        """Return its name in metrics.jsonl: of `test`, `val` or `client` (the mean over clients)."""
        return f"client/{self.name}_mean" if part == "client" else f"{part}/{self.name}"

    @property
    def tail_column(self) -> str:
        return f"client/{self.name}_{self.tail}"

    def head(self, part: str, which: str = "") -> str:
        """Return the head of a column of a table: 'test accuracy (%)', 'val mae at early stopping (↓)'."""
        return f"{part} {self.words}{which} ({self.unit})"

    @property
    def test(self) -> str:
        return self.head("test")

    @property
    def test_sd(self) -> str:
        return "test sd (%)" if self.percent else f"test sd ({self.words})"

    def axis(self, part: str) -> str:
        """Return the label of an axis."""
        return f"{part} {self.words} (%)" if self.percent else f"{part} {self.words}"

    def text(self, value: float) -> str:
        """Return a value, in its unit, as text."""
        return f"{value:.1f}" if self.percent else f"{value:.4g}"

    def spread(self, mean: float, sd: float) -> str:
        """Return a mean and a sample standard deviation (or none, NaN) as text; nothing if there is no mean."""
        if pd.isna(mean):
            return ""
        return self.text(mean) + ("" if pd.isna(sd) else f" ± {self.text(sd) if self.percent else f'{sd:.2g}'}")

    def best(self, values: pd.DataFrame) -> pd.Series:
        """Return the column of each row's best value; of equals the first."""
        return values.idxmax(axis=1) if self.larger_is_better else values.idxmin(axis=1)


ACCURACY = Metric()


def metrics_of(frame: pd.DataFrame) -> list[Metric]:
    """Return the metrics of a frame's runs, each once, in their order; accuracy if no run says what it is judged by."""
    if METRIC not in frame:
        return [Metric()]
    told = frame[[METRIC, LARGER]].dropna().drop_duplicates()
    return [Metric(str(name), bool(larger)) for name, larger in told.itertuples(index=False)] or [Metric()]


def metric_of(frame: pd.DataFrame) -> Metric:
    """Return the metric of a frame's runs: where they have several, the first; runs with another have no value then."""
    return metrics_of(frame)[0]


def warn_of_several(frame: pd.DataFrame) -> None:
    """Say that runs which are judged by different metrics cannot be compared."""
    first, *others = metrics_of(frame)
    if others:
        log.warning(
            "these runs are judged by %s: tables and figures are of %s; for the others analyse their folders by themselves",
            ", ".join([first.name, *(other.name for other in others)]),
            first.name,
        )
