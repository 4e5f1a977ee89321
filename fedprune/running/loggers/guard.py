"""A logger that cannot end a run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import ParamSpec

from fedprune.running.loggers.base import Logger, Metrics, Silent

log = logging.getLogger(__name__)

P = ParamSpec("P")


@contextmanager
def guarded(
    factory: Callable[P, AbstractContextManager[Logger]], name: str, *args: P.args, **kwargs: P.kwargs
) -> Iterator[Logger]:
    """Make a logger that cannot end a run: whatever goes wrong with it, from its making to its end, is a warning, once.

    name: what the user typed to have it. args, kwargs: those of the factory.
    """
    guard = Guard(name)
    with ExitStack() as stack:
        guard.call(lambda: guard.use(stack.enter_context(factory(*args, **kwargs))))
        ends = stack.pop_all()
    try:
        yield guard
    except BaseException as error:
        guard.call(functools.partial(ends.__exit__, type(error), error, error.__traceback__), unless=error)
        raise
    guard.call(ends.close)


class Guard:
    """Passes calls on until one fails; then says so once, and passes on no more. without: what happens then."""

    def __init__(self, name: str, without: str = "the run goes on without it (logger=none keeps it quiet)"):
        self._name, self._without, self._told = name, without, False
        self._logger: Logger = Silent()

    def use(self, logger: Logger) -> None:
        self._logger = logger

    def round(self, metrics: Metrics) -> None:
        self.call(lambda: self._logger.round(metrics))

    def finish(self, summary: Metrics, files: Sequence[Path]) -> None:
        self.call(lambda: self._logger.finish(summary, files))

    def call(self, function: Callable[[], object], unless: BaseException | None = None) -> None:
        """Call it; a failure is told, unless it is the one that is known."""
        try:
            function()
        except Exception as error:
            if error is not unless and not self._told:
                text = " ".join(str(error).split()) or type(error).__name__
                log.warning("%s: %s; %s", self._name, text, self._without)
                self._told = True
            self._logger = Silent()
