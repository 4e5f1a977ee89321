"""The values that claims are judged by: a row per density, method and seed. As docs/benchmark_runs.csv they are published."""

from __future__ import annotations

import pandas as pd

from fedprune.analysis.by_method import WITHOUT, named
from fedprune.analysis.read import METHOD
from fedprune.analysis.tuning import tuned

WORDS = {
    "client/accuracy_mean": "",
    "client/accuracy_tuned_mean": " after local training",
    "test/accuracy": ", server's network",
}
"""The words after a method's name that say by which metric it is measured: of clients' networks on their own test data, the
same after one local training, the server's network on the global test set."""

METRICS = tuple(WORDS)
"""The metrics of claims."""

COSTS = ("total/up_bytes", "total/down_bytes", "total/flops", "time/total_s")


def outcomes(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per density, method and seed of the runs that are done: METRICS (fractions; NaN where a run has none) and
    COSTS.

    runs: from `analysis.load_runs`. Of a method that was tried with several settings only the best on validation data is there.
    """
    best = tuned(named(runs))
    values = best[best["status"] == "done"].reindex(columns=["density", METHOD, "seed", *METRICS, *COSTS])
    return values.sort_values(["density", "method", "seed"], ascending=[False, True, True]).reset_index(drop=True)


def by_seed(values: pd.DataFrame, method: str, metric: str, density: float) -> pd.Series:
    """Return {seed: metric} of a method at a density, from `outcomes`; of a method without a density, its only runs."""
    of_method = values[values["method"] == method]
    at = of_method[of_method["density"] == density]
    rows = at if len(at) else of_method[of_method["density"] == WITHOUT]
    return rows.set_index("seed")[metric].astype(float).dropna()
