"""A sweep over published methods, seen whole: what each comes to at each density, what it sends, and who is not beaten.

A method is an experiment that another one adds to itself, as conf/experiment/benchmark.yaml does (the override
`+experiment@_global_=NAME`); where several settings of each are tried, it is seen at the best of them on validation data
(tuning.py). All methods are compared by one number that means the same for all of them, whose ever the masks are: the accuracy
of each client's network on that client's own test examples, mean over all clients.
"""

from __future__ import annotations

import pandas as pd

from fedprune.analysis.tables import markdown_lines
from fedprune.analysis.tuning import tuned
from fedprune.folders import METHOD

BY = ["density", METHOD]

MEASURED = {
    "client accuracy (%)": ("client/accuracy_mean", 100),
    "worst decile (%)": ("client/accuracy_p10", 100),
    "server's network (%)": ("test/accuracy", 100),
    "validation (%)": ("val/accuracy", 100),
    "alive (%)": ("alive", 100),
    "up (MB)": ("total/up_bytes", 1e-6),
    "down (MB)": ("total/down_bytes", 1e-6),
    "training (GFLOPs)": ("total/flops", 1e-9),
    "time (s)": ("time/total_s", 1),
}
"""Columns of a comparison: (metric of a run, factor to the unit). `alive` is of the clients' own masks, if they have them."""

REACHED = ("rounds to target", "MB to target")


def named(runs: pd.DataFrame) -> pd.DataFrame:
    """The same runs; a method is called by its file alone, not by the folder of experiments that the file is in."""
    return runs.assign(**{METHOD: runs[METHOD].str.replace(".*/", "", regex=True)})


def over_methods(runs: pd.DataFrame) -> bool:
    """Whether these runs are of several methods."""
    return METHOD in runs and bool(runs[METHOD].nunique() > 1)


def by_method(runs: pd.DataFrame, rounds: pd.DataFrame, target: float) -> pd.DataFrame:
    """A row per density and method: seeds (done), mean and sample standard deviation of MEASURED, and what the target took.

    target: an accuracy of the mean client, as a fraction. The rounds and megabytes, up and down, to it are the means over the
    seeds that reach it; empty where not all of them do. Best first. `runs`, `rounds`: from `analysis.load_runs`, `load_rounds`.
    """
    done = tuned(named(runs[runs["status"] == "done"]))
    reached = done[["run"]].merge(_reached(rounds, target), on="run", how="left").set_index(done.index)
    rows = [_row(which, cell, reached.loc[cell.index]) for which, cell in done.groupby(BY, sort=False)]
    table = pd.DataFrame(rows, columns=None if rows else [*BY, "seeds", *MEASURED, *REACHED])
    return table.sort_values(["density", "client accuracy (%)"], ascending=[False, False], kind="stable").reset_index(drop=True)


def _row(which: tuple, cell: pd.DataFrame, reached: pd.DataFrame) -> dict[str, object]:
    row: dict[str, object] = dict(zip(BY, which, strict=True)) | {"seeds": len(cell)}
    cell = cell.assign(alive=_column(cell, "client/density_mean").fillna(_column(cell, "density/weights")))
    for column, (metric, factor) in MEASURED.items():
        values = _column(cell, metric) * factor
        row |= {column: values.mean(), f"{column} sd": values.std(ddof=1)}
    all_do = len(reached) > 0 and reached[list(REACHED)].notna().all(axis=None)
    return row | {column: reached[column].mean() if all_do else float("nan") for column in REACHED}


def _column(cell: pd.DataFrame, metric: str) -> pd.Series:
    return cell[metric].astype(float) if metric in cell else pd.Series(float("nan"), cell.index)


def _reached(rounds: pd.DataFrame, target: float) -> pd.DataFrame:
    """Of each run that reaches the target: after how many rounds, and how many megabytes."""
    there = rounds[rounds["client/accuracy_mean"] >= target] if "client/accuracy_mean" in rounds else rounds.iloc[:0]
    first = there.sort_values("round").drop_duplicates("run")
    sent = first["wire/total_bytes"] / 1e6 if "wire/total_bytes" in first else pd.Series(dtype=float)
    return pd.DataFrame({"run": first["run"], REACHED[0]: first["round"] + 1.0, REACHED[1]: sent})


def front(table: pd.DataFrame) -> pd.Series:
    """Which rows no other one of the table beats: none is as accurate with fewer bytes, nor as cheap and more accurate."""
    sent, accuracy = table["up (MB)"] + table["down (MB)"], table["client accuracy (%)"]
    beaten = [
        bool((((sent <= s) & (accuracy > a)) | ((sent < s) & (accuracy >= a))).any())
        for s, a in zip(sent, accuracy, strict=True)
    ]
    return pd.Series([not one for one in beaten], index=table.index)


def methods_markdown(table: pd.DataFrame, target: float) -> str:
    """What `by_method` returns for reading: a table for each density. Rows of the front of accuracy against bytes are bold."""
    parts = [
        "Mean ± sample standard deviation over seeds, at the end of the run. *Client accuracy* is of each client's own network "
        "on its own test examples, mean over all clients, and *worst decile* the 10th percentile over them; *server's network* "
        "is of the merged one on the global test set; *alive* is of clients' own masks, where they have them, mean over all "
        f"clients. *To {100 * target:g} %* is of client accuracy, where every seed reaches it. **Bold**: no other method is as "
        "accurate with fewer bytes, or more accurate with as many.\n"
    ]
    for density, part in table.groupby("density", sort=False):
        rows = [_texts(row, unbeaten) for row, unbeaten in zip(part.to_dict("records"), front(part), strict=True)]
        shown = [column for column in MEASURED if column not in ("validation (%)", "time (s)")]
        head = ["method", *shown, f"rounds to {100 * target:g} %", f"MB to {100 * target:g} %", "time (s)"]
        parts += [f"## Density {density:.10g}\n", markdown_lines(head, ["---"] + ["---:"] * (len(head) - 1), rows)]
    return "\n".join(parts)


def _texts(row: dict, unbeaten: bool) -> list[str]:
    name = f"**{row[METHOD]}**" if unbeaten else str(row[METHOD])
    name += f" ({row['seeds']} seed{'s' * (row['seeds'] > 1)})" if row["seeds"] != 3 else ""
    percents = [c for c in MEASURED if c.endswith("(%)") and c not in ("validation (%)", "alive (%)")]
    texts = [_spread(row, column) for column in percents]
    texts += [
        _number(row[column]) for column in ("alive (%)", "up (MB)", "down (MB)", "training (GFLOPs)", *REACHED, "time (s)")
    ]
    return [name, *texts]


def _spread(row: dict, column: str) -> str:
    mean, sd = row[column], row[f"{column} sd"]
    if pd.isna(mean):
        return ""
    return f"{mean:.1f}" + ("" if pd.isna(sd) else f" ± {sd:.1f}")


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def target_of(runs: pd.DataFrame) -> float:
    """The target of a comparison: five points below the client accuracy of the best run, in whole percent; as a fraction."""
    best = (
        runs["client/accuracy_mean"].where(runs["status"] == "done").max() if "client/accuracy_mean" in runs else float("nan")
    )
    return 0.0 if pd.isna(best) else max(int(100 * best) - 5, 1) / 100
