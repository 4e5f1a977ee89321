"""Files of runs, damaged at random: each is noticed, and what is done again comes to the same result bit for bit.

    MINUTES=5 python tests/campaign/files.py           as many cases as five minutes allow
    CASES=1000 SEED=7 python tests/campaign/files.py
    CASE=123 SEED=7 python tests/campaign/files.py     one case again, with what was said about it

Case i of a seed is the same on every machine. A run that was killed goes on; a finished one is read (its table, its rounds, its
summary, ticket, network and partition); a cache of data is read. One file was damaged before. A case ends as `same` (the result
of the undamaged files), `told` (another result, and a word about it), `refused` (an error that explains itself), `silent`
(another result without a word), `traceback` or `hang`. The last three are what must not be.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedprune.analysis.read import load_rounds, load_runs
from fedprune.api.result import load
from fedprune.data.cache import read_once
from fedprune.data.datasets import Dataset, digits
from fedprune.data.federate import load_partition
from fedprune.errors import FedpruneError
from fedprune.identity.files import home
from fedprune.running import loggers
from fedprune.running.run import run
from fedprune.storage.checkpoint import load_state
from fedprune.ticket.read import load_ticket
from helpers.composed import composed

SLOWEST = 60.0
"""Seconds for one case: a longer one hangs."""

BAD = ("silent", "traceback", "hang")

BASE = (
    *("rounds=6", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=1"),
    *("local.batch_size=8", "logger=none", "executor=serial", "federated.tuned=0", "checkpoint_every=0", "eval_every=2"),
    *("model=mlp", "model.hidden=[8]"),
)
RUNS = {
    "shared mask": (*BASE, "federated=fedavgm", "criterion=rigl", "how_often=dynamic", "how_often.every=2", "when.stop=1"),
    "personal masks": (*BASE, "whose=personal", "whose.at=end", "how_often=gradual", "when=during_training", "when.stop=1"),
}
"""Overrides of two runs, between them with all that a checkpoint holds but for the kept states."""

PAGE = 512


@dataclass(frozen=True)
class Outcome:
    """The end of a case, and what was said."""

    name: str
    words: str = ""


# --- the folders -----------------------------------------------------------------------------------------------------------


def perform(folder: Path, overrides: tuple[str, ...]) -> None:
    """Do a run, or go on with it."""
    config, names = composed(*overrides)
    run(config, folder, names, overrides, "campaign")


def killed(folder: Path, overrides: tuple[str, ...], after: int) -> None:
    """Do a run in a process of its own, which ends for good when `after` rounds are saved and one more is written down."""

    def work() -> None:
        append = loggers.append

        def last(where: Path, metrics: dict[str, float]) -> None:
            append(where, metrics)
            if metrics["round"] == after:
                os._exit(0)

        loggers.append = last
        quietly(lambda: perform(folder, overrides))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(SLOWEST)
    if process.exitcode != 0:
        raise RuntimeError(f"the run to be killed ended by itself: {process.exitcode}")


def cached() -> Dataset:
    return read_once("campaign", [], Dataset, lambda: digits())


def templates(folder: Path) -> None:
    """Make the folders that are copied and damaged: killed and finished runs, of two seeds so that files can be swapped."""
    for name, overrides in RUNS.items():
        for seed in (0, 1):
            of_seed = (*overrides, f"seed={seed}")
            quietly(lambda of_seed=of_seed, name=name, seed=seed: perform(folder / f"{name} {seed}" / "finished", of_seed))
            killed(folder / f"{name} {seed}" / "killed", of_seed, after=4)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    cached()
    (path,) = home().iterdir()
    other = digits()
    read_once("campaign", [1], Dataset, lambda: Dataset(**{**vars(other), "x": other.x.flip(0)}))
    (twin,) = (each for each in home().iterdir() if each != path)
    (folder / "cache 1").mkdir()
    shutil.move(twin, folder / "cache 1" / "other")


# --- damage ----------------------------------------------------------------------------------------------------------------


def flip(path: Path, other: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, other: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def zero(path: Path, other: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = PAGE * rng.randrange(-(-len(content) // PAGE))
    content[start : start + PAGE] = bytes(len(content[start : start + PAGE]))
    path.write_bytes(content)


def remove(path: Path, other: Path, rng: random.Random) -> None:
    path.unlink()


def swap(path: Path, other: Path, rng: random.Random) -> None:
    if other.exists():
        shutil.copy(other, path)


def line(path: Path, other: Path, rng: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    path.write_bytes(b"".join(lines))


DAMAGE = (flip, cut, zero, remove, swap, line)


# --- what is compared ------------------------------------------------------------------------------------------------------


def plain(value: object) -> object:
    """Return a value in a form that compares bit for bit, without times and places."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if not (str(key).startswith("time/") or key in ("run", "path"))}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return plain(vars(value)) if hasattr(value, "__dict__") else (bytes(value) if hasattr(value, "__bytes__") else repr(value))


def final(folder: Path) -> dict[str, Callable[[], object]]:
    """Return the readers of a finished run by name."""
    return {
        "state": lambda: vars(load_state(folder / "state" / "state.safetensors")),
        "table": lambda: load_runs([folder]).to_dict("records"),
        "rounds": lambda: load_rounds([folder]).to_dict("records"),
        "summary": lambda: dict(load(folder).summary),
        "ticket": lambda: vars(load_ticket(folder)),
        "network": lambda: dict(load(folder).net().state_dict()),
        "partition": lambda: [vars(load_partition(folder / "partition.safetensors")[0])],
    }


def went_on(folder: Path, overrides: tuple[str, ...]) -> dict[str, Callable[[], object]]:
    """Go on with a run, and return its readers."""
    perform(folder, overrides)
    return final(folder)


