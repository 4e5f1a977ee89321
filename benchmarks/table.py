"""How the benchmarks print: Markdown tables that are aligned in a terminal too, and the machine that they ran on."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from fedprune.execution import available_cores


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table, the first `texts` columns flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width if place < texts else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return "\n".join(_line(cells, widths, texts) for cells in (header, rule, *rows))


def _line(cells: Sequence[str], widths: Sequence[int], texts: int) -> str:
    padded = [c.ljust(w) if place < texts else c.rjust(w) for place, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return f"| {' | '.join(padded)} |"


def spread(values: Sequence[float], digits: int) -> str:
    """Median and quartiles: `1.04 (1.02-1.07)`; of fewer than 2 values the median alone."""
    median = f"{statistics.median(values):.{digits}f}"
    if len(values) < 2:
        return median
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median} ({low:.{digits}f}-{high:.{digits}f})"


def machine() -> str:
    """The processor, how many cores may be used, and the versions of Python and torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    cores = f"{available_cores()} core{'s' * (available_cores() > 1)}"
    return f"{processor} ({platform.machine()}), {cores}, Python {platform.python_version()}, torch {torch.__version__}"
