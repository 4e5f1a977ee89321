"""Runs that are killed at random and gone on with: each comes to the result of the undisturbed run, bit for bit.

    MINUTES=5 python tests/campaign/kills.py           as many cases as five minutes allow
    CASES=100 SEED=7 python tests/campaign/kills.py
    CASE=12 SEED=7 python tests/campaign/kills.py      one case again, with what was done to it

A case is an experiment of conf/experiment in its reduced form, done in one of MODES. It is killed one to eight times and gone
on with by the same command: the process, all of its group or one of its workers, by SIGKILL, SIGINT (Ctrl-C) or SIGTERM (a
scheduler), at the n-th time it opens, renames or removes one of its files, shortly after that, or at a moment by the clock. In
the end nothing disturbs it. Case i of a seed is the same on every machine, but moments by the clock meet what they meet.

A case is `identical`, or: `different` (a result is not that of the undisturbed run), `gap` (rounds are missing or doubled),
`failed` (the command does not go on), `traceback`, `hang`, `survivor` (a process outlives the run) or `leftover` (in /dev/shm).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from campaign import table
from fedprune import analysis
from fedprune.api import launch as launch  # what a run imports is here before it is forked
from fedprune.config import CONF
from helpers import forked, quick_hydra
from helpers.reduced import data_for, reduced, small_roots

PART = "kills"

PATIENCE = 120.0
"""Seconds for what takes one or two on a quiet machine; more is a hang."""

GRACE = 15.0
"""Seconds until nobody of a killed run may be left."""

GRIDS = ("benchmark", "benchmark_without_density")
"""Experiments that only add others."""

EXPERIMENTS = sorted(path for path in (CONF / "experiment").glob("*.yaml") if path.stem not in GRIDS)

MODES = {"serial": 50, "processes": 25, "sweep": 10, "two terminals": 10, "joblib": 5}
"""The ways of doing a run, and out of a hundred cases how many are done so."""

BAD = ("different", "gap", "failed", "traceback", "hang", "survivor", "leftover")

LINES = ("history/lines",)
"""Tensors of a state that hold text: the lines of metrics.jsonl, with their times."""

OPERATIONS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir")
"""What Python calls audited events of files."""


class Fault(Exception):
    """A case that is not identical: the outcome, and what was seen."""


@dataclass(frozen=True)
class Blow:
    """A kill. at: the number of the file operation, or seconds. whom: process, group or worker."""

    how: str
    at: float
    number: signal.Signals
    whom: str

    def __str__(self) -> str:
        return f"{self.number.name} to the {self.whom} {self.how} {self.at:.4g}"


# --- processes -------------------------------------------------------------------------------------------------------------


class Running:
    """A command in a session of its own, forked from here, where all is imported; joblib wants a new interpreter."""

    def __init__(self, folder: Path, words: list[str], blow: Blow | None = None, new: bool = False, said: str = "std"):
        self.said = (folder / f"{said}out.txt", folder / f"{said}err.txt")
        for path in self.said:
            path.unlink(missing_ok=True)
        self.operations = mmap.mmap(-1, 8)
        self.status: int | None = None
        self.seen: set[int] = set()
        self._new = new
        self.pid = self._interpreter(folder, words) if new else self._fork(folder, words, blow)

    def _interpreter(self, folder: Path, words: list[str]) -> int:
        with open(self.said[0], "w") as out, open(self.said[1], "w") as err:
            command = [sys.executable, "-m", "fedprune", *words]
            self._process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, start_new_session=True)
        return self._process.pid

    def _fork(self, folder: Path, words: list[str], blow: Blow | None) -> int:
        pid = os.fork()
        if pid == 0:
            sys.addaudithook(_counting(self.operations, os.getpid(), blow))
            forked.perform(folder, self.said, tuple(words), dict(os.environ))
        return pid

    def ended(self) -> bool:
        """Return whether it has ended; take note of its status."""
        if self.status is None and self._new:
            self.status = self._process.poll()
        elif self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def wait(self) -> int:
        """Return its status. Raises Fault if it takes too long; it is killed then."""
        if not until(self.ended, PATIENCE):
            self.end()
            raise Fault("hang", f"no end after {PATIENCE:.0f} s: {self.words()}")
        assert self.status is not None
        return self.status

    def members(self) -> list[int]:
        """Return the living processes of its session, without itself."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state not in "ZX" and int(path.parent.name) != self.pid:
                    found.append(int(path.parent.name))
        self.seen.update(found)
        return sorted(found)

    def end(self) -> None:
        """Kill whoever is left."""
        for pid in [self.pid] * (self.status is None) + self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.status is None:
            until(self.ended, PATIENCE)

    def words(self) -> str:
        """Return the end of what it has printed."""
        return " ".join(path.read_text(errors="replace")[-600:] for path in self.said if path.exists())

    def check(self) -> None:
        """Raise Fault if somebody survives the run that has ended, it left something in memory, or printed a traceback."""
        if not until(lambda: not self.members(), GRACE):
            left = self.members()
            self.end()
            raise Fault("survivor", f"processes {left}")
        ours = {self.pid, *self.seen}
        left = [
            name for name in os.listdir("/dev/shm") if ours & {int(each) for each in re.findall(r"(?<=[-_])\d+(?=[-_])", name)}
        ]
        if left and not until(lambda: not any(Path("/dev/shm", name).exists() for name in left), GRACE):
            for name in left:
                path = Path("/dev/shm", name)
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            raise Fault("leftover", f"/dev/shm: {left[:5]}")
        if "Traceback (most recent call last)" in "".join(path.read_text(errors="replace") for path in self.said):
            raise Fault("traceback", self.words())


