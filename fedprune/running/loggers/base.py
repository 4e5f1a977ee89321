"""A logger, an option of the group `logger`, and the two options that need no other package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from fedprune.capabilities import complete, declares
from fedprune.storage.history import read_metrics
from fedprune.types import Json

Metrics = Mapping[str, float]
About = Json
"""The description of a run: what run.json holds."""


class Logger(Protocol):
    """Told of every round, and of the end of the run."""

    def round(self, metrics: Metrics) -> None: ...

    def finish(self, summary: Metrics, files: Sequence[Path]) -> None: ...


class Silent:
    """Tells nobody."""

    def round(self, metrics: Metrics) -> None:
        pass

    def finish(self, summary: Metrics, files: Sequence[Path]) -> None:
        pass


class LoggerOption(ABC):
    """An option of the group `logger`; one that does not inherit from it has these defaults."""

    @property
    def place(self) -> str:
        """Return where it writes, in words, or "" for a place of its own. No two loggers of a run may write to one place."""
        return ""

    @abstractmethod
    def __call__(self, folder: Path, about: About) -> AbstractContextManager[Logger]:
        """Return the logger of a run, open as long as the context."""

    def report(self, folder: Path, sweep: str) -> None:  # noqa: B027  a default, and no gap
        """Tell of the tables and figures in the folder of a sweep of this name; by default nobody is told."""


def completed(option: object) -> LoggerOption:
    """Return an option of the group `logger` with the defaults of what it has not."""
    return complete(option, LoggerOption)  # type: ignore[type-abstract]  # only the defaults of the base are taken


@contextmanager
def none(folder: Path, about: About) -> Iterator[Logger]:
    """No logger: metrics.jsonl is enough."""
    yield Silent()


@declares(place="metrics.csv")
@contextmanager
def csv(folder: Path, about: About) -> Iterator[Logger]:
    """metrics.csv beside metrics.jsonl, a row per round, written when the run ends, however it ends."""
    try:
        yield Silent()
    finally:
        if (folder / "metrics.jsonl").exists():
            import pandas

            pandas.DataFrame(read_metrics(folder)).to_csv(folder / "metrics.csv", index=False)


def described(about: About) -> Json:
    """Return the values by which loggers sort and filter runs: options by group, the numbers that most differ, the id, what the
    run was made with, and the whole configuration."""
    numbers = {key: about[key] for key in ("seed", "density", "parameters", "prunable", "clients")}
    return {**about["axes"], **numbers, "id": about["id"], "made_with": about["made_with"], "config": about["config"]}
