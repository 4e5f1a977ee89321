"""A federation of a SuperLink and three SuperNodes on this machine: its tickets are those of executor=serial, bit for bit.

It takes minutes, most of which Flower spends on starting a process for each letter, and needs Flower: `make federation`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.composed import TINY

ASKED = os.environ.get("FEDPRUNE_FEDERATION") == "1"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not ASKED, reason="it takes minutes and needs Flower: make federation")]

BASE = (*TINY, "federated.clients=3", "federated.cohort=2", "eval_every=10", "federated.tuned=0", "partition.val=0.1")
METHODS = {
    "lth_fedavg": ("+experiment=lth_fedavg", "how_often.rate=0.5", "density=0.25", "rounds=1"),
    "lotteryfl": (
        *("+experiment=lotteryfl", "data=digits", "model=lenet_300_100", "partition=shards", "how_often.rate=0.5"),
        *("density=0.25", "rounds=4", "when.accuracy=0.0"),
    ),
}


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "WANDB_MODE": "offline", "PWD": str(folder)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as this may be, has it ignored
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def said(process: subprocess.Popen[bytes], status: int = 0) -> str:
    output = process.communicate(timeout=400)[0].decode()
    assert process.returncode == status, output
    return output


def results(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Return the tensors of a run's ticket and state, and its metrics without times."""
    (ticket,) = folder.glob("outputs/*/*/ticket.safetensors")
    tensors = load_file(ticket) | load_file(ticket.parent / "state" / "state.safetensors")
    del tensors["history/lines"]  # those of metrics.jsonl, times included
    rows = [json.loads(line) for line in (ticket.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    untimed = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
    return dict(sorted(tensors.items())), untimed


def of_federation(folder: Path) -> set[str]:
    """Command lines of the processes of the federation that was started in this folder, and of those that they started."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            inside = f"PWD={folder}\0".encode() in path.read_bytes()
            if inside and b"FLWR_HOME=" in path.read_bytes() and (path.parent / "cmdline").read_bytes():
                found.add(f"{path.parent.name} {(path.parent / 'cmdline').read_bytes()!r}")
        except OSError:
            continue
    return found


@pytest.mark.parametrize("method", [*METHODS])
def test_tickets_are_those_of_serial_bit_for_bit(method, tmp_path):
    overrides = (*METHODS[method][:1], *BASE, *METHODS[method][1:])
    (tmp_path / "serial").mkdir()
    (tmp_path / "flower").mkdir()
    said(started(tmp_path / "serial", "fedprune", *overrides))
    said(started(tmp_path / "flower", "fedprune.deployment", "here", "parties", *overrides))
    (serial, rows), (flower, rows_of_flower) = results(tmp_path / "serial"), results(tmp_path / "flower")
    assert rows and rows == rows_of_flower
    assert list(serial) == list(flower)
    assert [name for name in serial if not torch.equal(serial[name], flower[name])] == []
    assert any(name.startswith("personal") for name in serial) == (method == "lotteryfl")
    assert of_federation(tmp_path / "flower") == set()


def test_after_ctrl_c_no_process_is_left(tmp_path):
    run = started(tmp_path, "fedprune.deployment", "here", "parties", *BASE, "rounds=50")
    try:
        for _ in range(900):
            if of_federation(tmp_path) and any(
                b"Push replies" in log.read_bytes() for log in tmp_path.glob("parties/log/superlink.log")
            ):
                break
            time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        output = said(run, status=130)
    finally:
        run.kill()
    assert "interrupted; all processes of the federation have ended" in output
    assert of_federation(tmp_path) == set()
