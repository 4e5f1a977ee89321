"""The table of a sweep over published methods: how accurate each is at each density, what it costs, and the Pareto front.

A method is an experiment that another one adds to itself, as conf/experiment/benchmark.yaml does (the override
`+experiment@_global_=NAME`). Of a method that was run with several settings, only the best on validation data counts
(tuning.py). Methods are ranked by one number that means the same for all of them, whosever the masks are: the accuracy (or the
task's other metric) of each client's network on that client's own test examples, mean over all clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from fedprune.analysis.markdown import markdown_lines, three_digits
from fedprune.analysis.metric import ACCURACY, Metric, metric_of
from fedprune.analysis.read import METHOD
from fedprune.analysis.tuning import tuned

BY = ["density", METHOD]

COSTS = {
    "alive (%)": ("alive", 100),
    "up (MB)": ("total/up_bytes", 1e-6),
    "down (MB)": ("total/down_bytes", 1e-6),
    "training (GFLOPs)": ("total/flops", 1e-9),
    "time (s)": ("time/total_s", 1),
}
"""The columns of cost, for every task: (metric of a run, factor to the unit). `alive` is the mean density of the clients' own
masks, if they have them."""

COSTS_SHOWN = ("alive (%)", "up (MB)", "down (MB)", "training (GFLOPs)")
"""The costs that methods.md shows before REACHED."""

REACHED = ("rounds to target", "MB to target")

KIND = "kind"
DENSE, FIXED, MOVING, PERSONAL, OTHER = KINDS = (
    "dense network",
    "one mask, fixed",
    "one mask, moving",
    "personal masks",
    "slices, compressed",
)
"""The values of the column KIND: what of the network a method trains and sends."""

WITHOUT = 1.0
"""The density of a method that has none, such as FedAvg of the dense network: it is run at this one alone."""


def judged(metric: Metric, runs: pd.DataFrame) -> dict[str, tuple[str, float]]:
    """Return the columns that tell how good a method is: (metric, factor). Methods are ranked by the first."""
    return {
        metric.head("client"): (metric.column("client"), metric.factor),
        **metric.measured(runs),
        f"worst decile ({metric.unit})": (metric.tail_column, metric.factor),
        f"server's network ({metric.unit})": (metric.column("test"), metric.factor),
        _validation(metric): (metric.column("val"), metric.factor),
    }


def _validation(metric: Metric) -> str:
    return f"validation ({metric.unit})"


def named(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with each method called by its file alone, without the folder that the file is in."""
    return runs.assign(**{METHOD: runs[METHOD].str.replace(".*/", "", regex=True)})


def dense(runs: pd.DataFrame) -> pd.Series:
    """Return which runs have kept the whole network: their density is no more than a key that they did not read."""
    if "prune/events" not in runs:
        return pd.Series(False, index=runs.index)
    whole = runs["density/weights"].eq(1) if "density/weights" in runs else True
    return runs["prune/events"].eq(0) & whole


