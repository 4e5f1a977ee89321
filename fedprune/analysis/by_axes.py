"""The table of a sweep over the taxonomy: the task's metric by what and criterion (rows), when and how_often (columns), and
density (panels).

It is made only of a sweep that varies all four axes, and nothing else but the density: another varying key would be averaged
away.
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

REFUSED = "–"

INTRODUCTION = "{} at the end, mean ± sample standard deviation over seeds; – is a composition that means nothing.\n"


def option_rank(option: str) -> tuple[int, str]:
    """Return a key to sort options by: those of OPTION_ORDER first, in its order, then the others by name."""
    return (OPTION_ORDER.index(option) if option in OPTION_ORDER else len(OPTION_ORDER), option)


def over_taxonomy(runs: pd.DataFrame) -> bool:
    """Return whether what, criterion, when and how_often vary in these runs, and at most the density besides."""
    return {*ROWS, *COLUMNS} == {*varying(runs)} - {PANEL}


def by_axes(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell: density, what, criterion, when, how_often, seeds (done), test accuracy (%) or the task's metric,
    its sample standard deviation, refused.

    refused: every run of the cell was skipped because its composition is meaningless. A cell that has neither a result nor a
    refusal has failed or is not done. `runs`: from `analysis.load_runs`. Rows go from dense to sparse, then by `option_rank`.
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
    return table.sort_values([PANEL, *ROWS, *COLUMNS], key=_sort_key, kind="stable").reset_index(drop=True)


def grid(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a `column` of `by_axes` at one density as a grid of (what, criterion) x (when, how_often), in the table's
    order."""
    wide = table.set_index([*ROWS, *COLUMNS])[column].unstack(COLUMNS)
    return wide.reindex(
        index=pd.MultiIndex.from_frame(table[ROWS].drop_duplicates()),
        columns=pd.MultiIndex.from_frame(table[COLUMNS].drop_duplicates()),
    )


def axes_markdown(table: pd.DataFrame, metric: Metric = ACCURACY) -> str:
    """Return `by_axes` as Markdown: a table for each density, without the columns in which every cell is refused."""
    sections = [INTRODUCTION.format(metric.test[0].upper() + metric.test[1:])]
    for density, cells in table.groupby(PANEL, sort=False):
        sections += [f"## {density:.10g} of the units alive\n", _section(cells, metric)]
    return "\n".join(sections)


def _section(cells: pd.DataFrame, metric: Metric) -> str:
    measured = zip(*(cells[column] for column in (metric.test, metric.test_sd, "seeds", "refused")), strict=True)
    texts = grid(cells.assign(text=[_text(metric, *values) for values in measured]), "text").fillna("")
    shown = texts.loc[:, (texts != REFUSED).any()]
    head, rules = [*ROWS, *(" · ".join(column) for column in shown)], ["---"] * 2 + ["---:"] * shown.shape[1]
    return markdown_lines(head, rules, [[*which, *shown.loc[which]] for which in shown.index])


def _text(metric: Metric, mean: float, sd: float, seeds: int, refused: bool) -> str:
    if seeds == 0:
        return REFUSED if refused else "failed"
    return metric.spread(mean, sd)


def _sort_key(column: pd.Series) -> pd.Series:
    """Return ranks to sort by: dense first, options in the order of `option_rank`."""
    if column.name == PANEL:
        return -column
    ranks = {option: rank for rank, option in enumerate(sorted(column.unique(), key=option_rank))}
    return column.map(ranks)
