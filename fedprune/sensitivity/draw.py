"""The rows of delete.py as a table and as a figure: means over runs, with one sample standard deviation."""

from __future__ import annotations

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedprune.analysis.figures.style import STYLE
from fedprune.analysis.metric import metric_of
from fedprune.sensitivity.delete import ALL


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per density, columns per criterion and layer: increase of the training loss (mean ± sd), and what was predicted."""
    columns = {}
    for (criterion, layer), cell in rows.groupby(["criterion", "layer"], sort=False):
        label = criterion if layer == ALL else f"{criterion}, {layer}"
        columns[label] = cell.groupby("density", sort=False)["increase"].apply(_spread)
        if cell["predicted"].notna().sum() > cell["run"].nunique():  # more than the zero at nothing deleted
            columns[f"{label} predicted"] = cell.groupby("density", sort=False)["predicted"].apply(_spread)
    found = pd.DataFrame(columns)
    found.insert(0, "deleted (%)", [f"{100 * (1 - density):.3g}" for density in found.index])
    return found.reset_index(drop=True)


def figure(rows: pd.DataFrame) -> Figure:
    """Increase of the training loss (left; dashed: predicted) and what the task is judged by on validation data (right),
    such as accuracy, against what is deleted (%)."""
    metric = metric_of(rows)
    validation = metric.column("val")
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(7.2, 2.9), layout="constrained")
        loss, judged = drawn.subplots(1, 2)
        cells = list(rows.groupby(["criterion", "layer"], sort=False))
        for number, ((criterion, layer), cell) in enumerate(cells):
            look: dict[str, Any] = {"color": f"C{number % 10}", "label": criterion if layer == ALL else f"{criterion}, {layer}"}
            _line(loss, cell, "increase", marker="o", **look)
            if cell["predicted"].notna().any():
                _line(loss, cell, "predicted", linestyle="--", color=look["color"])
            if validation in cell:
                _line(judged, cell, validation, metric.factor, marker="o", **look)
        positive = rows.loc[rows["increase"] > 0, "increase"]
        loss.set_yscale("symlog", linthresh=max(float(positive.quantile(0.1)), 1e-4) if len(positive) else 1e-3)
        loss.set(xlabel="deleted (%)", ylabel="rise of the training loss (dashed: predicted)", ylim=(0, None))
        judged.set(xlabel="deleted (%)", ylabel=metric.axis("validation"))
        judged.legend(loc="lower left" if metric.larger_is_better else "upper left")
    return drawn


def _line(axes: Axes, cell: pd.DataFrame, column: str, factor: float = 1, **look: Any) -> None:
    grouped = (cell[column].astype(float) * factor).groupby(100 * (1 - cell["density"]))
    mean, spread = grouped.mean(), grouped.std(ddof=1).fillna(0)
    axes.plot(mean.index, mean, **look)
    axes.fill_between(mean.index, mean - spread, mean + spread, color=look["color"], alpha=0.15, linewidth=0)


def _spread(values: pd.Series) -> str:
    values = values.dropna().astype(float)
    if not len(values):
        return ""
    spread = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
    return f"{values.mean():.3g}{spread}"
