"""Compositions of random options with random values of random types: each is built, or refused in a few lines.

    MINUTES=5 python tests/campaign/configurations.py       as many cases as five minutes allow
    CASES=10000 SEED=7 python tests/campaign/configurations.py
    CASE=123 SEED=7 python tests/campaign/configurations.py one case again, with what was said

Case i of a seed is the same on every machine. One in ten of those that are built also trains its first round. A case is
`built`, `trained`, `diverged` (of finite values, and it says so), `refused`, or: `long` (refused in more than
a few lines), `late` (refused for another reason, and only in the first round), `traceback`, `hang` (more than 10 s of a
processor), `memory` (more than 3 GB), `silent` (a value is not what was typed) or `crash` (of the process).
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import multiprocessing
import os
import random
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from campaign import table
from fedprune.config import CONF
from fedprune.errors import FedpruneError
from fedprune.experiment.build import build
from fedprune.experiment.experiment import Experiment
from helpers import quick_hydra
from helpers.composed import NESTED, TINY, assemble

PART = "configurations"

SLOWEST, MOST, STUCK = 10.0, 3 * 2**30, 60.0
"""Seconds of a processor for one case, and bytes of memory; seconds by the clock after which a process is given up."""

LINES, LETTERS = 8, 2500
"""The longest refusal: several keys can be wrong at once, and each has a line."""

BATCH = 500
"""Cases that one process does."""

TRAINED = 0.1
"""The share of what is built that also trains a round."""

BAD = ("long", "late", "traceback", "hang", "memory", "silent", "crash")

AXES = (
    "what",
    "criterion",
    "when",
    "how_often",
    "where",
    "whose",
    "rewind",
    "federated",
    "partition",
    "local",
    "wire",
    "model",
)

ABROAD = {"model": ("torchvision", "timm")}
"""Options that need packages or downloads."""


class Hang(BaseException):
    """The case takes too long. Nobody catches it on the way."""


# --- what is typed ---------------------------------------------------------------------------------------------------------


def options(group: str) -> list[str]:
    """Return the options of a group."""
    return [path.stem for path in sorted((CONF / group).glob("*.yaml")) if path.stem not in ABROAD.get(group, ())]


def value(rng: random.Random) -> str:
    """Return a random value of a random type, as it is typed."""
    kinds: tuple[Callable[[], str], ...] = (
        lambda: rng.choice(["true", "false", "null", "''", "abc", "auto", "all", "last", "1e3", "0x10", "1_000", "~", "yes"]),
        lambda: rng.choice(["nan", "inf", "-inf", ".nan", ".inf", "-.inf", "1e999", "-0.0"]),
        lambda: str(rng.choice([-(10**12), -7, -1, 0, 1, 2, 3, 5, 8, 100, 1001, 10**6, 10**9, 10**12, 10**30])),
        lambda: f"{rng.choice([-1, 1, 1, 1]) * 10 ** rng.uniform(-12, 12):.4g}",
        lambda: f"{rng.random():.3f}",
        lambda: str(rng.randint(1, 10)),
        lambda: rng.choice(
            ["[]", "[1]", "[0.5,2]", "[a,b]", "[[1],[2]]", "[null]", "[1,a,true]", "[" + ",".join("1" * 300) + "]"]
        ),
        lambda: rng.choice(["{}", "{a:1}", "{_target_:abc}", "{_target_:os.getcwd}", "{a:{b:[1]}}", "{1:2}"]),
        lambda: rng.choice(["é", "x" * 500, "'a b'", "'1'", "'None'", "../..", "/dev/zero", "2.5", "1,2"]),
        lambda: rng.choice(options(rng.choice(AXES))),
    )
    return rng.choice(kinds)()


def leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a configuration that hold values."""
    for key in node:
        child, name = node._get_node(key), f"{prefix}.{key}" if prefix else str(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from leaves(child, name)
        elif not str(key).startswith("_"):
            yield name


UNTYPED = ("data", "executor", "logger", "hydra", "home", "name", "device", "dry_run", "profile", "objective", "force", "wait")
"""Keys and groups whose values are left alone: what reads them is not `build`, or downloads."""


def words(rng: random.Random) -> list[str]:
    """Return the overrides of a case: options of some groups, and values of some keys."""
    share = rng.choice([0.03, 0.1, 0.3])  # of many options at once most make no sense, and the first check hides the others
    groups = [group for group in (*AXES, *NESTED) if rng.random() < share / (3 if group == "model" else 1)]
    chosen = [f"{group}={rng.choice(options(group))}" for group in groups]
    if not any(group == "how_often" for group in groups):
        chosen.append("how_often=one_shot")
    config, _ = assemble(*TINY, *chosen)
    keys = [key for key in leaves(config) if key.partition(".")[0] not in UNTYPED]
    return chosen + [f"{key}={value(rng)}" for key in rng.sample(keys, rng.choice([0, 1, 1, 1, 2, 3]))]


# --- one case --------------------------------------------------------------------------------------------------------------


def case(seed: int, number: int) -> tuple[str, list[str], str]:
    """Return the outcome of a case, what was typed, and what was said."""
    rng = random.Random(f"{seed}/{number}")
    typed: list[str] = []
    signal.setitimer(signal.ITIMER_PROF, SLOWEST)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            typed += words(rng)
            outcome, said = _outcome(typed, trains=rng.random() < TRAINED)
    except (OmegaConfBaseException, HydraException) as error:
        outcome, said = "refused", str(error)
    except Hang:
        outcome, said = "hang", ""
    except (Exception, SystemExit) as error:
        memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        outcome, said = ("memory" if memory else "traceback"), traceback.format_exc()[-3000:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return outcome, typed, said


def _outcome(typed: list[str], trains: bool) -> tuple[str, str]:
    config, names = assemble(*TINY, *typed)
    try:
        experiment = build(config, names)
    except FedpruneError as error:
        said = str(error)
        return ("long" if said.count("\n") >= LINES or len(said) > LETTERS else "refused"), said
    for word in typed:
        key, _, text = word.partition("=")
        if "/" not in key and key not in AXES and not _same(OmegaConf.select(config, key), typed_value(text)):
            return "silent", f"{key} is {OmegaConf.select(config, key)!r}"
    if not trains:
        return "built", ""
    try:
        train(experiment)
    except FedpruneError as error:
        finite = not any(word.rpartition("=")[2].strip("-.") in ("inf", "nan", "1e999") for word in typed)
        return ("diverged" if "has diverged" in str(error) and finite else "late"), str(error)
    return "trained", ""


def typed_value(text: str) -> object:
    return OmegaConf.from_dotlist([f"value={text}"]).value


def _same(found: object, typed: object) -> bool:
    """Return whether a value is the one that was typed: a whole number may stand for the same float, 0 and 1 for false and
    true, and a text for any."""
    if isinstance(typed, str) and not isinstance(found, str):
        with contextlib.suppress(ValueError):
            typed = float(typed) if isinstance(found, float) else typed_value(typed)
    if isinstance(found, bool) and typed in (0, 1):
        return found == typed
    if isinstance(found, float) and isinstance(typed, int | float) and not isinstance(typed, bool):
        return found == float(typed) or (math.isnan(found) and math.isnan(typed))
    return (type(found) is type(typed) or isinstance(found, str)) and (found == typed or str(found) == str(typed))


def train(experiment: Experiment) -> None:
    """Do the first round, in this process."""
    executor = experiment.executor()
    try:
        loop = experiment.loop(executor)
        if loop.plan.rounds:
            loop.round(loop.start())
    finally:
        executor.close(now=True)


# --- the campaign ----------------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Make this process one of cases: one thread, little memory, an alarm, and nothing on the screen."""

    def alarm(*_: object) -> None:
        raise Hang

    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, alarm)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _batch(connection: Connection, seed: int, first: int) -> None:
    prepare()
    for number in range(first, first + BATCH):
        connection.send(case(seed, number))


def cases(seed: int) -> Iterator[tuple[str, list[str], str]]:
    """Yield the outcomes of all cases of a seed, from processes of their own, which may die."""
    first = 0
    while True:
        here, there = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_batch, args=(there, seed, first))
        process.start()
        there.close()
        try:
            for _ in range(BATCH):
                if not here.poll(STUCK):
                    yield "hang", [], "the process was given up"
                    first += 1
                    break
                try:
                    answer = here.recv()
                except EOFError:
                    process.join()
                    yield "crash", [], f"the process died: {process.exitcode}"
                    first += 1
                    break
                yield answer
                first += 1
        finally:
            process.kill()
            process.join()


def main() -> int:
    """Run the cases that the environment asks for, and print their row; return 1 if one is bad."""
    asked = table.asked()
    quick_hydra.install()
    os.environ |= {"WANDB_MODE": "offline", "FEDPRUNE_DATA": os.devnull}
    if asked.only is not None:
        prepare()
        outcome, typed, said = case(asked.seed, asked.only)
        print(f"{outcome}: {' '.join(typed)}\n{said}")
        return int(outcome in BAD)
    outcomes: Counter[str] = Counter()
    assemble(*TINY)
    for number, (outcome, typed, said) in zip(asked.numbers(), cases(asked.seed), strict=False):
        outcomes[outcome] += 1
        if outcome in BAD:
            last = said.strip().rpartition("\n")[2][:300]
            print(f"{table.again(PART, asked.seed, number)}: {outcome}: {' '.join(typed)[:300]!r}: {last!r}", flush=True)
    counts = {each: outcomes[each] for each in ("built", "trained", "diverged", "refused", *BAD)}
    print(table.row(PART, asked.seed, sum(outcomes.values()), counts))
    return int(any(outcomes[each] for each in BAD))


if __name__ == "__main__":
    sys.exit(main())
