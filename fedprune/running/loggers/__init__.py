"""Loggers. metrics.jsonl is the truth of a run and always written (run.py); a logger is a view of it, and cannot end a run.

Every logger is (folder, about) -> a context manager that gives a Logger. `about` describes the run: what run.json holds. The
rounds of a run that goes on are in metrics.jsonl when its logger is made, and it is told of them again. Wrong values are
refused when the option is made; whatever goes wrong later is a warning.
"""

from fedprune.running.loggers.base import About, Logger, LoggerOption, Metrics, completed, csv, none
from fedprune.running.loggers.from_lightning import lightning_logger, lightning_loggers
from fedprune.running.loggers.guard import guarded
from fedprune.running.loggers.metrics_file import append
from fedprune.running.loggers.several import Several, report
from fedprune.running.loggers.weights_and_biases import Wandb, wandb_project
from fedprune.storage.history import read_metrics

__all__ = [
    "About",
    "Logger",
    "LoggerOption",
    "Metrics",
    "Several",
    "Wandb",
    "append",
    "completed",
    "csv",
    "guarded",
    "lightning_logger",
    "lightning_loggers",
    "none",
    "read_metrics",
    "report",
    "wandb_project",
]
