"""Run folders as a run leaves them, small enough to be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

AXES = {"criterion": "magnitude", "how_often": "iterative", "rewind": "init", "executor": "serial", "data": "digits"}


def row(round: int, events: int, accuracy: float | None = None, density: float = 1.0, **more: float) -> dict[str, float]:
    """A line of metrics.jsonl: 2 MB up and 1 MB down per round, 3 GFLOPs, half a second."""
    line: dict[str, float] = {"round": round, "prune/events": events, "density/weights": density, "density/layer/fc": density}
    line |= {"wire/up_bytes": 2_000_000, "wire/down_bytes": 1_000_000, "wire/total_bytes": 3_000_000 * (round + 1)}
    line |= {"flops/train": 3e9, "time/round_s": 0.5}
    if accuracy is not None:
        line |= {
            "test/accuracy": accuracy,
            "val/accuracy": accuracy,
            "client/accuracy_mean": accuracy,
            "client/accuracy_p10": 0.5,
        }
    return line | more


def write_run(folder: Path, rows=(), seed=0, overrides=(), failed=None, done=True, density=0.1, config=None, **axes) -> Path:
    folder.mkdir(parents=True)
    about = {"name": "lth_fedavg", "axes": AXES | axes, "seed": seed, "overrides": [*overrides, f"seed={seed}"]}
    about |= {"density": density, "plan": {"events": [], "rounds": 4}} | ({"config": config} if config else {})
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    if failed:
        (folder / "failed.json").write_text(json.dumps({"status": failed, "reason": f"it {failed}"}))
    elif done:
        (folder / "summary.json").write_text(json.dumps({"status": "done", "metrics": rows[-1] | {"time/total_s": 9.0}}))
    return folder


TICKET = [row(0, 0), row(1, 0, 0.9), row(2, 1, 0.7, 0.5), row(3, 1, 0.8, 0.5), row(4, 2, density=0.25), row(5, 2, 0.6, 0.25)]
