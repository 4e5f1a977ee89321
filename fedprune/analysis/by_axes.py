"""A sweep over the taxonomy, seen whole: the task's metric by what and criterion (rows), when and how_often (columns),
and density.

Only a sweep that varies all four axes, and nothing besides but the density, is seen like this: what else varied would be
averaged away.
"""

from __future__ import annotations

import pandas as pd

from fedprune.analysis.cells import varying
from fedprune.analysis.markdown import markdown_lines
from fedprune.analysis.metric import ACCURACY, Metric, metric_of

ROWS, COLUMNS, PANEL = ["what", "criterion"], ["when", "how_often"], "density"

OPTION_ORDER = (
    *("before_training", "during_training", "after_training", "once_accurate", "once_settled", "once_moving"),
    *("never", "one_shot", "iterative", "gradual", "stepwise", "dynamic", "progressive"),
    *("server", "one_client", "cohort", "all_clients", "shared", "voted", "voted_densities", "personal", "nested"),
    *("none", "learning_rate", "early", "init", "random_reinit"),
)
"""The options of the axes in the order in which tables and figures list them."""

INTRODUCTION = "{} at the end, mean ± sample standard deviation over seeds; – is a composition that means nothing.\n"


def option_rank(option: str) -> tuple[int, str]:
    """Return a key to sort options by: those of OPTION_ORDER first, in its order, then the others by name."""
    return (OPTION_ORDER.index(option) if option in OPTION_ORDER else len(OPTION_ORDER), option)


def over_taxonomy(runs: pd.DataFrame) -> bool:
    """Whether what, criterion, when and how_often vary in these runs, and at most the density besides."""
    return {*ROWS, *COLUMNS} == {*varying(runs)} - {PANEL}


def by_axes(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per cell: density, what, criterion, when, how_often, seeds (done), test accuracy (%) or the task's metric, its sd,
    refused.

    refused: every run of the cell was skipped because the composition means nothing. A cell that has neither a result nor a
    refusal has failed or is not done. `runs`: from `analysis.load_runs`. Rows are in the order in which one would tell them.
    """
    cells = runs.groupby([PANEL, *ROWS, *COLUMNS], sort=False)
    metric = metric_of(runs)
    test = metric.column("test")
    values = runs[test].where(runs["status"] == "done") if test in runs else pd.Series(dtype=float)
    values = values.astype(float).mul(metric.factor).reindex(runs.index)
    done = values.groupby([runs[c] for c in (PANEL, *ROWS, *COLUMNS)], sort=False)
    table = pd.DataFrame(
        {
            "seeds": done.count(),
            metric.test: done.mean(),
            metric.test_sd: done.std(ddof=1),
            "refused": cells["status"].agg(lambda statuses: bool((statuses == "skipped").all())),
        }
    ).reset_index()
    return table.sort_values([PANEL, *ROWS, *COLUMNS], key=_told, kind="stable").reset_index(drop=True)


def grid(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One density's `column` of `by_axes`, as a grid of (what, criterion) x (when, how_often), in their order."""
    wide = table.set_index([*ROWS, *COLUMNS])[column].unstack(COLUMNS)
    return wide.reindex(
        index=pd.MultiIndex.from_frame(table[ROWS].drop_duplicates()),
        columns=pd.MultiIndex.from_frame(table[COLUMNS].drop_duplicates()),
    )


def axes_markdown(table: pd.DataFrame, metric: Metric = ACCURACY) -> str:
    """What `by_axes` returns for reading: a table for each density; columns in which all is refused are left out."""
    parts = [INTRODUCTION.format(metric.test[0].upper() + metric.test[1:])]
    for density, part in table.groupby(PANEL, sort=False):
        texts = grid(
            part.assign(text=[_text(metric, *row) for row in zip(*_measured(part, metric), strict=True)]), "text"
        ).fillna("")
        kept = texts.loc[:, (texts != REFUSED).any()]
        rows = [[*which, *kept.loc[which]] for which in kept.index]
        head, rules = [*ROWS, *(" · ".join(column) for column in kept)], ["---"] * 2 + ["---:"] * kept.shape[1]
        parts += [f"## {density:.10g} of the units alive\n", markdown_lines(head, rules, rows)]
    return "\n".join(parts)


REFUSED = "–"


def _measured(table: pd.DataFrame, metric: Metric) -> list[pd.Series]:
    return [table[column] for column in (metric.test, metric.test_sd, "seeds", "refused")]


def _text(metric: Metric, mean: float, sd: float, seeds: int, refused: bool) -> str:
    if seeds == 0:
        return REFUSED if refused else "failed"
    return metric.spread(mean, sd)


def _told(column: pd.Series) -> pd.Series:
    """Ranks to sort by: dense first, options in the order of `option_rank`."""
    if column.name == PANEL:
        return -column
    places = {option: place for place, option in enumerate(sorted(column.unique(), key=option_rank))}
    return column.map(places)
