"""The command `python -m fedprune.dashboard`: print or save the workspace, or push it to W&B."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedprune.dashboard.workspace import push, spec, workspace
from fedprune.errors import FedpruneError


def main() -> None:
    """Run `python -m fedprune.dashboard [--entity E] [--project P] [--metric M] [--save FILE]`."""
    parser = argparse.ArgumentParser(
        prog="python -m fedprune.dashboard",
        description="A workspace of W&B: accuracy against density, bytes and rounds; layers, clients, and the profile.",
        epilog="With --entity it is pushed to W&B; without, or with --save, nothing is sent.",
    )
    parser.add_argument("--entity", help="the user or team that the project is of; pushes the workspace")
    parser.add_argument("--project", default="fedprune", help="the project, as logger.project names it (default: fedprune)")
    parser.add_argument("--metric", default="accuracy", help="the task's metric, as test/METRIC names it (default: accuracy)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the workspace as JSON instead")
    given = parser.parse_args()
    try:
        made = workspace(given.entity or "", given.project, given.metric)
        if given.save is not None:
            given.save.write_text(spec(made), encoding="utf-8")
        print(given.save or (push(made) if given.entity else spec(made)), end="" if not (given.save or given.entity) else "\n")
    except OSError as error:
        parser.exit(1, f"--save {given.save}: {error.strerror}\n")
    except FedpruneError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
