"""Loggers of Lightning, by their `_target_`: TensorBoard, MLflow, Comet, CSV, or one of your own.

They see a run as they see one of a Trainer: hyper-parameters first, then metrics, whose step is the round, and the end with
its status. A logger that writes files has a folder of the run's own, lightning/<name>, unless its `save_dir` says another. That
folder is written anew when the run goes on, so that it has each round once; a logger of a server then has a new run there.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fedprune.config.instantiate import make
from fedprune.errors import ConfigError
from fedprune.running.loggers.base import About, Logger, LoggerOption, Metrics, described
from fedprune.running.loggers.several import Several
from fedprune.storage.history import read_metrics

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger as Lightning

PACKAGES = {
    "TensorBoardLogger": (("tensorboard", "tensorboardX"), "'fedprune[tensorboard]'"),
    "MLFlowLogger": (("mlflow",), "'fedprune[mlflow]'"),
    "CometLogger": (("comet_ml",), "'fedprune[comet]'"),
    "NeptuneLogger": (("neptune",), "neptune"),
    "WandbLogger": (("wandb",), "wandb"),
}
"""The modules of which a logger of Lightning needs one, and what to type behind `pip install`."""


def lightning_logger(logger: str, **options: object) -> LoggerOption:
    """Return one logger of Lightning. logger: its class. options: its arguments; null leaves one out.

    Raises ConfigError if there is no such class, if it needs a package that is not installed, or has no such argument.
    """
    return _adapted(_short(logger), {"_target_": logger, **options})


def lightning_loggers(loggers: Mapping[str, Mapping[str, object]] | Sequence[Mapping[str, object]]) -> LoggerOption:
    """Return several loggers of Lightning, each a node with a `_target_`, in a list or by names.

    Raises ConfigError as `lightning_logger`, and if two of them write to one folder.
    """
    if not loggers or isinstance(loggers, str):
        raise ConfigError([f"logger.loggers={loggers}: name a logger, as in logger=lightning"])
    named = loggers if isinstance(loggers, Mapping) else _names(loggers)
    return Several(**{name: _adapted(name, node) for name, node in named.items()})


def _names(nodes: Sequence[Mapping[str, object]]) -> dict[str, Mapping[str, object]]:
    """Return the nodes of a list by the names of their classes, with a number where a name comes again."""
    named: dict[str, Mapping[str, object]] = {}
    for node in nodes:
        name = _short(str(node.get("_target_", ""))) if isinstance(node, Mapping) else ""
        same = sum(each.partition("-")[0] == name for each in named)
        named[f"{name}-{same + 1}" if same else name] = node
    return named


def _short(target: str) -> str:
    """Return the name of a class in short: `tensorboard` of TensorBoardLogger."""
    name = target.rpartition(".")[2]
    return (name.removesuffix("Logger") or name).lower()


def _adapted(name: str, node: object) -> LoggerOption:
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        example = "'logger.loggers=[{_target_: pytorch_lightning.loggers.CSVLogger}]'"
        raise ConfigError([f"a logger of Lightning is a node with a _target_, and {node} is none: type {example}"])
    target = str(node["_target_"])
    modules, package = PACKAGES.get(target.rpartition(".")[2], ((), ""))
    if modules and not any(find_spec(module) for module in modules):
        raise ConfigError(
            [f"logger={name}: {target} needs the package {package}: type pip install {package}, or choose logger=csv"]
        )
    given = {key: value for key, value in node.items() if value is not None and not key.startswith("_")}
    factory = make({"_target_": target, **given, "_partial_": True})
    return Adapted(name, target, factory, given)


@dataclass(frozen=True)
class Adapted(LoggerOption):
    """A logger of Lightning as a logger of a run. name: of its folder. given: the arguments that its node has."""

    name: str
    target: str
    factory: Callable[..., Lightning]
    given: Mapping[str, object]

    @property
    def place(self) -> str:
        """Return where it writes, if that is not a folder of the run's own."""
        if "save_dir" not in self.given:
            return ""
        parts = [str(self.given[key]) for key in ("save_dir", "name", "version", "sub_dir") if self.given.get(key)]
        return f"{'/'.join(parts)} as {self.target.rpartition('.')[2]}"

    @contextmanager
    def __call__(self, folder: Path, about: About) -> Iterator[Logger]:
        """Make the logger, and tell it of the run and of the rounds that are done; in the end, of its status."""
        own = folder / "lightning" / self.name
        shutil.rmtree(own, ignore_errors=True)
        logger, status = self.factory(**self._offered(own, folder.name)), "failed"
        try:
            logger.log_hyperparams(described(about))
            board = _Board(logger, about)
            for row in read_metrics(folder):
                board.round(row)
            yield board
            status = "success"
        finally:
            logger.save()
            logger.finalize(status)

    def _offered(self, own: Path, run: str) -> dict[str, object]:
        """Return the arguments that the logger takes and its node leaves out: its folder, and the name of the run."""
        takes = inspect.signature(self.factory).parameters
        offered = {"save_dir": str(own), "run_name": run}
        return {key: value for key, value in offered.items() if key in takes and key not in self.given}


class _Board:
    """A logger of Lightning that is told of rounds, and in the end of the metrics that none of them had."""

    def __init__(self, logger: Lightning, about: About):
        self._logger, self._about = logger, about
        self._told: set[str] = set()

    def round(self, metrics: Metrics) -> None:
        self._told |= set(metrics)
        self._logger.log_metrics({key: float(value) for key, value in metrics.items()}, step=int(metrics["round"]))

    def finish(self, summary: Metrics, files: Sequence[Path]) -> None:
        """Log what is new in the summary. A logger that compares runs by one metric, as TensorBoard does, gets the task's, on
        validation data."""
        step = int(summary["round"])
        new = {key: float(value) for key, value in summary.items() if key not in self._told}
        if new:
            self._logger.log_metrics(new, step=step)
        takes = inspect.signature(self._logger.log_hyperparams).parameters
        judged = summary.get(f"val/{self._about['metric']['name']}")
        if {"metrics", "step"} <= set(takes) and judged is not None:
            values: dict[str, object] = {"metrics": {"hp_metric": judged}, "step": step}
            self._logger.log_hyperparams(described(self._about), **values)
