"""Read a table of a user's own as a data set: `data=table data.path=people.csv data.target=income`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from pandas.api import types
from pandas.io.common import get_handle
from torch import Tensor

from fedprune.data.datasets import Dataset
from fedprune.data.divide import stratified
from fedprune.data.own import columns
from fedprune.errors import DataError
from fedprune.identity.reads import reads

log = logging.getLogger(__name__)

TASKS = ("classes", "regression")

MOST_CLASSES = 20
"""Whole numbers with more different values are taken for a regression, if the task is not given."""

PARQUET = (".parquet", ".pq")

SEPARATORS = (",", ";", "\t", "|")


class Labels(NamedTuple):
    """The labels of all rows, the number of outputs, what is said of them, and the names of the classes."""

    y: Tensor
    classes: int
    said: str
    names: tuple[str, ...] = ()


@reads("path", "test_path")
def table(
    path: str | None = None,
    target: str | None = None,
    users: str | None = None,
    task: str | None = None,
    test_path: str | None = None,
    split: str | None = None,
    test: float = 0.2,
    ignore: Sequence[str] = (),
    missing: str = "stop",
) -> Dataset:
    """Return the rows of a CSV or parquet file as examples: float32 [N, F], standardised by the training rows.

    target: the column of labels. users: that of whose each row is, for partition=natural. task: `classes` or `regression`;
    None: what the target looks like. The test rows are those of the file `test_path`; or those whose column `split` says
    `test`; or the fraction `test` of the rows (of each class its share), always the same. ignore: columns to leave out.
    missing: `stop`, or `drop` to leave out rows with missing values. All other columns are inputs (see columns.py). Targets of
    a regression are in standard deviations from the mean of the training rows.

    Raises DataError for what cannot be read or does not fit, with what to type.
    """
    if path is None or target is None:
        raise DataError("data=table needs a file and the column of labels: type data.path=FILE.csv data.target=COLUMN")
    rows = _rows(path, test_path, split)
    _require(rows, target, users, split, ignore)
    rows = columns.without_missing(rows.drop(columns=list(ignore)), missing)
    testing = np.array(rows[TEST], bool) if TEST in rows else _split(rows, split)
    labels = _labels(rows[target], task, testing)
    if testing is None:
        testing = _held_out(labels, test)
    _both(testing, rows)
    labels = _standardised(labels, testing)
    log.info("data=table: %d rows to train on, %d to test on; %s", (~testing).sum(), testing.sum(), labels.said)
    return _dataset(rows.drop(columns=[c for c in (target, split, TEST) if c in rows]), users, labels, testing)


TEST = "\0test"
"""The column that marks the rows of a test file, which no file's own column can be called."""


def _dataset(rows: pd.DataFrame, users: str | None, labels: Labels, testing: np.ndarray) -> Dataset:
    """Make the data set. rows: inputs, and the column of users."""
    groups, names = columns.numbered(rows[users][~testing]) if users else (None, ())
    inputs = columns.features(rows.drop(columns=[users] if users else []), ~testing)
    mean, std = _moments(inputs, ~testing)
    train, held_out = torch.tensor(~testing), torch.tensor(testing)
    x = torch.from_numpy(inputs.values)
    return Dataset(
        name="table",
        x=x[train],
        y=labels.y[train],
        test_x=x[held_out],
        test_y=labels.y[held_out],
        classes=labels.classes,
        mean=mean,
        std=std,
        groups=None if groups is None else torch.from_numpy(groups),
        users=names,
        class_names=labels.names,
    )


def _moments(inputs: columns.Features, training: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each column over the training rows; 0 and 1 where it is left as it is."""
    values = inputs.values[training].astype(np.float64)
    mean = np.where(inputs.standardised, values.mean(0), 0.0)
    std = np.where(inputs.standardised & (values.std(0) > 0), values.std(0), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


COLUMNS, LONGEST = 100_000, 2**24
"""Columns of a table, and letters of its first line, at most."""


def read(path: str, key: str) -> pd.DataFrame:
    """Return the table in a file. key: that of the yaml which names it. Raises DataError if it cannot be read."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{key}={path}: there is no file {file.absolute()}: type {key}=FILE, a CSV or parquet file")
    try:
        found = pd.read_parquet(file) if file.suffix in PARQUET else pd.read_csv(file, sep=_separator(file))
    except ImportError as error:
        raise DataError(
            f"{key}={path}: parquet needs a package: type `pip install pyarrow` (the extra `parquet`), or save it as CSV"
        ) from error
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{key}={path} cannot be read as a table ({str(error).splitlines()[0]}): save it as CSV") from error
    if not len(found):
        raise DataError(f"{key}={path} has no rows below its first line, which names the columns")
    return found


def _separator(file: Path) -> str:
    """Return the character between columns: of comma, semicolon, tab and bar the most frequent one of the first line."""
    opened = get_handle(file, "r", encoding="utf-8", compression="infer", errors="replace")
    with opened as handles:
        first = handles.handle.readline(LONGEST)
    separator = max(SEPARATORS, key=first.count)
    if len(first) == LONGEST or first.count(separator) >= COLUMNS:
        raise DataError(f"{file} has more than {COLUMNS} columns, or a first line of {LONGEST} letters or more: leave some out")
    return separator


