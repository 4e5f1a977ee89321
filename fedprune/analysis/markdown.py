"""A results table as Markdown, numbers rounded."""

from __future__ import annotations

import pandas as pd


def markdown(results: pd.DataFrame) -> str:
    """Return a table in Markdown with every column, numbers rounded."""
    rules = ["---:" if pd.api.types.is_numeric_dtype(results[column]) else "---" for column in results]
    return markdown_lines(list(results), rules, rounded(results))


def markdown_lines(head: list[str], rules: list[str], rows: list[list[str]]) -> str:
    """Return texts as a table in Markdown. rules: the alignment of each column, `---` or `---:` for right."""
    return "".join(_line(cells) for cells in [head, rules, *rows])


def _line(cells: list[str]) -> str:
    escaped = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
    return f"| {' | '.join(escaped)} |\n"


def rounded(results: pd.DataFrame) -> list[list[str]]:
    """Return the rows of a table as texts, numbers rounded as their columns' units ask for."""
    rows = results.itertuples(index=False)
    return [[_text(value, column) for column, value in zip(results, row, strict=True)] for row in rows]


def _text(value: object, column: str) -> str:
    if pd.isna(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    if column.endswith("(%)"):
        return f"{value:.2f}"
    if column.endswith(("(↑)", "(↓)")):
        return f"{value:.4g}"
    return three_digits(value) if "(" in column else f"{value:.10g}"


def three_digits(value: float) -> str:
    """Return a number in three digits; in all that it has before the point from 100."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
