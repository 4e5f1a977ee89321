"""Tables as LaTeX, with the rules of booktabs: `\\input{table.tex}` in a document that has `\\usepackage{booktabs}`."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fedprune.analysis.by_level import DENSITY, LEVEL
from fedprune.analysis.by_method import COSTS_SHOWN, judged, pareto_front
from fedprune.analysis.curves import label_columns, labels
from fedprune.analysis.markdown import three_digits
from fedprune.analysis.metric import Metric
from fedprune.analysis.paper.differences import texts
from fedprune.analysis.read import METHOD

PREAMBLE = "% written by fedprune.analysis; needs \\usepackage{booktabs}\n"

SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}", "…": "\\dots{}", "–": "--"}
    | {"±": "$\\pm$", "·": "$\\cdot$", "↑": "$\\uparrow$", "↓": "$\\downarrow$", "<": "$<$", ">": "$>$"}
)


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, bold: Sequence[int] = ()) -> str:
    """Return texts as a LaTeX tabular. left: how many columns are aligned left, the others right. bold: numbers of rows whose
    first cell is bold."""
    table = pd.DataFrame([[escaped(cell) for cell in row] for row in rows], columns=[escaped(title) for title in head])
    for row in bold:
        table.iloc[row, 0] = f"\\textbf{{{table.iloc[row, 0]}}}"
    columns = "l" * left + "r" * (len(head) - left)
    text: str = table.style.hide(axis="index").to_latex(hrules=True, column_format=columns)
    return PREAMBLE + text


def escaped(text: str) -> str:
    """Return a text in which LaTeX's special characters stand for themselves."""
    return text.translate(SPECIAL)


def table_latex(results: pd.DataFrame, metric: Metric) -> str:
    """Return the cells of `analysis.table` that have a result: label, test and client metric, density, bytes, operations."""
    done = results[results["seeds"] > 0]
    by = list(results.columns[: list(results).index("seeds")])
    done = done.assign(cell=labels(done, by))
    done = done.assign(cell=labels(done, label_columns(done, by) or by))
    costs = [column for column in ("density (%)", "sent up (MB)", "sent down (MB)", "training (GFLOPs)") if column in done]
    client = metric.head("client")
    rows = [
        [row["cell"], metric.spread(row[metric.test], row[metric.test_sd]), metric.spread(row[client], float("nan"))]
        + [_number(row[column]) for column in costs]
        for row in done.to_dict("records")
    ]
    return latex(["cell", metric.test, client, *costs], rows)


def levels_latex(by_levels: pd.DataFrame, metric: Metric) -> str:
    """Return the test metric at the end of each level: a row per density, from dense to sparse, and a column per cell."""
    by = list(by_levels.columns[: list(by_levels).index(LEVEL)])
    cells = by_levels.assign(cell=labels(by_levels, by))
    cells = cells.assign(cell=labels(cells, label_columns(cells, by) or by))
    spreads = zip(cells[metric.test], cells[f"{metric.test} sd"], strict=True)
    cells = cells.assign(text=[metric.spread(*spread) for spread in spreads])
    wide = cells.pivot(index=DENSITY, columns="cell", values="text")[cells["cell"].drop_duplicates()].fillna("")
    wide = wide.sort_index(ascending=False)
    return latex([DENSITY, *wide], [[f"{density:g}", *wide.loc[density]] for density in wide.index], left=0)


def methods_latex(methods: pd.DataFrame, metric: Metric) -> str:
    """Return `by_method`: a row per density and method, those on the Pareto front of their density in bold."""
    shown = [column for column in judged(metric, methods) if f"{column} sd" in methods and not column.startswith("validation")]
    front = methods.groupby("density", sort=False, group_keys=False)[list(methods)].apply(lambda of: pareto_front(of, metric))
    rows = [
        [str(row[METHOD]), f"{row['density']:.10g}", *(metric.spread(row[column], row[f"{column} sd"]) for column in shown)]
        + [_number(row[column]) for column in COSTS_SHOWN]
        for row in methods.to_dict("records")
    ]
    bold = [at for at, unbeaten in enumerate(front.reindex(methods.index)) if unbeaten]
    return latex(["method", "density", *shown, *COSTS_SHOWN], rows, bold=bold)


def differences_latex(table: pd.DataFrame, metric: Metric) -> str:
    """Return `differences`: a row per metric, density and cell."""
    which = zip(table["metric"], table["density"], texts(table, metric), strict=True)
    rows = [[cell, judged_by, f"{density:.10g}", *measured] for judged_by, density, (cell, *measured) in which]
    against = ", ".join(dict.fromkeys(table["against"]))
    return latex(["cell", "metric", "density", "mean", f"difference to {against}", "verdict"], rows, left=2)


def _number(value: float) -> str:
    return "" if pd.isna(value) else three_digits(value).rstrip(".")
