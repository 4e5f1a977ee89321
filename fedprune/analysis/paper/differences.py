"""The differences of every cell to a named one at the end of the run, by equal seeds, with a verdict.

Two runs of one seed share the split of the data, the initial weights and the cohorts, so that the differences of equal seeds
vary less than the runs do. Of a sweep over methods with several settings, only each method's best setting counts.
"""

from __future__ import annotations

import pandas as pd

from fedprune.analysis.by_method import at_true_density, dense, named, over_methods
from fedprune.analysis.cells import varying
from fedprune.analysis.curves import label_columns, labels
from fedprune.analysis.markdown import markdown_lines
from fedprune.analysis.metric import Metric, metric_of
from fedprune.analysis.tuning import tuned
from fedprune.analysis.verdict import Interval, gain_over, judged
from fedprune.errors import FedpruneError

COLUMNS = ("metric", "density", "cell", "against", "mean", "sd", "difference", "low", "high", "seeds", "verdict")

INTRODUCTION = (
    "Mean ± sample standard deviation over seeds; the mean difference to {}, positive where the row is better, by the n seeds "
    "that both have, and its 95 % interval (Student's, of the paired differences). *held*: the interval lies above 0, and the "
    "row is better; *reversed*: it lies below 0, and the row is worse; *undecided*: it covers 0; *not testable here*: fewer "
    "than two seeds have both. Each interval is taken by itself: of twenty that should cover 0, one does not. Runs are "
    "compared at the same density; those that were never pruned, of density 1, with every density.\n"
)


def differences(runs: pd.DataFrame, against: str) -> pd.DataFrame:
    """Return a row per metric, density and cell: the mean and sample standard deviation of the cell, and its paired differences
    to the cell called `against`.

    Metrics are that of the task on test data, and of the mean client. Columns: COLUMNS, values in the metric's unit (accuracies
    in %). `runs`: from `analysis.load_runs`; those that are done count. Raises FedpruneError if no cell is called `against`.
    """
    rows, metric = labelled(runs), metric_of(runs)
    known = list(dict.fromkeys(rows["label"]))
    reference = against if against in known else against.rpartition("/")[2]
    if reference not in known:
        choices = "\n  ".join(known) or "(no run is done)"
        raise FedpruneError(f"--against '{against}': no cell that is done is called so; choose one of these:\n  {choices}")
    parts = [part for part in ("test", "client") if metric.column(part) in rows]
    compared = [_row(cell, rows, reference, metric, part) for part in parts for cell in _cells(rows, reference)]
    return pd.DataFrame(compared, columns=list(COLUMNS))


def labelled(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that are done, from dense to sparse, with the label of their cell, without the density, as `label`."""
    runs = tuned(named(runs)) if over_methods(runs) else runs
    rows = at_true_density(runs[runs["status"] == "done"]).sort_values("density", ascending=False, kind="stable")
    by = [column for column in varying(rows) if column != "density"] if len(rows) else []
    rows = rows.assign(cell=labels(rows, by))
    rows = rows.assign(label=labels(rows, label_columns(rows, by) or ["name"]))
    return rows.drop_duplicates(["label", "density", "seed"])  # dense runs at several densities are one


def _cells(rows: pd.DataFrame, reference: str) -> list[pd.DataFrame]:
    """Return the runs of each density and cell but the reference; those of dense networks at each density of the reference."""
    is_reference = rows["label"] == reference
    others, densities = rows[~is_reference], rows.loc[is_reference & ~dense(rows), "density"].unique()
    whole = dense(others) if len(densities) else pd.Series(False, index=others.index)
    spread = [others[~whole], *(others[whole].assign(density=density) for density in densities)]
    others = pd.concat(spread).sort_values("density", ascending=False, kind="stable")
    return [of_cell for _, of_cell in others.groupby(["density", "label"], sort=False, dropna=False)]


def _row(of_cell: pd.DataFrame, rows: pd.DataFrame, reference: str, metric: Metric, part: str) -> dict[str, object]:
    density = of_cell["density"].iloc[0]
    values, others = (_by_seed(some, metric, part) for some in (of_cell, _at(rows[rows["label"] == reference], density)))
    gain = gain_over(values, others, metric.larger_is_better)
    return {
        **{"metric": metric.head(part), "density": density, "cell": of_cell["label"].iloc[0], "against": reference},
        **{"mean": values.mean(), "sd": values.std(ddof=1)},
        **{"difference": gain.mean, "low": gain.low, "high": gain.high, "seeds": gain.n, "verdict": judged(gain)},
    }


def _at(reference: pd.DataFrame, density: float) -> pd.DataFrame:
    """Return the runs of the reference at this density; all of them if it was never pruned."""
    same = reference[reference["density"] == density]
    return reference if same.empty and dense(reference).all() else same


def _by_seed(rows: pd.DataFrame, metric: Metric, part: str) -> pd.Series:
    return rows.set_index("seed")[metric.column(part)].astype(float) * metric.factor


def differences_markdown(table: pd.DataFrame, metric: Metric) -> str:
    """Return `differences` as Markdown: a table for each metric and density."""
    against = ", ".join(dict.fromkeys(table["against"]))
    sections = [INTRODUCTION.format(against)]
    for (judged_by, density, reference), rows in table.groupby(["metric", "density", "against"], sort=False, dropna=False):
        head = ["", str(judged_by), f"difference to {reference}", "verdict"]
        sections += [f"## {str(judged_by).capitalize()} at density {density:.10g}, against {reference}\n"]
        sections += [markdown_lines(head, ["---", "---:", "---:", "---"], texts(rows, metric))]
    return "\n".join(sections)


def texts(table: pd.DataFrame, metric: Metric) -> list[list[str]]:
    """Return the texts of the rows of `differences`: the cell, mean ± sd, the difference with its interval, the verdict."""
    gains = [Interval(*row) for row in table[["difference", "low", "high", "seeds"]].itertuples(index=False)]
    spreads = [metric.spread(*row) for row in table[["mean", "sd"]].itertuples(index=False)]
    intervals = [interval(gain, metric) for gain in gains]
    return [list(row) for row in zip(table["cell"], spreads, intervals, table["verdict"], strict=True)]


def interval(gain: Interval, metric: Metric) -> str:
    """Return a paired difference as text, '+1.5 (+0.2 to +2.8, n = 3)'; '' if fewer than two seeds have both."""
    if gain.n < 2:
        return ""
    mean, low, high = (f"{value:+.1f}" if metric.percent else f"{value:+.4g}" for value in (gain.mean, gain.low, gain.high))
    return f"{mean} ({low} to {high}, n = {gain.n})"
