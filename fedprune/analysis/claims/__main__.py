"""The command `python -m fedprune.analysis.claims PAGE [--runs FOLDER]`: judge the claims of a benchmark and fill its page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedprune.analysis.by_method import by_method, methods_markdown, target_of
from fedprune.analysis.claims.claim import load_claims
from fedprune.analysis.claims.judge import judge
from fedprune.analysis.claims.outcomes import outcomes
from fedprune.analysis.claims.page import claims_markdown, filled
from fedprune.analysis.metric import metric_of
from fedprune.analysis.read import load_rounds, load_runs
from fedprune.errors import FedpruneError


def main(words: Sequence[str] | None = None) -> None:
    """Fill the places `claims` and, if runs are named, `methods` of a page.

    Of docs/benchmark.md the claims are in docs/benchmark_claims.yaml, and the values by seed in docs/benchmark_runs.csv, which
    is written from the runs, if they are named.
    """
    parser = argparse.ArgumentParser(prog="python -m fedprune.analysis.claims", description="Judge published claims.")
    parser.add_argument("page", type=Path, help="the page to fill, such as docs/benchmark.md")
    parser.add_argument(
        "--runs", type=Path, help="a sweep's folder, such as outputs/benchmark (default: the csv beside the page)"
    )
    given = parser.parse_args(words)
    try:
        if given.runs:
            write_values(given.page, given.runs)
            fill_methods(given.page, given.runs)
        fill_claims(given.page)
    except FedpruneError as error:
        parser.exit(1, f"{error}\n")


def write_values(page: Path, runs: Path) -> None:
    """Write the values by seed of all runs in a folder beside the page."""
    outcomes(load_runs(runs)).to_csv(values_of(page), index=False, float_format="%.10g")


def fill_methods(page: Path, runs: Path) -> None:
    """Write the table of methods into the page."""
    frame = load_runs(runs)
    target = target_of(frame)
    table = by_method(frame, load_rounds(runs), target)
    page.write_text(
        filled(page.read_text(encoding="utf-8"), "methods", methods_markdown(table, target, metric_of(frame))), encoding="utf-8"
    )


def fill_claims(page: Path) -> None:
    """Write the verdicts on all claims into the page, from the values by seed."""
    page.write_text(filled(page.read_text(encoding="utf-8"), "claims", judged(page)), encoding="utf-8")


def judged(page: Path) -> str:
    """Return the text of the claims of a page. Raises FedpruneError without its values by seed."""
    path = values_of(page)
    if not path.exists():
        raise FedpruneError(f"{path} does not exist; name the folder of the runs that make it: --runs outputs/benchmark")
    values = pd.read_csv(path)
    claims = load_claims(page.with_name(f"{page.stem}_claims.yaml"))
    homes = sorted(found.stem for found in (page.parent / "home").glob("*.md"))
    return claims_markdown([each for claim in claims for each in judge(claim, values)], homes)


def values_of(page: Path) -> Path:
    """Return the path of the values by seed that belong to a page."""
    return page.with_name(f"{page.stem}_runs.csv")


if __name__ == "__main__":
    main()