def _owners(name: str) -> set[int]:
    """Return the numbers of processes in a name of /dev/shm, such as sem.loky-123-abc."""
    return {int(number) for number in re.findall(r"(?<=[-_])\d+(?=[-_])", name)}


def _counting(counter: mmap.mmap, pid: int, blow: Blow | None) -> Callable[[str, tuple[object, ...]], None]:
    """Return a hook that counts a process's file operations in its outputs, and deals the blow at the n-th of them."""
    done = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        if event not in OPERATIONS or os.getpid() != pid or "outputs" not in str(arguments[0]):
            return
        done += 1
        counter[:8] = done.to_bytes(8, "little")
        if blow is None or done != int(blow.at) or blow.how == "after seconds":
            return
        if blow.how == "at operation":
            (os.killpg if blow.whom == "group" else os.kill)(pid, blow.number)
        else:  # nobody handles this alarm: the system ends the process in the middle of what it is doing
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, blow.at % 1 / 100))

    return hook


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition; return whether it came true."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return condition()
        time.sleep(0.003)
    return True


# --- results ---------------------------------------------------------------------------------------------------------------


def results(outputs: Path) -> dict[int, dict[str, object]]:
    """Return what the runs of a folder came to, by seed, in a form that compares bit for bit, without times.

    Raises Fault if a run has no result, or rounds are missing.
    """
    found = {}
    for run in sorted(path.parent for path in outputs.glob("*/*/run.json")):
        about = json.loads((run / "run.json").read_text())
        if not (run / "summary.json").exists():
            raise Fault("failed", f"{run.name} has no summary.json: {sorted(path.name for path in run.iterdir())}")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        if [row["round"] for row in rows] != list(range(about["plan"]["rounds"])):
            raise Fault("gap", f"rounds {[row['round'] for row in rows]} of {about['plan']['rounds']}")
        found[about["seed"]] = {
            "metrics": [_timeless(row) for row in rows],
            "summary": _timeless(json.loads((run / "summary.json").read_text())["metrics"]),
            "ticket": _tensors(run / "ticket.safetensors"),
            "state": _tensors(run / "state" / "state.safetensors"),
            "partition": _tensors(run / "partition.safetensors"),
            "plan": (run / "plan.txt").read_text(),
        }
    return found


