"""The panels as a workspace of W&B, by wandb-workspaces: built and checked without a network, pushed with one."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from fedprune.dashboard.panels import ROUND, Panel, Points, sections
from fedprune.errors import ConfigError, RunError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import LinePlot, ScatterPlot
    from wandb_workspaces.workspaces import Workspace

MISSING = "the dashboard needs the package wandb-workspaces: type pip install 'fedprune[dashboard]'"

LOGIN = "nobody is logged in to W&B: type `wandb login` first, or --save FILE to write the workspace to a file"


def workspace(entity: str, project: str, metric: str = "accuracy", name: str = "fedprune") -> Workspace:
    """Return the workspace, checked by the types of wandb-workspaces; nothing is sent.

    metric: of the task. Raises ConfigError without the package.
    """
    try:
        import wandb_workspaces.workspaces as library
    except ImportError as error:
        raise ConfigError([MISSING]) from error
    columns = library.SectionLayoutSettings(columns=3, rows=2)
    built = [
        library.Section(
            name=title, panels=[_panel(each) for each in shown], is_open=title != "profile", layout_settings=columns
        )
        for title, shown in sections(metric).items()
    ]
    settings = library.WorkspaceSettings(x_axis=ROUND)
    return library.Workspace(entity=entity, project=project, name=name, sections=built, settings=settings)


def spec(made: Workspace) -> str:
    """Return the workspace as the JSON that W&B keeps."""
    written = made._to_model().spec.model_dump(
        by_alias=True, exclude_none=True
    )  # it has no public way to write without sending
    return json.dumps(written, indent=2, default=str) + "\n"


def push(made: Workspace) -> str:
    """Send the workspace to W&B, and return its address. Raises RunError if nobody is logged in, or the server refuses it."""
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        raise RunError(f"WANDB_MODE={os.environ['WANDB_MODE']}: unset it to push, or type --save FILE")
    if not wandb.login(prompt=False):
        raise RunError(LOGIN)
    try:
        made.save()
    except Exception as error:  # of requests, GraphQL or wandb itself
        text = " ".join(str(error).split())
        raise RunError(f"W&B did not take the workspace for {made.entity}/{made.project}: {text}") from error
    return str(made.url)


def _panel(panel: Panel) -> LinePlot | ScatterPlot:
    import wandb_workspaces.reports.v2.interface as library

    if isinstance(panel, Points):
        x, y = library.SummaryMetric(panel.against), library.SummaryMetric(panel.metric)
        return library.ScatterPlot(title=panel.title, x=x, y=y)
    return library.LinePlot(
        title=panel.title,
        x=panel.over,
        y=list(panel.metrics),
        metric_regex=panel.regex or None,
        plot_type="stacked-area" if panel.stacked else "line",
    )
