"""The panels of the workspace, as plain values: which metric stands over which. Every name is one of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ROUND = "round"

PHASES = ("sampling", "broadcast", "decode", "train", "encode", "merge", "prune", "evaluate", "other")
"""The parts of a round that `profile=true` measures."""


@dataclass(frozen=True)
class Curves:
    """Metrics over the rounds or another metric, one line per run. regex: of more metrics, such as those of all layers.
    stacked: as areas that add up."""

    title: str
    metrics: tuple[str, ...] = ()
    over: str = ROUND
    regex: str = ""
    stacked: bool = False


@dataclass(frozen=True)
class Points:
    """One metric against another at the end of the runs, a point per run."""

    title: str
    metric: str
    against: str


Panel = Curves | Points


def sections(metric: str) -> dict[str, tuple[Panel, ...]]:
    """Return the panels by section. metric: of the task, such as accuracy."""
    return {
        metric: (
            Curves(f"Test {metric} over rounds", (f"test/{metric}",)),
            Curves(f"Test {metric} over bytes sent", (f"test/{metric}",), over="wire/total_bytes"),
            Curves(f"Test {metric} over density", (f"test/{metric}",), over="density/weights"),
            Points(f"Test {metric} against density, at the end", f"test/{metric}", "density/weights"),
            Points(f"Test {metric} against bytes sent, at the end", f"test/{metric}", "wire/total_bytes"),
            Curves("Training loss", ("train/loss",)),
        ),
        "clients": (
            Curves("Clients before training: mean and bad tail", _spread(f"client/{metric}")),
            Curves("Clients after one local training: mean and bad tail", _spread(f"client/{metric}_tuned")),
            Points("Mean of clients against density, at the end", f"client/{metric}_mean", "density/weights"),
            Curves("Clients without an answer", ("clients/dropped", "clients/silent", "clients/late")),
        ),
        "density": (
            Curves("Density", ("density/weights", "density/units", "density/params")),
            Curves("Density by layer", regex="^density/layer/.*"),
            Curves("Prune events", ("prune/events",)),
        ),
        "cost": (
            Curves("Bytes sent in a round", ("wire/up_bytes", "wire/down_bytes")),
            Curves("Bytes sent so far", ("wire/total_bytes",)),
            Curves("Operations of training in a round", ("flops/train",)),
        ),
        "profile": (
            Curves("Parts of a round (profile=true)", tuple(f"profile/{phase}_s" for phase in PHASES), stacked=True),
            Curves("Seconds of a round", ("time/round_s", "time/train_s")),
        ),
    }


def metrics_of(panel: Panel) -> Iterator[str]:
    """Yield every metric that a panel names."""
    if isinstance(panel, Points):
        yield from (panel.metric, panel.against)
        return
    yield from (*panel.metrics, panel.over)


def _spread(name: str) -> tuple[str, ...]:
    return (f"{name}_mean", f"{name}_p10", f"{name}_min")
