"""The profile that profile=true leaves in a run's folder: the seconds of each round by the phases of phase_clock.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from fedprune.analysis.figures.looks import COLOURS
from fedprune.analysis.figures.style import COLUMN, STYLE, save, whole_numbers
from fedprune.phase_clock import PHASES, PREFIX

BARS = 60
"""At most so many bars: neighbouring rounds share one. Else evaluation, which only some rounds do, would hide the other
phases."""

COLOUR_OF = dict(zip(PHASES, (*COLOURS, "0.8"), strict=True))


def write(rows: Sequence[Mapping[str, float]], folder: Path) -> str | None:
    """Write profile.csv and figures/profile.{png,svg,pdf} of a run's metrics into its folder; return the lines for the screen.

    Returns None, and writes nothing, if no round was profiled.
    """
    table = by_round(rows)
    if table.empty:
        return None
    table.to_csv(folder / "profile.csv", index=False)
    save(seconds_rounds(table), folder / "figures" / "profile")
    return text(table)


def by_round(rows: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """Return a row per profiled round: `round` (0-based), and the seconds of each phase, which add up to `round_s`."""
    profiled = [row for row in rows if f"{PREFIX}other_s" in row]
    columns = {"round": "round", **{f"{name}_s": f"{PREFIX}{name}_s" for name in PHASES}, "round_s": "time/round_s"}
    return pd.DataFrame([[row[metric] for metric in columns.values()] for row in profiled], columns=list(columns))


def text(table: pd.DataFrame) -> str:
    """Return the phases as text, the longest first, with their share of the time."""
    total = {name: float(table[f"{name}_s"].sum()) for name in PHASES}
    longest = sorted((name for name in PHASES if total[name] > 0), key=lambda name: -total[name])
    whole, rounds = sum(total.values()), len(table)
    shares = [f"  {name:<10}{100 * total[name] / whole:>5.1f} %{1e3 * total[name] / rounds:>9.2f} ms" for name in longest]
    return "\n".join([f"where the time went: {whole:.3g} s in {rounds} round{'s' * (rounds != 1)}, each on average", *shares])


def seconds_rounds(table: pd.DataFrame) -> Figure:
    """Draw the seconds of a round, stacked by phase, against rounds. A bar that rounds share is their mean."""
    width = ceil(len(table) / BARS)
    bars = table.groupby(table.reset_index().index // width).mean()
    share = table[[f"{name}_s" for name in PHASES]].sum() / table["round_s"].sum()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, 3.4), layout="constrained")
        axes = figure.add_subplot()
        bottom = pd.Series(0.0, bars.index)
        for name in PHASES:
            height = bars[f"{name}_s"]
            label = f"{name} {100 * share[f'{name}_s']:.1f} %"
            axes.bar(bars["round"] + 1, height, 0.9 * width, bottom, color=COLOUR_OF[name], label=label)
            bottom += height
        figure.legend(loc="outside lower center", ncols=2, reverse=True)
        axes.grid(visible=False, axis="x")
        whole_numbers(axes.xaxis)
        axes.set_xlabel("rounds")
        axes.set_ylabel("seconds a round")
    return figure
