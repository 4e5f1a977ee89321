"""Figures of a sweep. Each function returns a plain matplotlib `Figure`, which needs no screen; `save` writes it."""

from fedprune.analysis.figures.heat_maps import accuracy_taxonomy, label_histogram, layer_density
from fedprune.analysis.figures.line_charts import accuracy_bytes, accuracy_density, accuracy_rounds
from fedprune.analysis.figures.pareto import accuracy_bytes_methods
from fedprune.analysis.figures.style import SUFFIXES, save

__all__ = [
    "SUFFIXES",
    "accuracy_bytes",
    "accuracy_bytes_methods",
    "accuracy_density",
    "accuracy_rounds",
    "accuracy_taxonomy",
    "label_histogram",
    "layer_density",
    "save",
]
