"""Experiments of conf/ in a form that takes a second: few rounds, clients and steps, on data at hand."""

from __future__ import annotations

from pathlib import Path

from helpers import small_data, watch_wheel

REDUCED = (
    *("seed=0", "logger=none", "executor=serial", "rounds=2", "density=0.512", "eval_every=1"),
    *("federated.clients=3", "federated.cohort=2", "local.epochs=null", "local.steps=2", "local.batch_size=8"),
)

GATED = ("rounds=4", "density=0.8", "federated.cohort=3", "when.accuracy=0.0")
EASED = {
    "lotteryfl": GATED,
    "hermes": GATED,
    **dict.fromkeys(("subfedavg_un", "subfedavg_hy"), (*GATED, "local.steps=null", "local.epochs=2", "when.shift=0.0")),
    "feddip": ("density=0.4",),
    "prunefl": ("how_often.every=1", "how_often.alone=2"),  # 100 rounds alone on so few examples go far below the density
}
"""Of experiments whose events wait for what the reduced form does not come to, or go beyond it: what to set instead."""


def reduced(path: Path) -> list[str]:
    """Return the overrides that reduce an experiment."""
    eased = EASED.get(path.stem, ())
    keys = {override.partition("=")[0] for override in eased}
    return [*(override for override in REDUCED if override.partition("=")[0] not in keys), *eased]


def small_roots(folder: Path) -> Path:
    """Write the small data sets that `data_for` names; return their folder."""
    small_data.fashion_mnist(folder / "few", 400)
    small_data.fashion_mnist(folder / "many", 1300)
    small_data.shakespeare(folder / "plays")
    (folder / "series").mkdir()
    watch_wheel.write(folder / "series", watch_wheel.written(watch_wheel.recordings(range(1, 11), steps=640)))
    return folder


def data_for(roots: Path, path: Path, many: bool = False) -> tuple[str, ...]:
    """Return overrides for an experiment's data at hand: digits; those at 28x28, for networks that take larger images, 400 of
    them to train on, or as many as a hundred clients want; or text, or series."""
    experiment = path.read_text()
    if "/data: shakespeare" in experiment:
        return (f"data.root={roots / 'plays'}", "data.characters=12")
    if "/data: watch" in experiment:
        return (f"data.root={roots / 'series'}",)
    if "/data:" not in experiment:
        return ("data=digits",)
    few = ("partition.min_examples=3",) if many else ()
    return ("data=fashion_mnist", f"data.root={roots / ('many' if many else 'few')}", *few)
