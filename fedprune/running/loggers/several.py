"""Several loggers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedprune.errors import ConfigError
from fedprune.running.loggers.base import About, Logger, LoggerOption, Metrics, completed
from fedprune.running.loggers.guard import Guard, guarded


class Several(LoggerOption):
    """Loggers by name. One that fails leaves the others as they are.

    Raises ConfigError if there is none, if one is no option of the group `logger`, and if two write to one place.
    """

    def __init__(self, **loggers: object):
        if not loggers:
            raise ConfigError(["logger=several names no logger: type logger=[wandb,csv]"])
        for name, logger in loggers.items():
            if not callable(logger):
                raise ConfigError([_no_option(name, logger)])
        self._loggers: dict[str, LoggerOption] = {name: completed(one) for name, one in loggers.items()}
        _check_places(self._loggers)

    @contextmanager
    def __call__(self, folder: Path, about: About) -> Iterator[Logger]:
        """Open all loggers, each guarded for itself."""
        with ExitStack() as stack:
            opened = [guarded(logger, f"logger={name}", folder, about) for name, logger in self._loggers.items()]
            yield _All([stack.enter_context(logger) for logger in opened])

    def report(self, folder: Path, sweep: str) -> None:
        """Tell every logger of the sweep's end, each guarded for itself."""
        for name, logger in self._loggers.items():
            report(logger, f"logger={name}", folder, sweep)


def report(logger: LoggerOption, name: str, folder: Path, sweep: str) -> None:
    """Tell a logger of the end of a sweep; if it fails, that is a warning. name: what the user typed to have it."""
    guard = Guard(name, f"tables and figures are in {folder} all the same (logger=none keeps it quiet)")
    guard.call(lambda: logger.report(folder, sweep))


class _All:
    """Tells each of its loggers."""

    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = loggers

    def round(self, metrics: Metrics) -> None:
        for logger in self._loggers:
            logger.round(metrics)

    def finish(self, summary: Metrics, files: Sequence[Path]) -> None:
        for logger in self._loggers:
            logger.finish(summary, files)


def _no_option(name: str, value: object) -> str:
    if isinstance(value, (Mapping, str, int, float, bool, list)) or value is None:
        return f"logger.{name}={value} is no logger: type logger=[wandb,csv] for options of the group"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return f"logger.{name} is a {kind}: type logger=lightning 'logger.loggers=[{{_target_: {kind}}}]' for loggers of Lightning"


def _check_places(loggers: Mapping[str, LoggerOption]) -> None:
    """Raise ConfigError if two loggers write to one place."""
    taken: dict[str, str] = {}
    for name, logger in loggers.items():
        if logger.place and logger.place in taken:
            both = f"the loggers {taken[logger.place]} and {name} both write to {logger.place}"
            raise ConfigError([f"{both}: leave one out, or give it another"])
        taken[logger.place] = name