def _rows(path: str, test_path: str | None, split: str | None) -> pd.DataFrame:
    """Return the rows of the file, and of the test file, which are marked in the column TEST."""
    rows = read(path, "data.path")
    if test_path is None:
        return rows
    if split is not None:
        raise DataError("data.test_path and data.split both say which rows are tested on: type data.split=null")
    more = read(test_path, "data.test_path")
    lacking = [str(name) for name in rows.columns if name not in more.columns]
    if lacking:
        raise DataError(f"data.test_path={test_path} lacks columns of {path}: {columns.shown(lacking)}")
    return pd.concat([rows.assign(**{TEST: False}), more[rows.columns].assign(**{TEST: True})], ignore_index=True)


def _require(rows: pd.DataFrame, target: str, users: str | None, split: str | None, ignore: Sequence[str]) -> None:
    """Raise DataError if a column is not there, or has two uses."""
    if isinstance(ignore, str):
        raise DataError(f"data.ignore={ignore} is a list of columns: type data.ignore=[{ignore}]")
    named = {"data.target": target, "data.users": users, "data.split": split}
    for key, column in named.items():
        if column is None:
            continue
        columns.require(rows, key, column)
        if column in ignore:
            raise DataError(f"data.ignore={list(ignore)} leaves out {column}, which is {key}")
    for column in ignore:
        columns.require(rows, "data.ignore", column)


def _split(rows: pd.DataFrame, split: str | None) -> np.ndarray | None:
    """Return which rows their column `split` calls test, bool [N]; None without such a column."""
    if split is None:
        return None
    words = rows[split].astype(str).str.strip().str.lower()
    strange = sorted({*words} - {"train", "test"})
    if strange:
        raise DataError(f"data.split={split}: its values are to be train and test, and there is {columns.shown(strange)}")
    return np.array(words == "test")


def _labels(column: pd.Series, task: str | None, testing: np.ndarray | None) -> Labels:
    """Return the labels as the task takes them."""
    if task not in (None, *TASKS):
        raise DataError(f"data.task={task}: type data.task=classes or data.task=regression, or null to have it found out")
    chosen = task or _looks_like(column)
    other = "" if task else f" (if it is not: data.task={'classes' if chosen == 'regression' else 'regression'})"
    if chosen == "regression":
        if not types.is_numeric_dtype(column):
            raise DataError(f"data.task=regression: the column {column.name} holds no numbers: type data.task=classes")
        numbers = torch.tensor(column.to_numpy(np.float64))
        return Labels(numbers, 1, f"{column.name} is a real number{other}, for local=regression")
    y, names = columns.numbered(column)
    _require_classes(column, y, names, testing)
    said = f"{column.name} has {len(names)} classes{other}: {columns.shown(names)}"
    return Labels(torch.from_numpy(y), len(names), said, names)


def _require_classes(column: pd.Series, y: np.ndarray, names: tuple[str, ...], testing: np.ndarray | None) -> None:
    """Raise DataError if there is a single class, or one that only test rows have."""
    if len(names) < 2:
        raise DataError(f"data.target={column.name} has one value, {names[0]}, in all rows, so there is nothing to learn")
    unknown = {*range(len(names))} - {*y[~testing].tolist()} if testing is not None else set()
    if unknown:
        raise DataError(f"data.target={column.name}: only test rows have {columns.shown(names[k] for k in sorted(unknown))}")


def _looks_like(column: pd.Series) -> str:
    """Return the task that fits: regression for numbers with a fraction, or of more than MOST_CLASSES values."""
    if not types.is_numeric_dtype(column) or types.is_bool_dtype(column):
        return "classes"
    whole = bool((column == column.round()).all())
    return "classes" if whole and column.nunique() <= MOST_CLASSES else "regression"


def _held_out(labels: Labels, fraction: float) -> np.ndarray:
    """Return the test rows of a table without a split: a fraction, of each class its share; a function of the labels alone."""
    if not 0 < fraction < 1:
        raise DataError(f"data.test={fraction} is the fraction of rows to test on: type data.test=0.2")
    strata = np.zeros(len(labels.y), np.int64) if labels.y.is_floating_point() else labels.y.numpy()
    chosen = stratified(strata, round(fraction * len(strata)), np.random.Generator(np.random.PCG64(0)))
    testing = np.zeros(len(strata), bool)
    testing[chosen] = True
    return testing


def _both(testing: np.ndarray, rows: pd.DataFrame) -> None:
    if testing.all() or not testing.any():
        raise DataError(
            f"data=table: {testing.sum()} of {len(rows)} rows are test rows: it takes some to train and some to test"
        )


def _standardised(labels: Labels, testing: np.ndarray) -> Labels:
    """Return targets of a regression as float32 in standard deviations from the mean of the training rows; classes as they
    are."""
    if not labels.y.is_floating_point():
        return labels
    training = labels.y[torch.from_numpy(~testing)]
    mean, std = float(training.mean()), float(training.std(correction=0))
    said = f"{labels.said}, in units of {std:.6g} (its standard deviation) from {mean:.6g} (its mean)"
    return Labels(((labels.y - mean) / (std or 1.0)).float(), labels.classes, said)
