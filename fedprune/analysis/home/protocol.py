"""The protocol of a run, as the rows that `home.theirs` says of a paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedprune.data.federate import label_histogram, load_partition
from fedprune.types import Json


def ours(described: Json, folder: Path) -> dict[str, str]:
    """Return the rows of a run's protocol, from its run.json and its partition; what a run without a plan lacks is left out."""
    config, axes = described["config"], described["axes"]
    federated, local = config["federated"], config["local"]
    shape = "x".join(map(str, described["shape"])) if "shape" in described else ""
    return {
        "data": f"{axes['data']}" + (f", {shape}, {described['examples']:,} training examples" if shape else ""),
        "network": f"{axes['model']}" + (f", {described['parameters']:,} parameters" if "parameters" in described else ""),
        "clients": f"{_clients(described, folder)}; {federated['cohort']} in a round",
        "participations": _participations(config),
        "local work": _local_work(local),
        "rate": _rate(local),
    }


def _participations(config: Json) -> str:
    rounds, federated = config["rounds"], config["federated"]
    each = rounds * federated["cohort"] / federated["clients"]
    return f"{each:.4g} ({rounds} rounds)"


def _local_work(local: Json) -> str:
    key = "epochs" if local["steps"] is None else "steps"
    number = local[key]
    return f"{number} {key.removesuffix('s') if number == 1 else key}, batches of {local['batch_size']}"


def _rate(local: Json) -> str:
    optimizer = local["optimizer"]
    named = {"momentum": "momentum", "weight_decay": "weight decay"}
    more = [f"{words} {optimizer[key]:g}" for key, words in named.items() if optimizer.get(key)]
    more += [f"times {local['lr_decay']:g} a round"] * (local["lr_decay"] != 1)
    name = str(optimizer.get("_target_", "")).rpartition(".")[2]
    return ", ".join([f"{name} {optimizer.get('lr', '')}".strip(), *more])


def _clients(described: Json, folder: Path) -> str:
    """Return how many clients there are, by which partition, and what they have."""
    option = {key: value for key, value in described["config"]["partition"].items() if not _plain(key, value)}
    settings = "".join(f", {key}={value}" for key, value in option.items())
    return f"{described['config']['federated']['clients']} ({described['axes']['partition']}{settings}){_held(folder)}"


def _plain(key: str, value: object) -> bool:
    return key.startswith("_") or key in ("min_examples", "val", "test") or isinstance(value, Mapping)


def _held(folder: Path) -> str:
    path = folder / "partition.safetensors"
    if not path.exists():
        return ""
    clients, labels = load_partition(path)
    if labels.is_floating_point() or labels.dim() > 1:
        return ""
    histogram = label_histogram(clients, labels, int(labels.max()) + 1)
    return f" with {(histogram > 0).sum(1).mean():.3g} classes and {histogram.sum(1).mean():.0f} examples in the mean"
