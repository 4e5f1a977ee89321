"""Run folders become tidy DataFrames (read), tables (cells, by_level, by_axes, by_method) and figures (figures).

    python -m fedprune.analysis outputs/lth_fedavg

The rest of the package imports this only at the end of a sweep, because loading pandas and matplotlib takes long.
"""

from fedprune.analysis import figures
from fedprune.analysis.by_axes import by_axes
from fedprune.analysis.by_level import by_level, early_stopping, gains
from fedprune.analysis.cells import levels, table, varying
from fedprune.analysis.read import find_runs, load_rounds, load_runs
from fedprune.analysis.report import draw, report
from fedprune.analysis.terminal import show

__all__ = [
    "by_axes",
    "by_level",
    "draw",
    "early_stopping",
    "figures",
    "find_runs",
    "gains",
    "levels",
    "load_rounds",
    "load_runs",
    "report",
    "show",
    "table",
    "varying",
]
