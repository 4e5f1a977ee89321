"""Writing the results table: as Markdown for a file, and as narrow as the terminal needs it.

A measured column is one with its unit in brackets; all others say which cell a row is, or how it went.
"""

from __future__ import annotations

import re

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedprune.analysis.markdown import rounded

DISPENSABLE = (r"val .*\(", r"client (?!p\d).*\(", r"training \(", r"client p\d+ \(", r"time \(", r"sent down \(", "seeds$")
"""What a narrow terminal has to do without, first things first: how its columns begin."""


def show(results: pd.DataFrame, console: Console | None = None) -> Group:
    """The table for a terminal, with the reasons of what did not finish below: `console.print(show(results))`.

    A terminal that is too narrow gets fewer columns, and the names of those left out; a file or a pipe gets them all.
    """
    console = console or Console()
    missing = [column for pattern in DISPENSABLE for column in results if re.match(pattern, column)]
    shown = _rich(results)
    left_out: list[str] = []
    while console.is_terminal and missing and (shown.width or 0) > console.width:
        left_out.append(missing.pop(0))
        shown = _rich(results.drop(columns=left_out))
    return Group(shown, *_notes(results, left_out))


def _rich(results: pd.DataFrame) -> Table:
    cells = _with_spread(results.drop(columns=["reason"] + ["status"] * bool((results["status"] == "done").all())))
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in cells:
        shown.add_column(
            escape(column.replace(" ", "\n")), justify="right" if "(" in column else "left", no_wrap=True, vertical="bottom"
        )
    for row in cells.itertuples(index=False):
        shown.add_row(*map(escape, row))
    shown.width = Console(width=10_000).measure(shown).maximum
    return shown


def _with_spread(results: pd.DataFrame) -> pd.DataFrame:
    """All cells as texts, columns without any left out; the standard deviation joins the mean."""
    texts = pd.DataFrame(rounded(results), columns=list(results))
    place = next(number for number, column in enumerate(texts) if column.startswith("test sd ("))
    test, sd = texts.columns[place - 1 : place + 1]
    spread = texts.pop(sd)
    texts[test] += spread.where(spread == "", " ± " + spread)
    return texts.loc[:, (texts != "").any()]


def _notes(results: pd.DataFrame, left_out: list[str]) -> list[Text]:
    labels = list(results.columns[: list(results).index("seeds")])
    reasons = results[results["reason"] != ""]
    which = [" · ".join(row) for row in rounded(reasons[labels])]
    notes = [
        f"{cell}: {status}: {reason}" for cell, status, reason in zip(which, reasons["status"], reasons["reason"], strict=True)
    ]
    return [Text(note) for note in notes + [f"not shown for want of room: {', '.join(left_out)}"] * bool(left_out)]