# --- cases -----------------------------------------------------------------------------------------------------------------


def quietly(work: Callable[[], object]) -> str:
    """Do some work; return what it prints to the log."""
    said, handlers = io.StringIO(), logging.root.handlers[:]
    logging.root.handlers[:] = [logging.StreamHandler(said)]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            work()
    finally:
        logging.root.handlers[:] = handlers
    return said.getvalue()


def judged(readers: Callable[[], dict[str, Callable[[], object]]], expected: dict[str, object]) -> Outcome:
    """Read all there is to read, and return the worst of how it went."""
    found: list[Outcome] = []

    def each() -> None:
        said = io.StringIO()  # what is told once counts for all that follows
        logging.root.handlers.append(logging.StreamHandler(said))
        for name, reader in readers().items():
            try:
                value = plain(reader())
                words = said.getvalue() + (in_table(value, expected[name]) if name in ("table", "rounds") else "")
                end = "same" if value == expected[name] else ("told" if words else "silent")
                found.append(Outcome(end, f"{name}: {words}"))
            except FedpruneError as error:
                found.append(Outcome("refused", f"{name}: {error}"))

    try:
        words = quietly(each)
    except FedpruneError as error:
        return Outcome("refused", str(error))
    except Exception:
        return Outcome("traceback", traceback.format_exc())
    worst = max(found, key=lambda outcome: ("same", "refused", "told", "silent").index(outcome.name))
    return Outcome(worst.name, words + "\n".join(f"{each.name} {each.words}" for each in found))


def in_table(rows: object, expected: object) -> str:
    """Return what a table says of a run, where that is not what it says of the undamaged one."""
    words = [sorted({(row["status"], row["reason"]) for row in table}) for table in (rows, expected) if isinstance(table, list)]
    return f"{words[0]}" if words[0] != words[1] else ""


def apart(work: Callable[[], Outcome]) -> Outcome:
    """Do some work in a process of its own, for at most SLOWEST seconds."""
    here, there = multiprocessing.Pipe(duplex=False)

    def send(connection: Connection) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        connection.send(work())

    process = multiprocessing.get_context("fork").Process(target=send, args=(there,))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(SLOWEST) else Outcome("hang")
    except EOFError:
        return Outcome("traceback", "the process died")
    finally:
        process.kill()
        process.join()


@dataclass
class Campaign:
    """The folders of a campaign, and what their undamaged files come to."""

    folder: Path
    expected: dict[str, dict[str, object]]

    def case(self, seed: int, number: int) -> tuple[str, Outcome]:
        """Return what was damaged, as `template / file / damage`, and how that ended."""
        rng = random.Random(f"{seed}-{number}")
        name = rng.choice([*RUNS, *RUNS, "cache"])
        kind = "cache" if name == "cache" else rng.choice(["killed", "finished"])
        damaged = self.folder / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        source = home() if name == "cache" else self.folder / f"{name} 0" / kind
        twin = self.folder / "cache 1" if name == "cache" else self.folder / f"{name} 1" / kind
        shutil.copytree(source, damaged / "fedprune" if name == "cache" else damaged)
        root = damaged / "fedprune" if name == "cache" else damaged
        file = rng.choice(sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file() and path.stat().st_size))
        how = rng.choice(DAMAGE)
        how(root / file, twin / ("other" if name == "cache" else file), rng)
        shown = f"{kind} / {'cache' if name == 'cache' else file} / {how.__name__}"
        return shown, apart(lambda: judged(lambda: self._readers(name, kind, damaged), self.expected[name]))

    def _readers(self, name: str, kind: str, folder: Path) -> dict[str, Callable[[], object]]:
        if name == "cache":
            os.environ["XDG_CACHE_HOME"] = str(folder)
            return {"cache": lambda: vars(cached())}
        return went_on(folder, (*RUNS[name], "seed=0")) if kind == "killed" else final(folder)


@contextlib.contextmanager
def campaign() -> Iterator[Campaign]:
    """Make the folders, and work out what their undamaged files come to."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        templates(folder)
        expected: dict[str, dict[str, object]] = {"cache": {"cache": plain(vars(cached()))}}
        for name in RUNS:
            readers = final(folder / f"{name} 0" / "finished")
            expected[name] = {key: plain(reader()) for key, reader in readers.items()}
        yield Campaign(folder, expected)


def main() -> int:
    """Run the cases that the environment asks for, and print how they ended; return 1 if one ended as none must."""
    torch.set_num_threads(1)
    seed, only = int(os.environ.get("SEED", 0)), os.environ.get("CASE")
    until = time.monotonic() + 60 * float(os.environ.get("MINUTES", 1))
    most = int(os.environ["CASES"]) if "CASES" in os.environ else None
    ends: Counter[tuple[str, str]] = Counter()
    with campaign() as made:
        if only is not None:
            shown, outcome = made.case(seed, int(only))
            print(f"{shown}: {outcome.name}\n{outcome.words}")
            return int(outcome.name in BAD)
        number = 0
        while number < most if most is not None else time.monotonic() < until:
            shown, outcome = made.case(seed, number)
            ends[shown, outcome.name] += 1
            if outcome.name in BAD:
                print(f"CASE={number} SEED={seed}: {shown}: {outcome.name}", flush=True)
            number += 1
    print(json.dumps({f"{shown}: {name}": count for (shown, name), count in sorted(ends.items())}, indent=1))
    names = Counter[str]()
    for (_, name), count in ends.items():
        names[name] += count
    counts = " | ".join(f"{names[name]:,} {name}" for name in ("same", "told", "refused", *BAD))
    print(f"| damaged files | seed {seed} | {number:,} cases | {counts} |")
    return int(any(names[name] for name in BAD))


if __name__ == "__main__":
    sys.exit(main())
