"""A sweep over published methods, seen whole: what each comes to at each density, what it sends, and who is not beaten.

A method is an experiment that another one adds to itself, as conf/experiment/benchmark.yaml does (the override
`+experiment@_global_=NAME`); where several settings of each are tried, it is seen at the best of them on validation data
(tuning.py). All methods are compared by one number that means the same for all of them, whose ever the masks are: the accuracy
(or what else the task is judged by) of each client's network on that client's own test examples, mean over all clients.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from fedprune.analysis.markdown import markdown_lines
from fedprune.analysis.metric import ACCURACY, Metric, metric_of
from fedprune.analysis.tuning import tuned
from fedprune.run_id import METHOD

BY = ["density", METHOD]

COSTS = {
    "alive (%)": ("alive", 100),
    "up (MB)": ("total/up_bytes", 1e-6),
    "down (MB)": ("total/down_bytes", 1e-6),
    "training (GFLOPs)": ("total/flops", 1e-9),
    "time (s)": ("time/total_s", 1),
}
"""Columns of a comparison, whatever the task: (metric of a run, factor to the unit). `alive` is of the clients' own masks, if
they have them."""

REACHED = ("rounds to target", "MB to target")


def judged(metric: Metric) -> dict[str, tuple[str, float]]:
    """Return the columns of a comparison that tell how good a method is, the first of which methods are ranked by."""
    return {
        metric.head("client"): (metric.column("client"), metric.factor),
        f"worst decile ({metric.unit})": (metric.tail_column, metric.factor),
        f"server's network ({metric.unit})": (metric.column("test"), metric.factor),
        _validation(metric): (metric.column("val"), metric.factor),
    }


def _validation(metric: Metric) -> str:
    return f"validation ({metric.unit})"


def named(runs: pd.DataFrame) -> pd.DataFrame:
    """The same runs; a method is called by its file alone, not by the folder of experiments that the file is in."""
    return runs.assign(**{METHOD: runs[METHOD].str.replace(".*/", "", regex=True)})


def over_methods(runs: pd.DataFrame) -> bool:
    """Whether these runs are of several methods."""
    return METHOD in runs and bool(runs[METHOD].nunique() > 1)


def by_method(runs: pd.DataFrame, rounds: pd.DataFrame, target: float) -> pd.DataFrame:
    """A row per density and method: seeds (done), mean and sample standard deviation of `judged` and COSTS, and what the
    target took.

    target: a value of the mean client's metric (of accuracy, a fraction). The rounds and megabytes, up and down, to it are the
    means over the seeds that reach it; empty where not all of them do. Best first. `runs`, `rounds`: from `analysis.load_runs`,
    `load_rounds`.
    """
    done, metric = tuned(named(runs[runs["status"] == "done"])), metric_of(runs)
    measured = judged(metric) | COSTS
    reached = done[["run"]].merge(_reached(rounds, target, metric), on="run", how="left").set_index(done.index)
    rows = [_row(which, cell, reached.loc[cell.index], measured) for which, cell in done.groupby(BY, sort=False)]
    table = pd.DataFrame(rows, columns=None if rows else [*BY, "seeds", *measured, *REACHED])
    ascending = [False, not metric.larger_is_better]
    return table.sort_values(["density", metric.head("client")], ascending=ascending, kind="stable").reset_index(drop=True)


def _row(
    which: tuple, cell: pd.DataFrame, reached: pd.DataFrame, measured: Mapping[str, tuple[str, float]]
) -> dict[str, object]:
    row: dict[str, object] = dict(zip(BY, which, strict=True)) | {"seeds": len(cell)}
    cell = cell.assign(alive=_column(cell, "client/density_mean").fillna(_column(cell, "density/weights")))
    for column, (name, factor) in measured.items():
        values = _column(cell, name) * factor
        row |= {column: values.mean(), f"{column} sd": values.std(ddof=1)}
    all_do = len(reached) > 0 and reached[list(REACHED)].notna().all(axis=None)
    return row | {column: reached[column].mean() if all_do else float("nan") for column in REACHED}


def _column(cell: pd.DataFrame, metric: str) -> pd.Series:
    return cell[metric].astype(float) if metric in cell else pd.Series(float("nan"), cell.index)


def _reached(rounds: pd.DataFrame, target: float, metric: Metric) -> pd.DataFrame:
    """Of each run that reaches the target: after how many rounds, and how many megabytes."""
    values = rounds.get(metric.column("client"), pd.Series(float("nan"), rounds.index)).astype(float)
    there = rounds[values >= target if metric.larger_is_better else values <= target]
    first = there.sort_values("round").drop_duplicates("run")
    sent = first["wire/total_bytes"] / 1e6 if "wire/total_bytes" in first else pd.Series(dtype=float)
    return pd.DataFrame({"run": first["run"], REACHED[0]: first["round"] + 1.0, REACHED[1]: sent})


def pareto_front(table: pd.DataFrame, metric: Metric = ACCURACY) -> pd.Series:
    """Which rows no other one of the table beats: none is as accurate with fewer bytes, nor as cheap and more accurate."""
    sent, good = table["up (MB)"] + table["down (MB)"], table[metric.head("client")]
    good = good if metric.larger_is_better else -good
    beaten = [bool((((sent <= s) & (good > a)) | ((sent < s) & (good >= a))).any()) for s, a in zip(sent, good, strict=True)]
    return pd.Series([not one for one in beaten], index=table.index)


def methods_markdown(table: pd.DataFrame, target: float, metric: Metric = ACCURACY) -> str:
    """What `by_method` returns for reading: a table for each density. Rows of the front of accuracy against bytes are bold."""
    measured, to = judged(metric) | COSTS, f"{100 * target:g} %" if metric.percent else f"{target:g}"
    accurate = "accurate" if metric.percent else "good"
    parts = [
        f"Mean ± sample standard deviation over seeds, at the end of the run. *Client {metric.words}* is of each client's own "
        f"network on its own test examples, mean over all clients, and *worst decile* the {metric.tail[1:]}th percentile over "
        "them; *server's network* is of the merged one on the global test set; *alive* is of clients' own masks, where they "
        f"have them, mean over all clients. *To {to}* is of client {metric.words}, where every seed reaches it. **Bold**: no "
        f"other method is as {accurate} with fewer bytes, or {'more accurate' if metric.percent else 'better'} with as many.\n"
    ]
    for density, part in table.groupby("density", sort=False):
        records, unbeaten = part.to_dict("records"), pareto_front(part, metric)
        rows = [_texts(record, best, metric) for record, best in zip(records, unbeaten, strict=True)]
        shown = [column for column in measured if column not in (_validation(metric), "time (s)")]
        head = ["method", *shown, f"rounds to {to}", f"MB to {to}", "time (s)"]
        parts += [f"## Density {density:.10g}\n", markdown_lines(head, ["---"] + ["---:"] * (len(head) - 1), rows)]
    return "\n".join(parts)


def _texts(row: dict, unbeaten: bool, metric: Metric) -> list[str]:
    name = f"**{row[METHOD]}**" if unbeaten else str(row[METHOD])
    name += f" ({row['seeds']} seed{'s' * (row['seeds'] > 1)})" if row["seeds"] != 3 else ""
    columns = [column for column in judged(metric) if column != _validation(metric)]
    texts = [metric.spread(row[column], row[f"{column} sd"]) for column in columns]
    texts += [
        _number(row[column]) for column in ("alive (%)", "up (MB)", "down (MB)", "training (GFLOPs)", *REACHED, "time (s)")
    ]
    return [name, *texts]


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def target_of(runs: pd.DataFrame) -> float:
    """The target of a comparison: five points below the client accuracy of the best run, in whole percent, as a fraction; of
    another metric, a twentieth worse than the best run, in three digits."""
    metric = metric_of(runs)
    values = _column(runs, metric.column("client")).where(runs["status"] == "done")
    best = values.max() if metric.larger_is_better else values.min()
    if pd.isna(best):
        return 0.0
    if metric.percent:
        return max(int(100 * best) - 5, 1) / 100
    return float(f"{best + (-1 if metric.larger_is_better else 1) * 0.05 * abs(best):.3g}")
