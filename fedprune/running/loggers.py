"""Loggers. metrics.jsonl is the truth of a run and always written (run.py); a logger is a view of it, and cannot end a run.

Every logger is (folder, about) -> a context manager that gives a Logger. `about` describes the run: what run.json holds. The
rounds of a run that goes on are in metrics.jsonl when its logger is made.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Protocol

from fedprune.errors import RunError
from fedprune.storage.checkpoint import write_text as write
from fedprune.types import Json

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

P = ParamSpec("P")

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


@contextmanager
def none(folder: Path, about: About) -> Iterator[Logger]:
    """No logger: metrics.jsonl is enough."""
    yield Silent()


@contextmanager
def csv(folder: Path, about: About) -> Iterator[Logger]:
    """metrics.csv beside metrics.jsonl, a row per round, written when the run ends, however it ends."""
    try:
        yield Silent()
    finally:
        if (folder / "metrics.jsonl").exists():
            import pandas

            pandas.DataFrame(read_metrics(folder)).to_csv(folder / "metrics.csv", index=False)


@contextmanager
def wandb(folder: Path, about: About, project: str = "fedprune", mode: str = "auto", timeout: float = 20) -> Iterator[Logger]:
    """Weights & Biases: one run per job, the axes as config columns, every metric over the round.

    mode: online, offline, disabled, or auto: what WANDB_MODE says, else online if somebody is logged in, else offline.
    A run that goes on is told again of the rounds that are done: the server replaces what it has of an id by what it is sent,
    also by `wandb sync` of an offline run. One that is begun anew with force=true has an id of its own.
    """
    run, status = _init(folder, about, project, _mode(mode), timeout), 1
    try:
        board = _Board(run, about)
        for row in read_metrics(folder):
            board.round(row)
        yield board
        status = 0
    finally:
        run.finish(exit_code=status)


class _Board:
    """A W&B run told of rounds; at the end, the final densities as a bar chart and the files as an artifact."""

    def __init__(self, run: Run, about: About):
        self._wandb, self._about = run, about

    def round(self, metrics: Metrics) -> None:
        self._wandb.log(dict(metrics))

    def finish(self, summary: Metrics, files: Sequence[Path]) -> None:
        """Log the bar chart, set the summary, and upload the files as an artifact."""
        import wandb as library

        layers = [[key.removeprefix(LAYER), value] for key, value in summary.items() if key.startswith(LAYER)]
        table = library.Table(data=layers, columns=["layer", "density"])
        self._wandb.log({"density/final": library.plot.bar(table, "layer", "density", title="Density by layer")})
        self._wandb.summary.update(dict(summary))
        artifact = library.Artifact(f"ticket-{self._wandb.id}", type="ticket", metadata={"axes": self._about["axes"]})
        for file in files:
            artifact.add_file(str(file))
        self._wandb.log_artifact(artifact)


LAYER = "density/layer/"


@contextmanager
def guarded(
    factory: Callable[P, AbstractContextManager[Logger]], name: str, *args: P.args, **kwargs: P.kwargs
) -> Iterator[Logger]:
    """Make a logger that cannot end a run: whatever goes wrong with it, from its making to its end, is a warning, once.

    name: what the user typed to have it. args, kwargs: those of the factory.
    """
    guard = _Guard(name)
    with ExitStack() as stack:
        guard.call(lambda: guard.use(stack.enter_context(factory(*args, **kwargs))))
        ends = stack.pop_all()
    try:
        yield guard
    except BaseException as error:
        guard.call(functools.partial(ends.__exit__, type(error), error, error.__traceback__), unless=error)
        raise
    guard.call(ends.close)


class _Guard:
    """Passes calls on until one fails; then says so once, and passes on no more."""

    def __init__(self, name: str):
        self._name, self._told = name, False
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
                log.warning("%s: %s; the run goes on without it (logger=none keeps it quiet)", self._name, error)
                self._told = True
            self._logger = Silent()


def _mode(mode: str) -> str:
    if mode != "auto":
        return mode
    import wandb as library

    return os.environ.get("WANDB_MODE") or ("online" if library.login(prompt=False) else "offline")


def _init(folder: Path, about: About, project: str, mode: str, timeout: float) -> Run:
    import wandb as library

    run = library.init(
        project=project,
        mode=mode,  # type: ignore[arg-type]  # wandb itself refuses a mode that it has not
        dir=str(folder),
        id=f"{about['id']}-{about['attempt']}" if about["attempt"] else about["id"],
        name=folder.name,
        group=about["sweep"],
        job_type=about["name"],
        tags=[tag[:64] for tag in (about["name"], about["axes"]["criterion"], about["axes"]["data"])],
        config={**about["axes"], **{key: about[key] for key in ("seed", "density", "parameters", "prunable", "clients")}}
        | {"config": about["config"]},
        settings=library.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, init_timeout=timeout),
    )
    try:
        run.define_metric("round")
        run.define_metric("*", step_metric="round")
    except BaseException:
        run.finish(exit_code=1)  # or the next job of the sweep would go on in it
        raise
    return run


def append(folder: Path, metrics: Metrics) -> None:
    """Write one more line of metrics.jsonl, at once."""
    path = folder / "metrics.jsonl"
    try:
        with open(path, "a") as file:
            file.write(json.dumps(dict(metrics)) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}. Make room, and the same command resumes") from error


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the rounds in metrics.jsonl, without a last line that was torn when the process died."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_until(folder: Path, round: int) -> None:
    """Drop the rounds from `round` on: a resumed run does them again."""
    rows = [row for row in read_metrics(folder) if row["round"] < round]
    write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
