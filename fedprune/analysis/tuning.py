"""The best setting of each method on validation data, of a sweep that tries several.

A setting is the values of those keys, besides density and seed, of which a method was given more than one, such as
`local.optimizer.lr=0.01,0.03,0.1,0.3`. So every method is compared at its best.
"""

from __future__ import annotations

import pandas as pd
from pandas.api.typing import SeriesGroupBy

from fedprune.analysis.cells import varying
from fedprune.analysis.markdown import markdown_lines
from fedprune.analysis.metric import Metric, metric_of
from fedprune.analysis.read import METHOD


def settings(runs: pd.DataFrame) -> list[str]:
    """Return the columns that vary within a method; none if each was run with one setting."""
    candidates = [column for column in varying(runs) if column not in (METHOD, "density")]
    return [column for column in candidates if bool((runs.groupby(METHOD)[column].nunique() > 1).any())]


def tried(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per density and method, a column per setting: the task's metric on validation data (accuracy in %), mean
    over the seeds that are done.

    Methods are in the order of the runs, settings in that of their numbers. A setting is NaN if no run of the method finished
    it, or if one failed: training that diverges for one seed is no setting to take.
    """
    metric = metric_of(runs)
    values = runs[metric.column("val")].where(runs["status"] == "done").astype(float) * metric.factor
    return _by_setting(values, runs).mean().unstack(sort=False)[_ordered(runs)].mask(_failed(runs))


def _failed(runs: pd.DataFrame) -> pd.DataFrame:
    """Return, in the form of `tried`, whether a run of the method failed at this setting."""
    failed = _by_setting(runs["status"] == "failed", runs).any().unstack(sort=False, fill_value=False)
    return failed[_ordered(runs)]


def _by_setting(values: pd.Series, runs: pd.DataFrame) -> SeriesGroupBy:
    """Return a value of each run, grouped by density, method and setting."""
    return values.groupby([runs["density"], runs[METHOD], _labels(runs, settings(runs))], sort=False)


def _ordered(runs: pd.DataFrame) -> list[str]:
    """Return the settings by their numbers; in the order of the runs, if one is no number."""
    by = settings(runs)
    numbers = len(runs[by].select_dtypes("number").columns) == len(by)
    return list(dict.fromkeys(_labels(runs.sort_values(by, kind="stable") if numbers else runs, by)))


def tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of each density and method at its best setting (of equals the first); all runs if there is one
    setting."""
    by = settings(runs)
    if not by:
        return runs
    best = metric_of(runs).best(tried(runs).dropna(how="all"))
    keys = pd.MultiIndex.from_frame(runs[["density", METHOD]])
    return runs[_labels(runs, by).to_numpy() == best.reindex(keys).to_numpy()]


def tuning_markdown(runs: pd.DataFrame) -> str:
    """Return `tried` as Markdown: a table for each density, with the setting that `tuned` takes in bold."""
    metric = metric_of(runs)
    judged = metric.head("validation").capitalize()
    sections = [f"{judged}, mean over seeds, by {', '.join(settings(runs))}. **Bold**: the best, which is taken.\n"]
    failed = _failed(runs)
    for density, methods in tried(runs).groupby(level="density", sort=False):
        sections += [f"## Density {density:.10g}\n", _section(methods, failed, metric)]
    return "\n".join(sections)


def _section(methods: pd.DataFrame, failed: pd.DataFrame, metric: Metric) -> str:
    best = metric.best(methods.dropna(how="all"))
    rows = []
    for key, values in methods.iterrows():
        texts = {setting: _text(metric, value, best.get(key) == setting) for setting, value in values.items()}
        rows.append([str(key[1]), *("failed" if failed.at[key, setting] else text for setting, text in texts.items())])
    head = ["method", *methods.columns]
    return markdown_lines(head, ["---"] + ["---:"] * (len(head) - 1), rows)


def _labels(runs: pd.DataFrame, by: list[str]) -> pd.Series:
    """Return the setting of each run as text."""
    return runs[by].astype(str).agg(", ".join, axis=1)


def _text(metric: Metric, value: float, best: bool) -> str:
    if pd.isna(value):
        return ""
    return f"**{metric.text(value)}**" if best else metric.text(value)
