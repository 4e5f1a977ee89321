"""The units of a home's metrics: how a number is written, and which direction is better."""

from __future__ import annotations

import math
import re

import pandas as pd

from fedprune.analysis.markdown import three_digits
from fedprune.analysis.metric import Metric
from fedprune.analysis.verdict import Interval

COST = re.compile(r"^(total|wire|flops|time)/|loss|density|^alive$")
"""Metrics of which less is better."""


def larger_is_better(metric: str, task: Metric) -> bool:
    """Return whether more of a metric is better. task: what the runs are judged by."""
    if task.name in metric:
        return task.larger_is_better
    return not COST.search(metric)


def factor(metric: str) -> float:
    """Return the factor from a metric's values to those of the page."""
    if _percent(metric):
        return 100.0
    return 1e-6 if metric.endswith("_bytes") else 1.0


def unit(metric: str) -> str:
    """Return the unit of the page's values: '%', 'MB', or nothing."""
    if _percent(metric):
        return "%"
    return "MB" if metric.endswith("_bytes") else ""


def _percent(metric: str) -> bool:
    return "accuracy" in metric or "density" in metric or metric == "alive"


def number(value: float, metric: str, digits: int = 1) -> str:
    """Return a value in the page's unit; "" for NaN. digits: after the point, of a percentage."""
    if math.isnan(value):
        return ""
    scaled = value * factor(metric)
    return f"{scaled:.{digits}f}" if _percent(metric) else three_digits(scaled)


def spread(values: pd.Series, metric: str) -> str:
    """Return mean and sample standard deviation as text; "" if there are no values."""
    if values.empty:
        return ""
    mean, deviation = number(values.mean(), metric), values.std(ddof=1)
    if math.isnan(deviation):
        return mean
    digits = len(mean.partition(".")[2])  # as many as the mean has: 3.04 ± 0.00
    return f"{mean} ± {deviation * factor(metric):.{digits}f}"


def difference(interval: Interval, metric: str) -> tuple[str, str]:
    """Return the mean of a paired difference and its interval in the page's unit: ('+4.50', '+1.20 to +7.80')."""
    if interval.n < 2:
        return "", ""
    mean, low, high = (f"{value * factor(metric):+.2f}" for value in (interval.mean, interval.low, interval.high))
    return mean, f"{low} to {high}"


def points(metric: str) -> str:
    """Return the unit of differences of a metric."""
    return "points" if _percent(metric) else unit(metric) or "its unit"