def _timeless(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def _tensors(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    texts = {name: _lines(tensors.pop(name)) for name in LINES if name in tensors}
    return texts | {name: f"{t.dtype}{t.shape}{hashlib.sha256(t.tobytes()).hexdigest()}" for name, t in tensors.items()}


def _lines(tensor: np.ndarray) -> str:
    """Return lines of metrics.jsonl that a tensor holds, without times."""
    return json.dumps([_timeless(json.loads(line)) for line in tensor.tobytes().decode().splitlines()])


def compare(found: dict[int, dict[str, object]], expected: dict[int, dict[str, object]]) -> None:
    """Raise Fault for the first difference."""
    if found.keys() != expected.keys():
        raise Fault("different", f"seeds {sorted(found)} instead of {sorted(expected)}")
    for seed, parts in expected.items():
        for name, value in parts.items():
            if json.dumps(found[seed][name]) != json.dumps(value):
                raise Fault("different", f"{name} of seed {seed}: {_first(found[seed][name], value)}")


def _first(found: object, expected: object) -> str:
    """Return the first thing in which two values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *found]:
            if found.get(key) != expected.get(key):
                return f"{key}: {_first(found.get(key), expected.get(key))}"
    if isinstance(found, list) and isinstance(expected, list):
        for place, (one, other) in enumerate(zip(found, expected, strict=False)):
            if one != other:
                return f"[{place}] {_first(one, other)}"
    return f"{str(found)[:200]} instead of {str(expected)[:200]}"


# --- cases -----------------------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """An undisturbed run: its result, and how long it took. operations: how many of its files' were counted."""

    result: dict[str, object]
    seconds: float
    operations: int


@dataclass
class Campaign:
    """The folder of a campaign, its data, the undisturbed runs so far, and what it has counted."""

    folder: Path
    roots: Path
    references: dict[tuple[str, int], Reference] = field(default_factory=dict)
    hit: Counter[str] = field(default_factory=Counter)

    def words(self, path: Path, seeds: str, *more: str) -> list[str]:
        keys = {override.partition("=")[0] for override in more}
        plain = [each for each in reduced(path) if each.partition("=")[0] not in {"seed", *keys}]
        plain = ["rounds=5" if each == "rounds=2" else each for each in plain]
        return [f"+experiment={path.stem}", *data_for(self.roots, path), *plain, f"seed={seeds}", *more]

    def reference(self, path: Path, seed: int) -> Reference:
        """Return the undisturbed run in one process; it is done when it is first asked for."""
        if (path.stem, seed) not in self.references:
            folder = self.folder / "reference"
            folder.mkdir()
            started = time.monotonic()
            run = Running(folder, self.words(path, str(seed), "checkpoint_every=0"))  # all that it may do with files
            if run.wait() != 0:
                raise RuntimeError(f"{path.stem} does not run undisturbed: {run.words()}")
            seconds = time.monotonic() - started
            operations = int.from_bytes(run.operations[:8], "little")
            self.references[path.stem, seed] = Reference(results(folder / "outputs")[seed], seconds, operations)
            shutil.rmtree(folder)
        return self.references[path.stem, seed]

    def case(self, seed: int, number: int) -> tuple[str, str]:
        """Return the outcome of a case, and what was done."""
        rng = random.Random(f"{seed}/{number}")
        path = EXPERIMENTS[(number + 17 * seed) % len(EXPERIMENTS)]
        mode = rng.choices(list(MODES), list(MODES.values()))[0]
        told = [f"{path.stem}, {mode}"]
        folder = self.folder / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            self._done(mode, path, rng, folder, told)
        except Fault as fault:
            outcome, why = fault.args
            return outcome, f"{'; '.join(told)}: {why}"
        return "identical", "; ".join(told)

    def _done(self, mode: str, path: Path, rng: random.Random, folder: Path, told: list[str]) -> None:
        """Do a case. Raises Fault."""
        seeds = {"sweep": [0, 1], "joblib": [0, 1], "two terminals": [0, 1, 2]}.get(mode, [0])
        expected = {seed: self.reference(path, seed) for seed in seeds}
        more = [f"checkpoint_every={rng.choice(['0', '0', '0.05', '10'])}"]
        if mode == "processes":
            more += ["executor=processes", "executor.workers=2"]
        if mode == "joblib":
            more += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
        if len(seeds) > 1:
            more += ["hydra.sweeper.params=null", "-m"]
        words = self.words(path, ",".join(map(str, seeds)), *more)
        told[0] += f", {more[0]}"
        for _ in range(rng.choice([1, 2, 4, 6, 8]) if mode != "joblib" else 1):
            blow = self._blow(mode, rng, [*expected.values()])
            told.append(str(blow))
            if not self._strike(mode, blow, folder, words, rng):
                break  # it has ended, and so there is nothing left to disturb
        last = Running(folder, words, new=mode == "joblib")
        status = last.wait()
        last.check()
        if status != 0:
            raise Fault("failed", f"status {status}: {last.words()}")
        compare(results(folder / "outputs"), {seed: reference.result for seed, reference in expected.items()})

    def _blow(self, mode: str, rng: random.Random, references: list[Reference]) -> Blow:
        seconds, operations = sum(each.seconds for each in references), sum(each.operations for each in references)
        kill, ask = signal.SIGKILL, rng.choice([signal.SIGINT, signal.SIGTERM])
        number = rng.choice([kill, kill, ask])
        if mode == "joblib":
            return Blow("after seconds", rng.uniform(0, 6), number, rng.choice(["process", "group"]))
        whom = rng.choice(["process", "process", "group", *["worker"] * 2 * (mode == "processes")])
        how = "after seconds" if whom == "worker" else rng.choice(["at operation", "shortly after operation", "after seconds"])
        if how == "after seconds":
            return Blow(how, rng.uniform(0, 1.2 * seconds), kill if whom == "worker" else number, whom)
        if how == "shortly after operation":
            return Blow(how, rng.randint(1, operations) + rng.random(), signal.SIGALRM, "process")
        return Blow(how, rng.randint(1, operations), number, whom)

    def _strike(self, mode: str, blow: Blow, folder: Path, words: list[str], rng: random.Random) -> bool:
        """Begin a run, or go on with it, and deal one blow; return whether it hit. Raises Fault if somebody is left."""
        run = Running(folder, words, blow, new=mode == "joblib")
        other = Running(folder, words, said="other") if mode == "two terminals" else None
        if mode == "joblib":  # workers take seconds to begin
            until(lambda: run.ended() or any(folder.glob("outputs/*/*/metrics.jsonl")), PATIENCE)
        if blow.how == "after seconds":
            until(run.ended, blow.at)
            self._deal(blow, run, rng)
        status = run.wait()
        hit = status != 0 or blow.whom == "worker"
        self.hit[f"{mode}: {blow.number.name} {blow.whom}" if hit else "missed"] += 1
        for each in [run, other] if other else [run]:
            ended = each.wait()
            each.check()
            if ended not in (0, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGALRM):
                raise Fault("failed", f"status {ended}: {each.words()}")
            if each is other and ended != 0:
                raise Fault("failed", f"the other terminal ended with {ended}: {each.words()}")
        return hit

    def _deal(self, blow: Blow, run: Running, rng: random.Random) -> None:
        workers = run.members()
        with suppress(ProcessLookupError):
            if run.ended():
                return
            if blow.whom == "worker" and workers:
                os.kill(rng.choice(workers), blow.number)
            elif blow.whom == "group":
                os.killpg(run.pid, blow.number)
            elif blow.whom == "process":
                os.kill(run.pid, blow.number)


# --- the campaign ----------------------------------------------------------------------------------------------------------


@contextmanager
def campaign() -> Iterator[Campaign]:
    """Yield a campaign in a folder of its own, on a machine with nothing at home."""
    torch.set_num_threads(1)
    quick_hydra.install()
    quick_hydra.basic_sweeper().validate_batch_is_legal = lambda *_: None  # it composes every cell once more
    sys.modules[analysis.report.__module__].draw = lambda *_: []  # figures take longer than the runs
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = str(CONF.parent)
        os.environ |= {
            "HOME": f"{folder}/home",
            "XDG_CACHE_HOME": f"{folder}/cache",
            "WANDB_MODE": "offline",
            "PYTHONPATH": root,
        }
        os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        (folder / "data").mkdir()
        yield Campaign(folder, small_roots(folder / "data"))


def main() -> int:
    """Run the cases that the environment asks for, and print their row; return 1 if one is not identical."""
    asked = table.asked()
    outcomes: Counter[str] = Counter()
    with campaign() as made:
        for number in asked.numbers():
            outcome, told = made.case(asked.seed, number)
            outcomes[outcome] += 1
            if outcome in BAD or asked.only is not None:
                print(f"{table.again(PART, asked.seed, number)}: {outcome}: {told}", flush=True)
        missed = made.hit.pop("missed", 0)
        print(json.dumps(dict(sorted(made.hit.items())), indent=1))
        counts = {"kills": sum(made.hit.values()), "came after the end": missed}
        print(
            table.row(PART, asked.seed, sum(outcomes.values()), counts | {each: outcomes[each] for each in ("identical", *BAD)})
        )
    return int(any(outcomes[each] for each in BAD))


if __name__ == "__main__":
    sys.exit(main())
