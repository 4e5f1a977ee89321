"""Weights & Biases: one run per job, and one for the tables and figures of a sweep."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedprune.errors import ConfigError
from fedprune.running.loggers.base import About, Logger, LoggerOption, Metrics, described
from fedprune.storage.history import read_metrics
from fedprune.types import Json

if TYPE_CHECKING:
    from wandb import Run

MODES = ("auto", "online", "offline", "disabled")

LAYER = "density/layer/"

LONGEST_TAG = 64
"""The most characters of a tag that W&B takes."""


@dataclass(frozen=True)
class Wandb(LoggerOption):
    """Weights & Biases: one run per job, the axes as config columns, every metric over the round.

    entity: a user or team; None is that of whoever is logged in. group, job_type: None is the sweep, and the experiment. tags:
    beside the experiment, criterion and data set. mode: online, offline, disabled, or auto: what WANDB_MODE says, else online
    if somebody is logged in, else offline. timeout: seconds to wait for the server.

    A run that goes on has the same id, and is told again of the rounds that are done: the server replaces what it has of an id
    by what it is sent, also by `wandb sync` of an offline run. One that is begun anew with force=true has an id of its own.
    Raises ConfigError for a name that W&B has not.
    """

    project: str = "fedprune"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: Sequence[str] = ()
    mode: str = "auto"
    timeout: float = 20

    def __post_init__(self) -> None:
        problems = [
            *_wrong("entity", self.entity, r"[^\w.-]+", "a user or team, of letters, digits, - and _"),
            *_wrong("project", self.project, r"[/\\#?%:]+", "a name without the characters / \\ # ? % :"),
            *([] if self.mode in MODES else [f"logger.mode={self.mode}: type one of {', '.join(MODES)}"]),
            *([] if self.timeout > 0 else [f"logger.timeout={self.timeout}: type a number of seconds above 0"]),
        ]
        if problems:
            raise ConfigError(problems)

    @property
    def place(self) -> str:
        """Return that a process has one W&B run at a time."""
        return "the W&B run of this process"

    @contextmanager
    def __call__(self, folder: Path, about: About) -> Iterator[Logger]:
        """Open the W&B run of a run."""
        run, status = self._run_of(folder, about), 1
        try:
            board = _Board(run, about)
            for row in read_metrics(folder):
                board.round(row)
            yield board
            status = 0
        finally:
            run.finish(exit_code=status)

    def report(self, folder: Path, sweep: str) -> None:
        """Make one W&B run, of the job type `sweep` in the group of the sweep, with its tables and figures. It has the same id
        every time, so that it is replaced on the server."""
        import pandas
        import wandb as library

        place = {"id": f"sweep-{_digest(sweep)}", "name": sweep, "group": self.group or sweep, "job_type": "sweep"}
        run = self._init(folder, place, self.tags)
        with run:
            tables = {path.stem: pandas.read_csv(path).astype(object) for path in sorted(folder.glob("*.csv"))}
            images = {path.stem: str(path.absolute()) for path in sorted(folder.glob("figures/*.png"))}
            of_tables = {name: library.Table(dataframe=table, allow_mixed_types=True) for name, table in tables.items()}
            run.log(
                {f"tables/{name}": table for name, table in of_tables.items()}
                | {f"figures/{name}": library.Image(image) for name, image in images.items()}
            )

    def _run_of(self, folder: Path, about: About) -> Run:
        place = {
            "id": f"{about['id']}-{about['attempt']}" if about["attempt"] else about["id"],
            "name": folder.name,
            "group": self.group or about["sweep"],
            "job_type": self.job_type or about["name"],
        }
        tags = [about["name"], about["axes"]["criterion"], about["axes"]["data"], *_several(self.tags)]
        run = self._init(folder, place, tags, described(about), about["made_with"]["commit"])
        try:
            run.define_metric("round")
            run.define_metric("*", step_metric="round")
        except BaseException:
            run.finish(exit_code=1)  # or the next job of the sweep would go on in it
            raise
        return run

    def _init(
        self,
        folder: Path,
        place: Mapping[str, str],
        tags: Iterable[str],
        config: Json | None = None,
        commit: str | None = None,
    ) -> Run:
        """Open a W&B run with its files in a folder. place: its id, name, group and job type."""
        import wandb as library

        return library.init(
            project=self.project,
            entity=self.entity,
            mode=_mode(self.mode),  # type: ignore[arg-type]  # wandb itself refuses what WANDB_MODE may say
            dir=str(folder.absolute()),  # wandb works in a process that may be in another folder
            id=place["id"],
            name=place["name"],
            group=place["group"],
            job_type=place["job_type"],
            tags=shortened(tags),
            config=config,
            settings=library.Settings(
                silent=True, console="off", x_disable_stats=True, disable_git=True, git_commit=commit, init_timeout=self.timeout
            ),
        )


def wandb_project(text: str) -> Wandb:
    """Return W&B with the project of a text, which may have its entity in front: `entity/project`. Raises ConfigError."""
    entity, _, project = text.rpartition("/")
    return Wandb(project=project, entity=entity or None)


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


def shortened(tags: Iterable[str]) -> list[str]:
    """Return each tag once, cut to the length that W&B takes. One that is cut ends in a digest, so that two stay two."""
    texts = [str(tag).strip() for tag in _several(tags)]
    cut = [text if len(text) <= LONGEST_TAG else f"{text[: LONGEST_TAG - 9]}~{_digest(text)}" for text in texts]
    return list(dict.fromkeys(text for text in cut if text))


def _several(tags: Iterable[str]) -> Iterable[str]:
    """Return the tags; a text is one tag."""
    return (tags,) if isinstance(tags, str) else tags


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _wrong(key: str, value: str | None, refused: str, description: str) -> list[str]:
    """Return what is wrong with a name, and one like it that is right."""
    if value is None or (value and not re.search(refused, value)):
        return []
    like = re.sub(refused, "-", value).strip("-")
    return [f"logger.{key}={value!r} is not {description}; type logger.{key}={like or 'fedprune'}"]


def _mode(mode: str) -> str:
    if mode != "auto":
        return mode
    import wandb as library

    return os.environ.get("WANDB_MODE") or ("online" if library.login(prompt=False) else "offline")
