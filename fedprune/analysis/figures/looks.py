"""The colour, line style and marker of each line of a figure."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fedprune.analysis.curves import labels

# Okabe and Ito's colours, which everybody tells apart; brown for their yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6D31")
DASHES = ("-", (0, (3.5, 1.2)), (0, (1, 1.1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # 9, so that with 8 colours a pair comes back only after 72
LOOKS: dict[str, tuple[Any, ...]] = {"color": COLOURS, "linestyle": DASHES, "marker": MARKERS}

Looks = dict[str, dict[str, Any]]
"""Of each line: its color, linestyle and marker, as matplotlib's keywords."""


def looks(rows: pd.DataFrame, by: list[str]) -> Looks:
    """Colour, line style and marker of every value of the column `line`, each standing for one of the varying columns."""
    channels = _channels(rows, by)
    ranks = {look: pd.factorize(labels(rows, columns))[0] for look, columns in channels.items()}
    chosen = {look: [LOOKS[look][rank % len(LOOKS[look])] for rank in ranks[look]] for look in LOOKS}
    return {line: {look: chosen[look][at] for look in LOOKS} for at, line in enumerate(rows["line"])}


def _channels(rows: pd.DataFrame, by: list[str]) -> dict[str, list[str]]:
    """The column of most values is told by colour, the next by line style, then by marker; what is left joins the colour."""
    ranked = sorted(by, key=lambda column: -rows[column].nunique())
    channels: dict[str, list[str]] = {"color": ranked[:1], "linestyle": [], "marker": []}
    for column in ranked[1:]:
        values = rows[column].nunique()
        free = [look for look in ("linestyle", "marker") if not channels[look] and values <= len(LOOKS[look])]
        channels[(free or ["color"])[0]].append(column)
    # Too many combinations for the colours come round with another marker, so the marker cannot stand for anything else.
    if len(rows.drop_duplicates(channels["color"] or ["name"])) > len(COLOURS):
        channels |= {"color": channels["color"] + channels["marker"], "marker": []}
    return channels | {"marker": channels["marker"] or channels["color"]}
