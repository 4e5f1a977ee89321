"""A published claim as data: "this method beats that baseline in this metric", read from a yaml file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import yaml

from fedprune.analysis.claims.equal import QUANTITIES
from fedprune.analysis.claims.outcomes import METRICS
from fedprune.errors import FedpruneError


@dataclass(frozen=True)
class Measured:
    """A method of the benchmark, and the metric that it is measured by."""

    method: str
    metric: str

    def __str__(self) -> str:
        return self.method


@dataclass(frozen=True)
class Claim:
    """A claim and what decides it.

    method, baselines: who is said to beat whom, one comparison per baseline. controls: simpler methods; where one of them does
    as well over the baseline, the claim says little. margin: how far below the baseline still counts, in the metric's unit, 0
    for "beats". equal: what the method and a baseline need to have alike (QUANTITIES), or they are not comparable; empty where
    the claim is about unequal ones. densities: where the comparison is made; 1 alone for methods without a density. home: the
    page that tests the claim in the regime of its paper, docs/home/<home>.md; None where there is none. note: what the reader
    must know beside.
    """

    claim: str
    source: str
    method: Measured
    baselines: tuple[Measured, ...]
    controls: tuple[Measured, ...] = ()
    margin: float = 0.0
    equal: tuple[str, ...] = ()
    densities: tuple[float, ...] = (0.1, 0.05)
    home: str | None = None
    note: str = ""

    @property
    def measured(self) -> tuple[Measured, ...]:
        """Return everything that has to be measured for this claim."""
        return (self.method, *self.baselines, *self.controls)


KEYS = {field.name for field in fields(Claim)} | {"metric"}
REQUIRED = {field.name for field in fields(Claim) if field.default is MISSING} | {"metric", "equal"}


def load_claims(path: Path | str) -> list[Claim]:
    """Return the claims of a yaml file. Raises FedpruneError that names the claim and what to mend in it."""
    read = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(read, list) or not all(isinstance(entry, Mapping) for entry in read):
        raise FedpruneError(f"{path} is not a list of claims: begin each with `- claim: ...`")
    return [_claim(entry, f"{path}, claim '{entry.get('claim', number)}'") for number, entry in enumerate(read)]


def _claim(entry: Mapping[str, object], where: str) -> Claim:
    unknown, missing = sorted(map(str, entry.keys() - KEYS)), sorted(REQUIRED - entry.keys())
    if unknown:
        raise FedpruneError(f"{where}: no claim has the key {unknown[0]}; the keys are {', '.join(sorted(KEYS))}")
    if missing:
        raise FedpruneError(f"{where}: the key {missing[0]} is missing; add `{missing[0]}: ...`")
    metric = str(entry["metric"])
    baselines = tuple(_measured(each, metric, where) for each in _list(entry["baselines"]))
    if not baselines:
        raise FedpruneError(f"{where}: baselines is empty; name at least one method, as in `baselines: [fedavg]`")
    return Claim(
        claim=str(entry["claim"]),
        source=str(entry["source"]),
        method=_measured(entry["method"], metric, where),
        baselines=baselines,
        controls=tuple(_measured(each, metric, where) for each in _list(entry.get("controls", []))),
        margin=float(str(entry.get("margin", Claim.margin))),
        equal=_equal(entry["equal"], where),
        densities=tuple(float(str(density)) for density in _list(entry.get("densities", Claim.densities))),
        home=str(entry["home"]) if entry.get("home") else None,
        note=str(entry.get("note", "")),
    )


def _measured(entry: object, metric: str, where: str) -> Measured:
    """Return a method from its name, or from {method: its name, metric: its own metric}."""
    named = entry if isinstance(entry, Mapping) else {"method": entry}
    found = Measured(str(named.get("method")), str(named.get("metric", metric)))
    if found.metric not in METRICS:
        raise FedpruneError(f"{where}: {found.method} is measured by '{found.metric}'; choose one of {', '.join(METRICS)}")
    return found


def _equal(entry: object, where: str) -> tuple[str, ...]:
    named = tuple(str(each) for each in _list(entry))
    for name in named:
        if name not in QUANTITIES:
            raise FedpruneError(f"{where}: equal has '{name}'; choose from {', '.join(QUANTITIES)}, or write `equal: []`")
    return named


def _list(entry: object) -> list[object]:
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]
