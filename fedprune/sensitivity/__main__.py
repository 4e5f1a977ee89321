"""`python -m fedprune.sensitivity RUN...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf
from rich.console import Console

from fedprune.analysis.figures.style import save
from fedprune.analysis.markdown import markdown
from fedprune.analysis.read import find_runs
from fedprune.config import CONF
from fedprune.config.instantiate import make
from fedprune.errors import ConfigError, FedpruneError
from fedprune.pruning.criterion import Criterion
from fedprune.sensitivity.delete import curves, trained
from fedprune.sensitivity.draw import figure, table

DENSITIES = tuple(number / 20 for number in range(19, 0, -1))


def main() -> None:
    """`RUN... [--criterion A,B] [--density D,D] [--by-layer] [--into DIR] [--config-dir DIR]`: measure, write, print."""
    parser = argparse.ArgumentParser(
        prog="python -m fedprune.sensitivity",
        description="The loss of trained networks as more and more of them is deleted, without retraining.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs, or of sweeps; best of how_often=never")
    parser.add_argument("--criterion", default="magnitude,random", help="one or more, as in conf/criterion")
    parser.add_argument("--density", help="fractions of what lives to keep (default: 0.95, 0.9, ... 0.05)")
    parser.add_argument("--by-layer", action="store_true", help="each layer by itself, the others as they are")
    parser.add_argument("--into", type=Path, default=Path("."), help="the folder for sensitivity.csv, .md, .png and .svg")
    parser.add_argument("--config-dir", type=Path, help="where criterion/*.yaml of your own are")
    given = parser.parse_args()
    try:
        report(given)
    except FedpruneError as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted; nothing was written\n")


def report(given: argparse.Namespace) -> None:
    """Measure what was asked for, and write it down."""
    folders = [folder for folder in (given.config_dir, CONF) if folder]
    criteria = {name: criterion(name, folders) for name in given.criterion.split(",")}
    kept, console = densities(given.density), Console(soft_wrap=True, highlight=False)
    rows = pd.DataFrame(
        row
        for where in given.runs
        for folder in find_runs(where)
        for row in curves(trained(folder), criteria, kept, given.by_layer)
    )
    given.into.mkdir(parents=True, exist_ok=True)
    files = [given.into / "sensitivity.csv", given.into / "sensitivity.md"]
    rows.to_csv(files[0], index=False)
    files[1].write_text(markdown(table(rows)))
    console.print(files[1].read_text())
    for path in [*files, *save(figure(rows), given.into / "sensitivity")]:
        console.print(path)


def criterion(name: str, folders: Sequence[Path]) -> Criterion:
    """The option of that name. Raises ConfigError, with the known ones, if there is none."""
    files = {file.stem: file for folder in reversed(folders) for file in sorted((folder / "criterion").glob("*.yaml"))}
    if name not in files:
        raise ConfigError([f"--criterion {name}: choose from {', '.join(sorted(files))}"])
    return make(OmegaConf.load(files[name]))


def densities(text: str | None) -> tuple[float, ...]:
    """Fractions from dense to sparse. Raises ConfigError on what is none."""
    try:
        found = DENSITIES if text is None else tuple(sorted(map(float, text.split(",")), reverse=True))
    except ValueError:
        found = ()
    if not found or not all(0 < density < 1 for density in found):
        raise ConfigError([f"--density {text}: fractions between 0 and 1, such as 0.9,0.5,0.1"])
    return found


if __name__ == "__main__":
    main()
