"""A run that was done or begun, and a sweep of runs, as values to look into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from fedprune.config import CONF
from fedprune.errors import FedpruneError
from fedprune.running.earlier import failure
from fedprune.running.lock import holder_of
from fedprune.storage import digest

if TYPE_CHECKING:  # importing them takes seconds, and a result needs them only when it is asked
    import pandas as pd
    from torch import nn

    from fedprune.ticket.read import Ticket
    from fedprune.types import Json


@dataclass(frozen=True)
class Result:
    """A run by its folder. What it is asked for is read from the files there.

    about: run.json, which says what the run is.
    """

    folder: Path
    about: Json

    def __repr__(self) -> str:
        return f"<run {self.folder}: {self.status}>"

    @property
    def status(self) -> str:
        """Return done, failed, skipped (the options make no sense together), running (a process is at it) or unfinished."""
        if (self.folder / "summary.json").exists():
            return "done"
        others = "running" if holder_of(self.folder) else "unfinished"
        return str(failure(self.folder).get("status", others))

    @property
    def reason(self) -> str:
        """Return why the run has no result, or who is at it; "" if it has one."""
        if self.status == "running":
            return str(holder_of(self.folder) or "")
        return "" if self.status == "done" else str(failure(self.folder).get("reason", ""))

    @property
    def config(self) -> DictConfig:
        """Return the configuration of the run."""
        return OmegaConf.create(dict(self.about["config"]))

    @property
    def options(self) -> Mapping[str, str]:
        """Return the chosen option of each group."""
        return dict(self.about["axes"])

    @property
    def made_with(self) -> Json:
        """Return the versions, the git commits and the machine of the run, by name; {} for a run of before they were noted."""
        return dict(self.about.get("made_with", {}))

    @property
    def summary(self) -> Mapping[str, float]:
        """Return the metrics at the end of the run, by name. Raises FedpruneError if it has not ended."""
        if self.status != "done":
            raise FedpruneError(f"{self.folder} has no summary: the run is {self.status}. {self.reason}".rstrip())
        from fedprune.analysis.read import read_summary

        return dict(read_summary(self.folder / "summary.json")["metrics"])

    @property
    def rounds(self) -> pd.DataFrame:
        """Return a row for each round that was done, with its metrics; what was not evaluated in a round is NaN there."""
        from fedprune.analysis.read import load_rounds

        frame = load_rounds([self.folder])
        if "round" not in frame.columns:
            return frame.iloc[:0]
        return frame[["round", *(name for name in frame.columns if "/" in name)]]

    @property
    def ticket(self) -> Ticket:
        """Return the mask, and the weights to train it from. Raises FedpruneError if there is none."""
        from fedprune.ticket.read import load_ticket

        return load_ticket(self.folder)

    def net(self, config_dir: Path | str | None = None) -> nn.Module:
        """Return the trained network in evaluation mode, with dead weights at zero.

        config_dir: the folder of your own options, if the network is of one. Raises FedpruneError if there is no such network.
        """
        from fedprune.ticket.export import load_network

        own = [] if config_dir is None else [Path(config_dir)]
        return load_network(self.folder, [*own, CONF]).net


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, and its folder, which has table.csv, table.md and figures/."""

    folder: Path
    runs: tuple[Result, ...]

    def __repr__(self) -> str:
        return f"<sweep {self.folder}: {len(self.runs)} runs, {len(self.failed)} of them failed>"

    @property
    def table(self) -> pd.DataFrame:
        """Return a row per run: its axes and swept keys, and its metrics at the end."""
        from fedprune.analysis.read import load_runs

        return load_runs([run.folder for run in self.runs])

    @property
    def failed(self) -> tuple[Result, ...]:
        """Return the runs that ended by a fault."""
        return tuple(run for run in self.runs if run.status == "failed")


def load(folder: Path | str) -> Result:
    """Return a run by its folder. Raises FedpruneError if it is not that of a run."""
    path = Path(folder)
    try:
        return Result(path, digest.from_json((path / "run.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise FedpruneError(f"{path} is not the folder of a run: it has no run.json that can be read ({error})") from error
