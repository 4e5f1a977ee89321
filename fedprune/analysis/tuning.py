"""A sweep that tries settings for each of several methods: which setting of each is best on validation data.

A setting is whatever a method was given more than one value of besides the density and the seed, such as
`local.optimizer.lr=0.01,0.03,0.1,0.3`. Every method gets as many: no method at its best is compared with another at its worst.
"""

from __future__ import annotations

import pandas as pd

from fedprune.analysis.cells import varying
from fedprune.analysis.markdown import markdown_lines
from fedprune.analysis.metric import Metric, metric_of
from fedprune.run_id import METHOD


def settings(runs: pd.DataFrame) -> list[str]:
    """The columns that vary within a method; none where each was run as it is."""
    among = [column for column in varying(runs) if column not in (METHOD, "density")]
    return [column for column in among if bool((runs.groupby(METHOD)[column].nunique() > 1).any())]


def tried(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per density and method, a column per setting: what the task is judged by on validation data (accuracy in %), mean
    over the seeds that are done.

    Methods are in the order of the runs; a setting that no run of a method finished is NaN.
    """
    metric, labels = metric_of(runs), _labels(runs, settings(runs))
    values = runs[metric.column("val")].where(runs["status"] == "done").astype(float) * metric.factor
    table = values.groupby([runs["density"], runs[METHOD], labels], sort=False).mean().unstack(sort=False)
    return table[list(dict.fromkeys(labels))]


def tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of each density and method at its best setting (of equals the first); all of them where nothing varies."""
    by = settings(runs)
    if not by:
        return runs
    best = metric_of(runs).best(tried(runs).dropna(how="all"))
    keys = pd.MultiIndex.from_frame(runs[["density", METHOD]])
    return runs[_labels(runs, by).to_numpy() == best.reindex(keys).to_numpy()]


def tuning_markdown(runs: pd.DataFrame) -> str:
    """What was tried, for reading: a table for each density, the setting that `tuned` takes in bold."""
    metric = metric_of(runs)
    judged = metric.head("validation").capitalize()
    parts = [f"{judged}, mean over seeds, by {', '.join(settings(runs))}. **Bold**: the best, which is taken.\n"]
    for density, part in tried(runs).groupby(level="density", sort=False):
        best = metric.best(part.dropna(how="all"))
        rows = [
            [str(key[1]), *(_text(metric, value, best.get(key) == column) for column, value in values.items())]
            for key, values in part.iterrows()
        ]
        head = ["method", *part.columns]
        parts += [f"## Density {density:.10g}\n", markdown_lines(head, ["---"] + ["---:"] * (len(head) - 1), rows)]
    return "\n".join(parts)


def _labels(runs: pd.DataFrame, by: list[str]) -> pd.Series:
    """The setting of each run in a word."""
    return runs[by].astype(str).agg(", ".join, axis=1)


def _text(metric: Metric, value: float, best: bool) -> str:
    if pd.isna(value):
        return ""
    return f"**{metric.text(value)}**" if best else metric.text(value)
