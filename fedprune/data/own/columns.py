"""Columns of a user's table: found by name, checked, and made numbers. Every message names the column and what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api import types

from fedprune.errors import DataError

MOST_CATEGORIES = 50
"""A column of words with more different ones is refused: it is a name or a number of a row rather than a property of it."""

SHOWN = 5
"""So many columns or users are named in a message, and the others are counted."""


@dataclass(frozen=True)
class Features:
    """The inputs of a table. values: float32 [N, F]. names: of the F columns. standardised: bool [F]; false for a column of
    zeros and ones that stands for a category."""

    values: np.ndarray
    names: tuple[str, ...]
    standardised: np.ndarray


def require(table: pd.DataFrame, key: str, column: str) -> None:
    """Raise DataError, with the nearest name, if the table has no such column. key: that of the yaml which names it."""
    if column in table.columns:
        return
    names = [str(name) for name in table.columns]
    near = difflib.get_close_matches(column, names, n=1, cutoff=0.5) or difflib.get_close_matches(
        column.lower(), [name for name in names if name.islower()], n=1, cutoff=0.5
    )
    instead = f"type {key}={near[0]}" if near else f"its columns are {shown(names)}"
    raise DataError(f"{key}={column}: the table has no such column: {instead}")


def features(table: pd.DataFrame, training: np.ndarray) -> Features:
    """Return the columns as numbers: truth values as 0 and 1, words as a column of 0 and 1 for each word of the training rows.

    A word that no training row has is 0 in all of these. training: bool [N]. Raises DataError for a column that cannot be
    made numbers.
    """
    if not len(table.columns):
        raise DataError("data=table: no column is left as an input: shorten data.ignore, or choose a table with more columns")
    made = [_numbers(table[name], training) for name in table.columns]
    names = tuple(name for columns in made for name in columns)
    values = [column for columns in made for column in columns.values()]
    measured = [name in table.columns and not types.is_bool_dtype(table[name]) for name in names]
    return Features(np.stack(values, axis=1).astype(np.float32), names, np.array(measured))


def _numbers(column: pd.Series, training: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of numbers that a column becomes, by name."""
    name = str(column.name)
    if types.is_bool_dtype(column) or (types.is_numeric_dtype(column) and not types.is_complex_dtype(column)):
        return {name: column.to_numpy(np.float64)}
    if not is_words(column):
        raise DataError(
            f"data=table: column {name} holds {column.dtype}, which is neither numbers nor words: make it a number, or type "
            f"data.ignore=[{name}]"
        )
    words = sorted({str(word) for word in column[training]})
    if len(words) > MOST_CATEGORIES:
        raise DataError(
            f"data=table: column {name} holds {len(words)} different words, such as {words[0]}, and more than "
            f"{MOST_CATEGORIES} are no categories: type data.ignore=[{name}] to leave it out, or data.users={name} if it says "
            "whose each row is"
        )
    texts = column.astype(str).to_numpy()
    return {f"{name}={word}": (texts == word).astype(np.float64) for word in words}


def is_words(column: pd.Series) -> bool:
    """Return whether a column holds text, or categories."""
    return bool(types.is_string_dtype(column) or types.is_object_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype))


def without_missing(table: pd.DataFrame, missing: str) -> pd.DataFrame:
    """Return the rows in which nothing is missing (an infinite number counts as missing).

    Raises DataError with the columns and their numbers of missing values, unless `missing` is `drop`.
    """
    if missing not in ("stop", "drop"):
        raise DataError(f"data.missing={missing}: type data.missing=stop or data.missing=drop")
    gaps = table.isna() | table.isin([np.inf, -np.inf])
    counts = gaps.sum()
    counts = counts[counts > 0]
    if not len(counts):
        return table
    rows = int(gaps.any(axis=1).sum())
    said = shown([f"{name} ({count})" for name, count in counts.items()])
    if missing == "stop":
        raise DataError(
            f"data=table: values are missing in {rows} of {len(table)} rows, by column: {said}: fill them, type "
            f"data.missing=drop to leave out these {rows} rows, or data.ignore=[{','.join(map(str, counts.index))}] to leave "
            "out the columns"
        )
    if rows == len(table):
        raise DataError(f"data.missing=drop leaves no row, since every one has a missing value, by column: {said}")
    return table[~gaps.any(axis=1)]


def numbered(column: pd.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the values as numbers, int64 [N], and the different values as texts, sorted: numbers by size, words as text."""
    values = column.astype(str) if is_words(column) else column
    names, numbers = np.unique(values.to_numpy(), return_inverse=True)
    return numbers.astype(np.int64), tuple(str(name) for name in names)


def shown(names: Sequence[str] | Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
