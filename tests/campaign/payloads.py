"""Payloads with their checksums computed anew: headers and blocks of real jobs and updates, changed at random and decoded.

    MINUTES=5 python tests/campaign/payloads.py          as many cases as five minutes allow
    CASES=1000000 SEED=7 python tests/campaign/payloads.py
    CASE=12345 SEED=7 python tests/campaign/payloads.py  one case again, with what it was

Case i of a seed is the same on every machine. Each payload is refused by name, or what was accepted could have come from an
honest client, by rules that are written here once more (`honest`). Anything else is a wrong accept, a crash, or too slow.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fedprune.experiment.build import build
from fedprune.federated.exchange import Exchange
from fedprune.types import Job, Params, Update
from fedprune.wire.frame import FRAME, LENGTH, MAGIC, checksum
from fedprune.wire.message import answered_under
from helpers.composed import TINY, composed
from helpers.spy import Spy

SLOWEST, MOST = 1.0, 3 * 2**30
"""Seconds for one payload, and bytes of memory for all."""

SMALL = (*TINY, "local.steps=2", "local.batch_size=8", "rounds=3", "eval_every=100")
SPARSE = ("how_often=one_shot", "when=before_training")

MLP = ("model=mlp", "model.hidden=[6]")

COMPOSITIONS: dict[str, tuple[str, ...]] = {
    "dense": ("how_often=never",),
    "masked, auto": SPARSE,
    "masked, dense": (*SPARSE, "wire=dense"),
    "masked, bitmap": (*SPARSE, "wire=bitmap"),
    "masked, gaps": (*SPARSE, "wire=gaps"),
    "personal masks": ("whose=personal", "whose.at=end", "how_often=gradual", "when=during_training", "when.stop=1"),
    "common entries": ("whose=personal", "whose.at=end", "whose.uncommon=own", "how_often=gradual", "when.stop=1"),
    "SNIP": (*SPARSE, "criterion=snip"),
    "RigL": ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "when.stop=1", "where.top=0.2"),
    "SCAFFOLD": ("federated=scaffold", *SPARSE),
    "bits": ("+experiment=fedpm", "data=digits"),
    "top weights": ("federated/upload=top_weights", *SPARSE),
    "BatchNorm": (
        *(
            "model=mlp",
            "model._target_=helpers.user_networks.OnePath",
            "~model.hidden",
            "criterion=fedtiny",
            "what=weights_erk",
        ),
        *("how_often=progressive", "how_often.every=1", "how_often.blocks=1", "where=cohort", "where.top=0.2", "when.stop=1"),
    ),
    "newcomers": ("model=mlp", "model._target_=helpers.odd_networks.Frozen", "~model.hidden", "+model.norm=true"),
}


@dataclass(frozen=True)
class Payload:
    """A message that was sent: the parts of its frame, and what reads it. up: whether it is an update."""

    composition: str
    parts: tuple[bytes, ...]
    job: Job
    exchange: Exchange
    truth: Job | Update
    up: bool


@dataclass
class Outcomes:
    """The number of cases by outcome, and the cases that were wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slow: int = 0

    def add(self, outcome: str, told: str, seconds: float) -> None:
        self.counts[outcome] += 1
        self.slowest = max(self.slowest, seconds)
        self.slow += seconds > SLOWEST
        if outcome not in ("refused", "sane") or seconds > SLOWEST:
            self.wrong.append(f"{told}: {outcome} ({seconds:.2f} s)")


def payloads(names: tuple[str, ...] = tuple(COMPOSITIONS)) -> list[Payload]:
    """Return the messages of a few rounds of each composition."""
    return [payload for name in names for payload in _of(name)]


def _of(name: str) -> Iterator[Payload]:
    overrides = COMPOSITIONS[name]
    model = () if any(override.startswith("model=") for override in overrides) else MLP
    experiment = build(*composed(*SMALL, *model, *overrides))
    noted: list[tuple[Job, bytes, bytes, bytes]] = []

    class Noting(Spy):
        def map(self, tasks, sizes):  # type: ignore[no-untyped-def]
            held = [tasks[place] for place in range(len(tasks))]
            for (method, arguments), answer in zip(held, super().map(held, sizes), strict=True):
                if method == "run":
                    job = experiment.wire.decode_job(arguments[0], arguments[2])
                    noted.append((job, _joined(arguments[0]), _joined(answer[0]), arguments[2]))
                yield answer

    loop = experiment.loop(Noting(experiment.executor(), experiment.wire))
    state = loop.start()
    for _ in range(min(2, loop.plan.rounds)):
        state, _ = loop.round(state)
    exchange = replace(loop.exchange, broken="stop")
    for job, down, up, _ in [*noted[:3], *noted[-3:]]:
        yield Payload(name, _parts(down), job, exchange, job, up=False)
        update = experiment.wire.decode_update(up, answered_under(job))
        yield Payload(name, _parts(up), job, exchange, update, up=True)


