"""Numbers as a person reads them."""

from __future__ import annotations


def amount(count: float, unit: str = "B") -> str:
    """Return a count with a decimal prefix: 1.23 MB."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(count) < 1000:
            return f"{count:.3g} {prefix}{unit}"
        count /= 1000
    return f"{count:.3g} P{unit}"
