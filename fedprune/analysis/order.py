"""The order in which one would tell the options of an axis, for tables and figures."""

from __future__ import annotations

ORDER = (
    *("before_training", "during_training", "after_training", "once_accurate", "once_settled", "once_moving"),
    *("never", "one_shot", "iterative", "gradual", "stepwise", "dynamic", "progressive"),
    *("server", "one_client", "cohort", "all_clients", "shared", "voted", "voted_densities", "personal", "nested"),
    *("none", "learning_rate", "early", "init", "random_reinit"),
)


def rank(option: str) -> tuple[int, str]:
    """To sort by: options that have no place in the order come after those that have, by name."""
    return (ORDER.index(option) if option in ORDER else len(ORDER), option)