def _joined(message: object) -> bytes:
    return b"".join(map(bytes, message)) if isinstance(message, tuple) else bytes(message)  # type: ignore[call-overload]


def _parts(message: bytes) -> tuple[bytes, ...]:
    parts, place = [], FRAME.size
    while place < len(message):
        (length,) = LENGTH.unpack_from(message, place)
        parts.append(message[place + 4 : place + 4 + length])
        place += 4 + length
    return tuple(parts)


def _message(parts: list[bytes]) -> bytes:
    return FRAME.pack(MAGIC, checksum(parts)) + b"".join(LENGTH.pack(len(part)) + part for part in parts)


# --- changes ---------------------------------------------------------------------------------------------------------------

VALUES: tuple[str, ...] = (
    *(
        "null",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "2",
        "3",
        "7",
        "-7",
        "0.5",
        "1e3",
        "1e300",
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
    ),
    *("-Infinity", "9" * 25, "-" + "9" * 25, "9" * 400, "9" * 5000, "2147483648", "9223372036854775808", "1.0", "-0.0"),
    *(
        '""',
        '"x"',
        '"alive"',
        '"dead"',
        '"top"',
        '"all"',
        '"grads"',
        '"\\u001b[31mred"',
        '"\\ud800"',
        '"nan"',
        '"' + "a" * 9999 + '"',
    ),
    *(
        "[]",
        "[0]",
        "[-1]",
        "[1,1]",
        "[true]",
        "[99]",
        '["grads"]',
        '["grads","grads"]',
        "[[]]",
        "{}",
        '{"c":[0]}',
        '{"c":[-1]}',
    ),
    *('{"loss":0}', '{"loss":1e999,"steps":1,"seen":1}', '{"test/accuracy":["mean",1]}', '{"a":["max",NaN]}', '{"a":["no",1]}'),
    *("[" * 3000 + "]" * 3000, "[" * 200_000, '{"a":' * 3000 + "1" + "}" * 3000, "[" + ",".join(["0"] * 20_000) + "]"),
)

KEYS = (
    *("client", "round", "clock", "seed", "examples", "metrics", "evidence", "about", "logged", "pruned", "carried", "measure"),
    *(
        "event",
        "events",
        "shared",
        "newcomer",
        "kept",
        "kept_mask",
        "subnet",
        "control",
        "surviving",
        "common",
        "loss",
        "steps",
    ),
    *("seen", "__class__", "", "\u001b[2J"),
)