def at_true_density(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs, those of a dense network at the density WITHOUT."""
    return runs.assign(density=runs["density"].where(~dense(runs), WITHOUT))


def at_every_density(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs, those of methods that were run WITHOUT a density alone once for each density of the others."""
    densities = [density for density in runs["density"].dropna().unique() if density != WITHOUT]
    alone = (runs["density"] == WITHOUT).groupby(runs[METHOD]).transform("all") if len(runs) else pd.Series(dtype=bool)
    if not densities or not alone.any():
        return runs
    return pd.concat([runs[~alone], *(runs[alone].assign(density=density) for density in densities)], ignore_index=True)


def over_methods(runs: pd.DataFrame) -> bool:
    """Return whether these runs are of several methods."""
    return METHOD in runs and bool(runs[METHOD].nunique() > 1)


def by_method(runs: pd.DataFrame, rounds: pd.DataFrame, target: float) -> pd.DataFrame:
    """Return a row per density and method, the best first: seeds (done), mean and sample standard deviation of `judged` and
    COSTS, and REACHED: the rounds and megabytes (up and down) until the target was reached.

    target: a value of the mean client's metric (of accuracy, a fraction). REACHED are means over seeds, NaN unless every seed
    reaches the target. `runs`, `rounds`: from `analysis.load_runs`, `load_rounds`.
    """
    best, metric = tuned(named(runs)), metric_of(runs)
    done = at_every_density(at_true_density(best[best["status"] == "done"]).drop_duplicates(["density", METHOD, "seed"]))
    measured = judged(metric, done) | COSTS
    reached = done[["run"]].merge(_reached(rounds, target, metric), on="run", how="left").set_index(done.index)
    rows = [_row(which, cell, reached.loc[cell.index], measured) for which, cell in done.groupby(BY, sort=False)]
    table = pd.DataFrame(rows, columns=None if rows else [*BY, "seeds", KIND, *measured, *REACHED])
    ascending = [False, not metric.larger_is_better]
    return table.sort_values(["density", metric.head("client")], ascending=ascending, kind="stable").reset_index(drop=True)


def _row(
    which: tuple[object, ...], cell: pd.DataFrame, reached: pd.DataFrame, measured: Mapping[str, tuple[str, float]]
) -> dict[str, object]:
    row: dict[str, object] = dict(zip(BY, which, strict=True)) | {"seeds": len(cell), KIND: kind_of(cell)}
    cell = cell.assign(alive=_column(cell, "client/density_mean").fillna(_column(cell, "density/weights")))
    for column, (name, factor) in measured.items():
        values = _column(cell, name) * factor
        row |= {column: values.mean(), f"{column} sd": values.std(ddof=1)}
    every_seed = len(reached) > 0 and reached[list(REACHED)].notna().all(axis=None)
    return row | {column: reached[column].mean() if every_seed else float("nan") for column in REACHED}


def kind_of(cell: pd.DataFrame) -> str:
    """Return the one of KINDS that these runs of a method are of, from their axes and bytes.

    A method that never prunes and yet sends up another number of bytes than down (by more than a tenth) compresses messages.
    """
    whose, when, how_often = (cell[axis].iloc[0] if axis in cell else None for axis in ("whose", "when", "how_often"))
    if whose == "personal":
        return PERSONAL
    if whose in (None, "nested"):
        return OTHER
    if how_often == "never":
        up, down = (_column(cell, f"total/{way}_bytes").mean() for way in ("up", "down"))
        return DENSE if abs(up - down) <= max(up, down) / 10 else OTHER
    return FIXED if when == "before_training" else MOVING


def _column(cell: pd.DataFrame, metric: str) -> pd.Series:
    return cell[metric].astype(float) if metric in cell else pd.Series(float("nan"), cell.index)


def _reached(rounds: pd.DataFrame, target: float, metric: Metric) -> pd.DataFrame:
    """Return the rounds and megabytes that each run took to the target; a run that never reaches it has no row."""
    values = rounds.get(metric.column("client"), pd.Series(float("nan"), rounds.index)).astype(float)
    at_target = rounds[values >= target if metric.larger_is_better else values <= target]
    first = at_target.sort_values("round").drop_duplicates("run")
    sent = first["wire/total_bytes"] / 1e6 if "wire/total_bytes" in first else pd.Series(dtype=float)
    return pd.DataFrame({"run": first["run"], REACHED[0]: first["round"] + 1.0, REACHED[1]: sent})


def pareto_front(table: pd.DataFrame, metric: Metric = ACCURACY) -> pd.Series:
    """Return which rows are on the Pareto front: no other is as accurate with fewer bytes, or more accurate with as many."""
    sent, score = table["up (MB)"] + table["down (MB)"], table[metric.head("client")]
    score = score if metric.larger_is_better else -score

    def beaten(bytes_sent: float, value: float) -> bool:
        return bool((((sent <= bytes_sent) & (score > value)) | ((sent < bytes_sent) & (score >= value))).any())

    return pd.Series([not beaten(*point) for point in zip(sent, score, strict=True)], index=table.index)


def methods_markdown(table: pd.DataFrame, target: float, metric: Metric = ACCURACY) -> str:
    """Return `by_method` as Markdown: a table for each density, with the methods on the Pareto front in bold."""
    reached = f"{100 * target:g} %" if metric.percent else f"{target:g}"
    sections = [_introduction(reached, metric)]
    for density, methods in table.groupby("density", sort=False):
        sections += [f"## Density {density:.10g}\n", _section(methods, reached, metric)]
    return "\n".join(sections)


def _introduction(reached: str, metric: Metric) -> str:
    accurate, better = ("accurate", "more accurate") if metric.percent else ("good", "better")
    return (
        f"Mean ± sample standard deviation over seeds, at the end of the run. *Client {metric.words}* is of the network with "
        "which each client begins its next round, on its own test examples, mean over all clients that may be drawn, and "
        f"*worst decile* the {metric.tail[1:]}th percentile over them; *after one local training* is of what it becomes then, "
        "and *unseen* of clients that are never drawn, where these were measured; *server's network* is of the merged one on "
        "the global test set; *alive* is of clients' own masks, where they "
        f"have them, mean over all clients. *To {reached}* is of client {metric.words}, where every seed reaches it. **Bold**: "
        f"no other method is as {accurate} with fewer bytes, or {better} with as many.\n"
    )


def _section(methods: pd.DataFrame, reached: str, metric: Metric) -> str:
    records, on_front = methods.to_dict("records"), pareto_front(methods, metric)
    shown = _shown(methods, metric)
    rows = [_texts(record, shown, unbeaten, metric) for record, unbeaten in zip(records, on_front, strict=True)]
    head = ["method", *shown, *COSTS_SHOWN, f"rounds to {reached}", f"MB to {reached}", "time (s)"]
    return markdown_lines(head, ["---"] + ["---:"] * (len(head) - 1), rows)


def _shown(methods: pd.DataFrame, metric: Metric) -> list[str]:
    """Return the columns of `judged` that a page shows, by their spreads: all but the validation."""
    spread = {column.removesuffix(" sd") for column in methods if column.endswith(" sd")}
    return [column for column in methods if column in spread and column not in (*COSTS, _validation(metric))]


def _texts(row: dict[str, Any], shown: list[str], unbeaten: bool, metric: Metric) -> list[str]:
    name = f"**{row[METHOD]}**" if unbeaten else str(row[METHOD])
    name += f" ({row['seeds']} seed{'s' * (row['seeds'] > 1)})" if row["seeds"] != 3 else ""
    spreads = [metric.spread(row[column], row[f"{column} sd"]) for column in shown]
    return [name, *spreads, *(_number(row[column]) for column in (*COSTS_SHOWN, *REACHED, "time (s)"))]


def _number(value: float) -> str:
    return "" if pd.isna(value) else three_digits(value).rstrip(".")


def target_of(runs: pd.DataFrame) -> float:
    """Return the target of a comparison: five points below the client accuracy of the best run, in whole percent, as a
    fraction. Of another metric it is a twentieth worse than the best run, in three digits."""
    metric = metric_of(runs)
    values = _column(runs, metric.column("client")).where(runs["status"] == "done")
    best = values.max() if metric.larger_is_better else values.min()
    if pd.isna(best):
        return 0.0
    if metric.percent:
        return max(int(100 * best) - 5, 1) / 100
    return float(f"{best + (-1 if metric.larger_is_better else 1) * 0.05 * abs(best):.3g}")
