"""The colour, line style and marker of each line of a figure."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fedprune.analysis.curves import labels

# The colours of Okabe and Ito, which colour-blind readers can tell apart; brown for their yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6D31")
DASHES = ("-", (0, (3.5, 1.2)), (0, (1, 1.1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # 9, so that with 8 colours a pair returns only after 72
LOOKS: dict[str, tuple[object, ...]] = {"color": COLOURS, "linestyle": DASHES, "marker": MARKERS}

Look = dict[str, Any]
"""The color, linestyle and marker of a line, as keywords of matplotlib."""

Looks = dict[str, Look]
"""{label of a line: its look}."""


def looks(rows: pd.DataFrame, by: list[str], lone_points: bool = False) -> Looks:
    """Return colour, line style and marker for every value of the column `line`; each stands for one of the columns of `by`.

    lone_points: a line has but one point, so that its style cannot be seen; styles then stand for nothing.
    """
    channels = _channels(rows, by, ("marker",) if lone_points else ("linestyle", "marker"))
    ranks = {look: pd.factorize(labels(rows, columns))[0] for look, columns in channels.items()}
    chosen = {look: [LOOKS[look][rank % len(LOOKS[look])] for rank in ranks[look]] for look in LOOKS}
    return {line: {look: chosen[look][at] for look in LOOKS} for at, line in enumerate(rows["line"])}


def _channels(rows: pd.DataFrame, by: list[str], others: tuple[str, ...]) -> dict[str, list[str]]:
    """Assign the column of most values to colour, the next to `others`, in their order; further columns join the colour."""
    ranked = sorted(by, key=lambda column: -rows[column].nunique())
    channels: dict[str, list[str]] = {"color": ranked[:1], "linestyle": [], "marker": []}
    for column in ranked[1:]:
        values = rows[column].nunique()
        free = [look for look in others if not channels[look] and values <= len(LOOKS[look])]
        channels[(free or ["color"])[0]].append(column)
    # If the colours are too few, they return with another marker, so the marker cannot stand for anything else.
    if len(rows.drop_duplicates(channels["color"] or ["name"])) > len(COLOURS):
        channels |= {"color": channels["color"] + channels["marker"], "marker": []}
    return channels | {"marker": channels["marker"] or channels["color"]}
