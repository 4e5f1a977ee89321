"""Two methods are comparable if they have alike what a claim names: density, bytes or training operations."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fedprune.analysis.by_method import WITHOUT

QUANTITIES = {"density": (), "bytes": ("total/up_bytes", "total/down_bytes"), "flops": ("total/flops",)}
"""What a claim may need to be equal, and the columns of the values whose sum it is. `density`: both were run at the density of
the comparison."""

TOLERANCE = 0.1
"""The part by which the larger of two means may exceed the smaller one."""


def unequal(values: pd.DataFrame, pair: tuple[str, str], density: float, needed: Sequence[str]) -> str:
    """Return what a pair of methods has unequal, as "bytes 39.0 against 23.8 MB"; "" if nothing.

    values: from `outcomes`. needed: keys of QUANTITIES; a quantity that the values lack counts as unequal.
    """
    return "; ".join(found for name in needed if (found := _unequal(values, pair, density, name)))


def _unequal(values: pd.DataFrame, pair: tuple[str, str], density: float, name: str) -> str:
    if name == "density":
        without = [method for method in pair if density == WITHOUT or not len(_exactly(values, method, density))]
        return f"{' and '.join(without)} without this density" if without else ""
    first, second = (_mean(values, method, density, QUANTITIES[name]) for method in pair)
    if first <= (1 + TOLERANCE) * second and second <= (1 + TOLERANCE) * first:  # NaN is not
        return ""
    unit, factor = ("MB", 1e-6) if name == "bytes" else ("GFLOPs", 1e-9)
    return f"{name} {first * factor:.3g} against {second * factor:.3g} {unit}"


def _mean(values: pd.DataFrame, method: str, density: float, columns: Sequence[str]) -> float:
    """Return the mean over seeds of the sum of columns; NaN, which equals nothing, without them."""
    if not set(columns) <= set(values):
        return float("nan")
    rows = _exactly(values, method, density)
    rows = rows if len(rows) else _exactly(values, method, WITHOUT)
    return float(rows[list(columns)].sum(axis=1, skipna=False).mean())


def _exactly(values: pd.DataFrame, method: str, density: float) -> pd.DataFrame:
    return values[(values["method"] == method) & (values["density"] == density)]
