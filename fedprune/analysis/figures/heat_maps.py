"""Heat maps: accuracy over the taxonomy, the density of each layer of each cell, and the labels of each client."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from fedprune.analysis.by_axes import grid
from fedprune.analysis.curves import evaluated, label_columns, labels
from fedprune.analysis.figures.style import COLUMN, STYLE, whole_numbers
from fedprune.analysis.metric import ACCURACY, Metric
from fedprune.data.federate import label_histogram as histogram_of
from fedprune.data.federate import load_partition
from fedprune.errors import FedpruneError

MAP_STYLE = STYLE | {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}


def accuracy_taxonomy(table: pd.DataFrame, metric: Metric = ACCURACY) -> Figure:
    """Draw test accuracy (%, mean over seeds), or the task's other metric: what and criterion x when and how_often, a panel per
    density, dense first.

    `table` is what `analysis.by_axes` returns. Meaningless compositions are hatched; failed cells are blank. Raises
    FedpruneError if there is nothing to draw.
    """
    test = metric.test
    if table[test].isna().all():
        raise FedpruneError(f"nothing to draw: none of these runs has finished with a value of {metric.column('test')}")
    panels = [(density, part) for density, part in table.groupby("density", sort=False)]
    shape = grid(panels[0][1], test).shape
    with matplotlib.rc_context(MAP_STYLE):
        size = (1.9 + len(panels) * (0.2 + 0.3 * shape[1]), 1.6 + 0.19 * shape[0])
        figure = Figure(figsize=size, layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (density, cells) in zip(row, panels, strict=True):
            axes.set_title(f"{100 * density:.10g} % of the units alive")
            image = _taxonomy_panel(axes, cells, metric, table[test].min(), table[test].max())
        figure.colorbar(image, ax=row, label=metric.axis("test"), fraction=0.02, pad=0.01)
    return figure


def _taxonomy_panel(axes: Axes, cells: pd.DataFrame, metric: Metric, least: float, most: float) -> AxesImage:
    means, refused = grid(cells, metric.test), grid(cells, "refused") == True  # noqa: E712  # an absent cell is not refused
    image = axes.imshow(means, aspect="auto", cmap="viridis", vmin=least, vmax=most, interpolation="nearest")
    for y, x in np.argwhere(refused.to_numpy()):
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="0.93", edgecolor="0.75", hatch="////", linewidth=0))
    for y, x in np.argwhere(means.notna().to_numpy()):
        mean = means.iat[y, x]
        number = f"{mean:.0f}" if metric.percent else f"{mean:.2g}"
        axes.text(x, y, number, ha="center", va="center", fontsize=7, color="black" if mean > (least + most) / 2 else "white")
    for options, draw_line in ((means.index, axes.axhline), (means.columns, axes.axvline)):
        first = options.get_level_values(0)
        for border in np.flatnonzero(first[1:] != first[:-1]):
            draw_line(border + 0.5, color="white", linewidth=2)
    axes.set_xticks(range(means.shape[1]), [" · ".join(column) for column in means], rotation=90)
    axes.set_yticks(range(means.shape[0]), [" · ".join(which) for which in means.index])
    axes.tick_params(length=0)
    return image


def layer_density(levels: pd.DataFrame, by: list[str]) -> Figure:
    """Draw the density (%) of every layer at each cell's last level, mean over seeds: a heat map of cells x layers.

    `levels` is what `analysis.levels` returns. Raises FedpruneError if there is nothing to draw.
    """
    layers = [column for column in levels if column.startswith("density/layer/")]
    if not layers or levels.empty:
        raise FedpruneError("nothing to draw: no evaluated round of these runs has a value of density/layer/<name>")
    last = evaluated(levels, layers[0], by).drop_duplicates("run", keep="last")
    means = last.groupby(labels(last, label_columns(last, by)), sort=False)[layers].mean() * 100
    names = [layer.removeprefix("density/layer/") for layer in layers]
    with matplotlib.rc_context(MAP_STYLE):
        size = (0.5 + 0.06 * max(map(len, means.index)) + max(2, 0.5 * len(names)), 1.0 + 0.2 * len(means))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot(title="weights remaining (%)")
        axes.imshow(means, aspect="auto", cmap="Blues", norm="log", interpolation="nearest")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(means)), means.index)
        axes.tick_params(length=0)
        _write_into(axes, means)
    return figure


def label_histogram(run: Path | str) -> Figure:
    """Draw the number of training examples of each class (colour) that each client has, and the number of all (bars above).

    run: a run's folder. Raises FedpruneError without a readable `partition.safetensors` in it.
    """
    path = Path(run) / "partition.safetensors"
    if not path.exists():
        raise FedpruneError(
            f"nothing to draw: '{path}' does not exist; name the folder of a run that got as far as its data "
            "(clients of partition=class_mix, who share examples, have none)"
        )
    clients, labels = load_partition(path)
    counts = histogram_of(clients, labels, int(labels.max()) + 1)
    with matplotlib.rc_context(MAP_STYLE):
        figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
        totals, classes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])
        totals.stairs(counts.sum(axis=1), np.arange(len(counts) + 1) - 0.5, fill=True, color="0.6")
        counted = "examples" if labels.dim() == 1 else "characters"
        totals.set_ylabel(counted)
        image = classes.imshow(counts.T, aspect="auto", cmap="Blues", interpolation="nearest", origin="lower")
        classes.set(xlabel="client", ylabel="class")
        for axis in (classes.xaxis, classes.yaxis):
            whole_numbers(axis)
        figure.colorbar(image, ax=classes, label=counted)
    return figure


def _write_into(axes: Axes, values: pd.DataFrame) -> None:
    least, most = values[values > 0].min().min(), values.max().max()
    for row, column in np.argwhere(values.notna().to_numpy()):
        value = values.iat[row, column]
        # White on the darker half of a logarithmic scale.
        colour = "white" if value > (least * most) ** 0.5 and most > least else "black"
        axes.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=7, color=colour)
