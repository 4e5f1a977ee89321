"""Where the time of a run's rounds went, by the phases of phase_clock.py: what profile=true leaves in a run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from fedprune.analysis.figures.looks import COLOURS
from fedprune.analysis.figures.style import STYLE, save, whole_numbers
from fedprune.phase_clock import PHASES, PREFIX

BARS = 60
"""With more rounds than this, neighbouring rounds share a bar: evaluation, which is not in all of them, would hide the rest."""

LOOKS = dict(zip(PHASES, (*COLOURS, "0.8"), strict=True))


def write(rows: Sequence[Mapping[str, float]], folder: Path) -> str | None:
    """Write profile.csv and figures/profile.{png,svg} of a run's metrics into its folder; return the lines for the screen.

    Nothing, and None, if no round was profiled.
    """
    table = by_round(rows)
    if table.empty:
        return None
    table.to_csv(folder / "profile.csv", index=False)
    save(seconds_rounds(table), folder / "figures" / "profile")
    return text(table)


def by_round(rows: Sequence[Mapping[str, float]]) -> pd.DataFrame:
    """A row per profiled round: `round` (0-based), and the seconds of each phase, which add up to `round_s`."""
    profiled = [row for row in rows if f"{PREFIX}other_s" in row]
    columns = {"round": "round", **{f"{name}_s": f"{PREFIX}{name}_s" for name in PHASES}, "round_s": "time/round_s"}
    return pd.DataFrame([[row[metric] for metric in columns.values()] for row in profiled], columns=list(columns))


def text(table: pd.DataFrame) -> str:
    """The phases, the longest first, with their share of the time."""
    total = {name: float(table[f"{name}_s"].sum()) for name in PHASES}
    longest = sorted((name for name in PHASES if total[name] > 0), key=lambda name: -total[name])
    whole, rounds = sum(total.values()), len(table)
    shares = [f"  {name:<10}{100 * total[name] / whole:>5.1f} %{1e3 * total[name] / rounds:>9.2f} ms" for name in longest]
    return "\n".join([f"where the time went: {whole:.3g} s in {rounds} round{'s' * (rounds != 1)}, each on average", *shares])


def seconds_rounds(table: pd.DataFrame) -> Figure:
    """Seconds of a round, stacked by phase, against rounds. Of many rounds, a bar is the mean of those that share it."""
    width = ceil(len(table) / BARS)
    bars = table.groupby(table.reset_index().index // width).mean()
    share = table[[f"{name}_s" for name in PHASES]].sum() / table["round_s"].sum()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.4), layout="constrained")
        axes = figure.add_subplot()
        bottom = pd.Series(0.0, bars.index)
        for name in PHASES:
            height = bars[f"{name}_s"]
            label = f"{name} {100 * share[f'{name}_s']:.1f} %"
            axes.bar(bars["round"] + 1, height, 0.9 * width, bottom, color=LOOKS[name], label=label)
            bottom += height
        figure.legend(loc="outside right upper", reverse=True)
        axes.grid(visible=False, axis="x")
        whole_numbers(axes.xaxis)
        axes.set_xlabel("rounds")
        axes.set_ylabel("seconds a round")
    return figure