def _change_header(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    header = json.loads(raw)
    kind = rng.choice(("value", "value", "value", "inner", "inner", "delete", "add", "rename", "twice", "text", "whole"))
    if kind == "text":
        text = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        return bytes(text), "header bytes"
    if kind == "whole":
        return rng.choice(VALUES).encode(), "another header"
    pairs = [[json.dumps(key), json.dumps(value, separators=(",", ":"))] for key, value in header.items()]
    chosen = rng.randrange(len(pairs))
    if kind == "value":
        pairs[chosen][1] = rng.choice(VALUES)
    elif kind == "inner":
        pairs[chosen][1] = _inner(json.loads(pairs[chosen][1]), rng)
    elif kind == "delete":
        del pairs[chosen]
    elif kind == "add":
        pairs.append([json.dumps(rng.choice(KEYS)), rng.choice(VALUES)])
    elif kind == "rename":
        pairs[chosen][0] = json.dumps(rng.choice(KEYS))
    elif kind == "twice":
        pairs.append([pairs[chosen][0], rng.choice(VALUES)])
    return ("{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}").encode(), f"header {kind}"


def _inner(value: object, rng: random.Random) -> str:
    """Return the text of a value, one value in which is another."""
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        pairs = {json.dumps(k): json.dumps(v) for k, v in value.items()}
        new = json.dumps(rng.choice((*KEYS, key, key, key)))
        if new != json.dumps(key):
            del pairs[json.dumps(key)]
        pairs[new] = rng.choice(VALUES)
        return "{" + ",".join(f"{k}:{v}" for k, v in pairs.items()) + "}"
    if isinstance(value, list) and value:
        texts = [json.dumps(v) for v in value]
        texts[rng.randrange(len(texts))] = rng.choice(VALUES)
        return "[" + ",".join(texts) + "]"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(rng.choice((value + 1, value - 1, -value, value * 10, float(value), str(value))))
    return rng.choice(VALUES)


WORDS = tuple(struct.pack("<f", number) for number in (math.inf, -math.inf, math.nan, 0.0, -0.0, 3e38, 1e-45))


def _change_block(block: bytes, rng: random.Random) -> tuple[bytes, str]:
    kind = rng.choice(("codec", "flag", "bytes", "bytes", "cut", "longer", "word", "word", "zeros", "head", "random"))
    content = bytearray(block)
    if not content:
        return bytes(rng.randrange(1, 9)), "block from nothing"
    if kind == "codec":
        content[0] = rng.choice((0, 1, 2, 3, 4, 5, 255))
    elif kind == "flag":
        content[min(1, len(content) - 1)] = rng.choice((0, 1, 2, 255))
    elif kind == "bytes":
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    elif kind == "longer":
        content += rng.randbytes(rng.choice((1, 4, 100, 4096)))
    elif kind == "word":
        places = range(len(content) % 4, len(content), 4)
        for place in rng.sample(places, min(len(places), rng.choice((1, 1, 3, 50)))):
            content[place : place + 4] = rng.choice(WORDS)
    elif kind == "zeros":
        content = bytearray(len(content))
    elif kind == "head":
        content[:8] = rng.randbytes(min(8, len(content)))
    else:
        content = bytearray(content[:2] + rng.randbytes(max(0, len(content) - 2)))
    return bytes(content), f"block {kind}"


def _change_frame(parts: list[bytes], rng: random.Random) -> tuple[list[bytes], str]:
    kind = rng.choice(("swap", "drop", "again", "empty", "many", "join"))
    if kind == "swap":
        rng.shuffle(parts)
    elif kind == "drop":
        del parts[rng.randrange(len(parts))]
    elif kind == "again":
        parts.insert(rng.randrange(1, len(parts) + 1), rng.choice(parts))
    elif kind == "empty":
        parts.insert(rng.randrange(len(parts) + 1), b"")
    elif kind == "many":
        parts += [b""] * rng.choice((10, 70, 70, 3000))
    elif len(parts) > 1:
        parts[-2:] = [parts[-2] + parts[-1]]
    return parts, f"frame {kind}"


def changed(payload: Payload, rng: random.Random, others: list[Payload]) -> tuple[bytes, str]:
    """Return the bytes of a payload that was changed in one or two places, with a sound checksum, and what was changed."""
    parts, told = list(payload.parts), []
    for _ in range(rng.choice((1, 1, 1, 2))):
        where = rng.choice(("header", "header", "header", "block", "block", "frame", "other"))
        if where == "header" and parts:
            try:
                parts[0], what = _change_header(parts[0], rng)
            except (ValueError, AttributeError, IndexError, RecursionError, OverflowError):
                what = "header as it was"
        elif where == "block" and len(parts) > 1:
            place = rng.randrange(1, len(parts))
            parts[place], what = _change_block(parts[place], rng)
        elif where == "other":
            other = rng.choice(others)
            place = rng.randrange(len(other.parts))
            parts[min(place, len(parts)) : place + 1], what = [other.parts[place]], "a part of another payload"
        elif parts:
            parts, what = _change_frame(parts, rng)
        else:
            continue
        told.append(what)
    message = _message(parts)
    if rng.random() < 0.03:
        content = bytearray(message)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return bytes(content), " and ".join([*told, "a bit"])
    return message, " and ".join(told)


# --- the judge -------------------------------------------------------------------------------------------------------------


def outcome(payload: Payload, message: bytes) -> str:
    """Decode a message as its reader does. Return `refused`, `sane`, or what is wrong."""
    try:
        if payload.up:
            accepted: object = read_update(payload, message)
        else:
            accepted = payload.exchange.wire.decode_job(message, payload.job.kept_mask)
    except MemoryError:
        return "memory"
    except Refused:
        return "refused"
    except ValueError:
        return "refused" if not payload.up else f"traceback:\n{traceback.format_exc(limit=-3)}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"traceback:\n{traceback.format_exc(limit=-3)}"
    try:
        problem = honest(accepted, payload) if payload.up else honest_job(accepted, payload.truth)
    except (AttributeError, TypeError, KeyError, ValueError, RuntimeError) as error:
        problem = f"of other types ({error})"
    return "sane" if problem is None else f"wrong accept: {problem}"


class Refused(Exception):
    """The server refused an update."""


def read_update(payload: Payload, message: bytes) -> Update:
    """Return the update as the server merges it. Raises Refused."""
    from fedprune.errors import RunError

    try:
        update = payload.exchange.received(message, payload.job)
    except RunError as error:
        if not str(error).isprintable():
            raise AssertionError(f"a message with control characters: {error!r}") from error
        raise Refused from error
    assert update is not None
    return update


def honest(accepted: object, payload: Payload) -> str | None:
    """Return why no honest client of this job can have sent this update, or None. Its numbers of training may be any."""
    truth, job = payload.truth, payload.job
    assert isinstance(truth, Update)
    if not isinstance(accepted, Update) or type(accepted.client) is not int or accepted.client != job.client:
        return "of another client"
    if type(accepted.examples) is not int or accepted.examples != truth.examples:
        return f"of {accepted.examples!r} examples"
    if accepted.about != truth.about or list(accepted.evidence) != list(truth.evidence):
        return "evidence that nobody asked for"
    if accepted.kept.empty is False:
        return "kept state from the wire"
    told = _dishonest_numbers(accepted, truth)
    if told is not None:
        return told
    if (accepted.subnet is None) != (truth.subnet is None):
        return "a network that nobody asked for, or none"
    tensors: list[tuple[str, Params, Params]] = [("control", accepted.control, truth.control)]
    tensors += [(name, accepted.evidence[name], truth.evidence[name]) for name in truth.evidence]
    if accepted.subnet is not None and truth.subnet is not None:
        tensors.append(("network", accepted.subnet.params, truth.subnet.params))
        if accepted.subnet.mask.keys() != truth.subnet.mask.keys():
            return "another mask"
        for name, alive in accepted.subnet.mask.items():
            if alive.dtype != torch.bool or alive.shape != truth.subnet.mask[name].shape:
                return f"a mask of {name} of another shape"
            sent, grows = job.subnet.mask[name], job.event is not None and job.event.swap > 0
            if not grows and bool((alive & ~sent).any()):
                return f"{name} grew"
            if job.event is None and payload.exchange.upload.whole and not torch.equal(alive, sent):
                return f"the mask of {name} changed without an event"
            if bool((accepted.subnet.params[name] * ~alive).any()):
                return f"{name} lives where it is dead"
    return next((problem for named in tensors if (problem := _unlike(*named, job))), None)


def _dishonest_numbers(accepted: Update, truth: Update) -> str | None:
    if accepted.metrics.keys() != truth.metrics.keys():
        return "other metrics"
    for name, value in accepted.metrics.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            return f"{name} {value!r}"
    if truth.metrics:
        steps, seen = accepted.metrics["steps"], accepted.metrics["seen"]
        if type(steps) is not int or type(seen) is not int or not 0 <= steps <= 2000 or not 0 <= seen <= 16:
            return f"steps {steps!r}, seen {seen!r}"
    for name, (how, value) in accepted.logged.items():
        if how not in ("mean", "sum", "min", "max") or type(value) is not float or name.startswith(("test/", "clients/")):
            return f"logged {name} {how} {value!r}"
    if type(accepted.pruned) is not bool or (accepted.pruned and not truth.pruned):
        return f"pruned {accepted.pruned!r}"
    return None


def _unlike(name: str, tensors: Params, like: Params, job: Job) -> str | None:
    if tensors.keys() != like.keys():
        return f"{name} has other tensors"
    for key, tensor in tensors.items():
        if tensor.shape != like[key].shape or tensor.dtype != like[key].dtype:
            return f"{name} {key} of another shape or type"
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return f"{name} {key} is not finite"
        if key.endswith("running_var") and bool((tensor < 0).any()):
            return f"{name} {key} is a negative variance"
        if name == "control" and key in job.subnet.mask and bool(tensor[~job.subnet.mask[key]].any()):
            return f"{name} {key} where the mask is dead"
    return None


def honest_job(accepted: object, truth: Job | Update) -> str | None:
    """Return why no server can have sent this job, or None."""
    if not isinstance(accepted, Job) or not isinstance(truth, Job):
        return "no job"
    whole = {"client": -1, "round": 0, "clock": 0, "events": 0, "seed": -(2**63)}
    for name, least in whole.items():
        value = getattr(accepted, name)
        if type(value) is not int or not least <= value < 2**64:
            return f"{name} {value!r}"
    if not isinstance(accepted.measure, tuple) or len({*accepted.measure}) != len(accepted.measure):
        return f"measure {accepted.measure!r}"
    if any(type(name) is not str or not name for name in accepted.measure) or accepted.about not in ("alive", "dead", "all"):
        return f"measure {accepted.measure!r} about {accepted.about!r}"
    if type(accepted.newcomer) is not bool or not accepted.kept.empty or accepted.kept_mask != truth.kept_mask:
        return "what never travels"
    if accepted.event is not None:
        event = accepted.event
        if type(event.round) is not int or not (0 <= event.density <= 1 and 0 <= event.swap <= 1):
            return f"event {event}"
        if event.block is not None and not (all(type(n) is int for n in event.block) and 0 <= event.block[0] < event.block[1]):
            return f"event {event}"
    if any(tensor.shape != truth.subnet.params[name].shape for name, tensor in accepted.subnet.params.items()):
        return "another shape"
    return None


# --- the campaign ----------------------------------------------------------------------------------------------------------


def case(number: int, seed: int, all_payloads: list[Payload]) -> tuple[Payload, bytes, str]:
    """Return the number-th case of a seed: the payload, what it became, and how."""
    rng = random.Random(f"{seed}/{number}")
    payload = rng.choice(all_payloads)
    message, told = changed(payload, rng, all_payloads)
    return payload, message, told


def campaign(seed: int, cases: int, until: Callable[[], bool], all_payloads: list[Payload], start: int = 0) -> Outcomes:
    """Judge the cases from `start` on, until there were so many or `until` says so."""
    outcomes = Outcomes()
    for number in range(start, start + cases):
        if number % 64 == 0 and until():
            break
        payload, message, told = case(number, seed, all_payloads)
        started = time.perf_counter()
        result = outcome(payload, message)
        seconds = time.perf_counter() - started
        way = "up" if payload.up else "down"
        name = result.partition(":")[0]
        outcomes.add(name, f"case {number} ({payload.composition}, {way}: {told}): {result}", seconds)
    return outcomes


def row(seed: int, outcomes: Outcomes, seconds: float) -> str:
    """Return the line of a table of the campaign."""
    counts, cases = outcomes.counts, sum(outcomes.counts.values())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    wrong = {name: counts[name] for name in ("wrong accept", "traceback", "memory")} | {"over one second": outcomes.slow}
    told = " | ".join(f"{counts:,} {name}" for name, counts in wrong.items())
    return (
        f"| payloads | seed {seed} | {cases:,} cases | {counts['refused']:,} refused | {counts['sane']:,} sane | {told} | "
        f"slowest {outcomes.slowest:.3f} s | at most {most:,.0f} MiB | speed {cases / max(seconds, 1e-9):,.0f} a second |"
    )


def main() -> int:
    """Run the campaign that the environment describes, and print its line; 1 if a case was wrong."""
    torch.set_num_threads(1)
    seed, minutes = int(os.environ.get("SEED", "0")), float(os.environ.get("MINUTES", "1"))
    all_payloads = payloads()
    resource.setrlimit(resource.RLIMIT_DATA, (MOST, MOST))
    if "CASE" in os.environ:
        payload, message, told = case(int(os.environ["CASE"]), seed, all_payloads)
        print(told, message[:2000], outcome(payload, message), sep="\n")
        return 0
    cases = int(os.environ.get("CASES", "0"))
    started = time.monotonic()
    ends = math.inf if cases else started + 60 * minutes
    outcomes = campaign(seed, cases or sys.maxsize, lambda: time.monotonic() > ends, all_payloads)
    for told in outcomes.wrong[: int(os.environ.get("SHOWN", "20"))]:
        print(told)
    print(row(seed, outcomes, time.monotonic() - started))
    return 1 if outcomes.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
