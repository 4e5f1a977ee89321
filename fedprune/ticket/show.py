"""Show a ticket: its run and its densities as text, its masks as a picture."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from fedprune.compaction.resize import CUTTABLE_LAYERS
from fedprune.errors import RunError, shown
from fedprune.pruning import mask as masks
from fedprune.run_id import AXES
from fedprune.ticket.read import Ticket

COLUMNS = 3
SQUARES = 320  # at most, along a side of a picture: of a larger mask, each shows the fraction alive


def summary(ticket: Ticket) -> Group:
    """Return the provenance and a table of densities, for a rich console."""
    axes, run = defaultdict(lambda: "?", ticket.axes), defaultdict(lambda: "?", ticket.provenance)
    lines = [
        f"{run['name']}: {' · '.join(axes[axis] for axis in AXES)}",
        f"model {_model(ticket, axes['model'])}{_values(ticket)}, data {axes['data']}, {axes['partition']}; "
        f"seed {run['seed']}; run {run['id']}, fedprune {run['fedprune']}",
    ]
    return Group(Text("\n".join(map(shown, lines))), densities(ticket))


def _model(ticket: Ticket, option: str) -> str:
    """Return the network's name: the option, and before it the class of a user's that takes its place."""
    target = str(ticket.network_config.get("_target_", ""))
    return option if not target or target.startswith("fedprune.") else f"{target} (option {option})"


def _values(ticket: Ticket) -> str:
    """Return the values of the model's config, in which networks of one yaml may differ, in brackets; '' if there are none."""
    values = [f"{key}={value}" for key, value in ticket.network_config.items() if not key.startswith("_")]
    return f" ({', '.join(values)})" if values else ""


def widths(before: nn.Module, after: nn.Module) -> str:
    """Return the outputs of each layer that has lost some, before -> after."""
    changed = [
        f"{name} {len(layer.weight)} -> {len(left.weight)}"
        for (name, layer), (_, left) in zip(before.named_modules(), after.named_modules(), strict=True)
        if isinstance(layer, CUTTABLE_LAYERS) and isinstance(left, CUTTABLE_LAYERS) and len(layer.weight) != len(left.weight)
    ]
    return ", ".join(changed) or "as they were"


def densities(ticket: Ticket) -> Table:
    """Return a table with a row for each layer that can be pruned, and for all."""
    table = Table("layer", "shape")
    for column in ("alive", "of", "density", "dead outputs"):
        table.add_column(column, justify="right")
    for name, alive in ticket.mask.items():
        dead = int((~alive.flatten(1).any(1)).sum())
        shape = "x".join(map(str, alive.shape))
        table.add_row(
            shown(name).removesuffix(".weight"), shape, *_counts(int(alive.sum()), alive.numel()), f"{dead} of {len(alive)}"
        )
    table.add_section()
    table.add_row("all of these", "", *_counts(masks.count(ticket.mask), masks.size(ticket.mask)), "")
    others = sum(
        value.numel() for name, value in ticket.params.items() if name not in ticket.mask and value.is_floating_point()
    )
    table.add_row("never pruned", "", *_counts(others, others), "")
    return table


def _counts(alive: int, entries: int) -> tuple[str, str, str]:
    return f"{alive:,}", f"{entries:,}", f"{alive / max(entries, 1):.4g}"


def picture(ticket: Ticket) -> Figure:
    """Draw the masks, a panel for each layer: outputs downwards, inputs to the right, dark where entries are alive."""
    columns = min(COLUMNS, len(ticket.mask)) if len(ticket.mask) != 4 else 2
    rows = math.ceil(len(ticket.mask) / columns)
    figure = Figure(figsize=(0.6 + 2.9 * columns, 0.3 + 2.3 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes, (name, alive) in zip(grid, ticket.mask.items(), strict=False):
        image = _draw(axes, shown(name).removesuffix(".weight"), alive)
    for axes in grid[len(ticket.mask) :]:
        axes.remove()
    bar = figure.colorbar(image, ax=grid[: len(ticket.mask)], shrink=0.8, aspect=30)
    bar.set_label("fraction alive", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.supxlabel("inputs (of a convolution: channel by channel, and their pixels)", fontsize=8)
    figure.supylabel("outputs", fontsize=8)
    return figure


def _draw(axes: Axes, name: str, alive: Tensor) -> AxesImage:
    fraction = alive.flatten(1).float()
    height, width = fraction.shape
    shown = F.adaptive_avg_pool2d(fraction[None], (min(height, SQUARES), min(width, SQUARES)))[0]
    extent = (0, width, height, 0)
    axes.set_title(f"{name}: {100 * float(fraction.mean()):.3g} % alive", fontsize=8)
    axes.tick_params(labelsize=6)
    scale = PowerNorm(0.5, 0, 1)  # a root, which tells low fractions apart
    return axes.imshow(shown, cmap="Greys", norm=scale, aspect="auto", interpolation="nearest", extent=extent)


def draw(ticket: Ticket, into: Path | None = None) -> Path:
    """Write the picture as PNG, beside the ticket or into a folder, and return its path. Raises RunError if it cannot."""
    path = (into or ticket.path.parent) / f"{ticket.path.stem}.png"
    if not ticket.mask:
        raise RunError(f"{ticket.path} has no masks to draw: nothing was prunable in its run")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(ticket).savefig(path, dpi=160)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; choose a folder with --into") from error
    return path
