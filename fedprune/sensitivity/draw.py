"""Deletion curves as a table and as a figure: means over runs, with one sample standard deviation."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedprune.analysis.figures.legend import beneath
from fedprune.analysis.figures.looks import COLOURS, MARKERS, Look
from fedprune.analysis.figures.style import PAGE, STYLE
from fedprune.analysis.metric import Metric, metric_of
from fedprune.sensitivity.deletion_curves import ALL

PREDICTED = Line2D([], [], label="predicted", color="0.4", linestyle="--")
"""The entry of the legend for the predicted losses."""


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per density, and for each criterion and layer the increase of the training loss (mean ± sd) and the
    predicted one."""
    columns = {}
    for (criterion, layer), cell in rows.groupby(["criterion", "layer"], sort=False):
        label = _label(criterion, layer)
        columns[label] = cell.groupby("density", sort=False)["increase"].apply(_spread)
        if cell["predicted"].notna().sum() > cell["run"].nunique():  # more than the zero of the undeleted network
            columns[f"{label} predicted"] = cell.groupby("density", sort=False)["predicted"].apply(_spread)
    table = pd.DataFrame(columns)
    table.insert(0, "deleted (%)", [f"{100 * (1 - density):.3g}" for density in table.index])
    return table.reset_index(drop=True)


def figure(rows: pd.DataFrame) -> Figure:
    """Draw the increase of the training loss (left; dashed: predicted) and the task's metric on validation data (right), such
    as accuracy, against what is deleted (%)."""
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(PAGE, 2.5), layout="constrained")
        loss, validation = drawing.subplots(1, 2)
        _draw_loss(loss, rows)
        _draw_validation(validation, rows, metric_of(rows))
        entries = [Line2D([], [], label=label, **look) for look, label, _ in _cells(rows)]
        beneath(drawing, [*entries, PREDICTED] if rows["predicted"].notna().any() else entries)
    return drawing


def _draw_loss(axes: Axes, rows: pd.DataFrame) -> None:
    for look, _, cell in _cells(rows):
        _line(axes, cell, "increase", look=look)
        if cell["predicted"].notna().any():
            _line(axes, cell, "predicted", look=look | {"marker": "", "linestyle": "--"})
    positive = rows.loc[rows["increase"] > 0, "increase"]
    axes.set_yscale("symlog", linthresh=max(float(positive.quantile(0.1)), 1e-4) if len(positive) else 1e-3)
    axes.set(xlabel="deleted (%)", ylabel="rise of the training loss", ylim=(0, None))


def _draw_validation(axes: Axes, rows: pd.DataFrame, metric: Metric) -> None:
    for look, _, cell in _cells(rows):
        if metric.column("val") in cell:
            _line(axes, cell, metric.column("val"), metric.factor, look=look)
    axes.set(xlabel="deleted (%)", ylabel=metric.axis("validation"))


def _cells(rows: pd.DataFrame) -> Iterator[tuple[Look, str, pd.DataFrame]]:
    """Yield (look, label, rows) of each criterion and layer."""
    for number, ((criterion, layer), cell) in enumerate(rows.groupby(["criterion", "layer"], sort=False)):
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        yield look, _label(criterion, layer), cell


def _label(criterion: str, layer: str) -> str:
    return criterion if layer == ALL else f"{criterion}, {layer}"


def _line(axes: Axes, cell: pd.DataFrame, column: str, factor: float = 1, *, look: Look) -> None:
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
