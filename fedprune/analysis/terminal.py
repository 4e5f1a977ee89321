"""The results table for a terminal, as narrow as it needs to be.

A measured column has its unit in brackets. All others say which cell a row is, or its status.
"""

from __future__ import annotations

import re
from typing import Literal

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedprune.analysis.cells import ORDERED
from fedprune.analysis.markdown import rounded

DISPENSABLE = (
    *(r"val .*\(", r"(unseen )?client (?!p\d).*\(", r"training \(", r"client p\d+ \(", r"time \(", r"sent down \(", "seeds$"),
)
"""Columns that begin like these are left out of a narrow terminal, the first one first."""


def show(results: pd.DataFrame, console: Console | None = None) -> Group:
    """Return the table for a terminal, with the reasons of unfinished cells below: `console.print(show(results))`.

    A terminal that is too narrow gets fewer columns, and the names of those left out; a file or a pipe gets them all.
    """
    console = console or Console()
    rows = with_results(results)
    dispensable = [column for pattern in DISPENSABLE for column in results if re.match(pattern, column)]
    if len(rows) > 1:  # the column by which they are ordered goes last
        dispensable.sort(key=lambda column: column == results.attrs.get(ORDERED))
    shown = _rich(rows)
    left_out: list[str] = []
    while console.is_terminal and dispensable and (shown.width or 0) > console.width:
        left_out.append(dispensable.pop(0))
        shown = _rich(rows.drop(columns=left_out))
    return Group(shown, *_notes(results, left_out))


def with_results(results: pd.DataFrame) -> pd.DataFrame:
    """Return the cells in which a seed is done; all of them if there is none."""
    done = results[results["seeds"] > 0]
    return done if len(done) else results


def _rich(results: pd.DataFrame) -> Table:
    cells = _with_spread(results.drop(columns=["reason"] + ["status"] * bool((results["status"] == "done").all())))
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in cells:
        justify: Literal["left", "right"] = "right" if "(" in column else "left"
        shown.add_column(escape(column.replace(" ", "\n")), justify=justify, no_wrap=True, vertical="bottom")
    for row in cells.itertuples(index=False):
        shown.add_row(*map(escape, row))
    shown.width = Console(width=10_000).measure(shown).maximum
    return shown


def _with_spread(results: pd.DataFrame) -> pd.DataFrame:
    """Return all cells as texts, without empty columns; the standard deviation joins the mean."""
    texts = pd.DataFrame(rounded(results), columns=list(results))
    at_sd = next(number for number, column in enumerate(texts) if column.startswith("test sd ("))
    test, sd = texts.columns[at_sd - 1 : at_sd + 1]
    spread = texts.pop(sd)
    texts[test] += spread.where(spread == "", " ± " + spread)
    return texts.loc[:, (texts != "").any()]


def _notes(results: pd.DataFrame, left_out: list[str]) -> list[Text]:
    labels = list(results.columns[: list(results).index("seeds")])
    reasons = results[results["reason"] != ""]
    which = [" · ".join(row) for row in rounded(reasons[labels])]
    notes = [": ".join(parts) for parts in zip(which, reasons["status"], reasons["reason"], strict=True)]
    missing = len(results) - len(with_results(results))
    if missing:
        notes.append(f"{missing} of {len(results)} cells have no result, and no row (see failed.json)")
    if ORDERED in results.attrs and len(results) - missing > 1:
        notes.append(f"ordered by {results.attrs[ORDERED]}")
    if left_out:
        notes.append(f"not shown for want of room: {', '.join(left_out)}")
    return [Text(note) for note in notes]
