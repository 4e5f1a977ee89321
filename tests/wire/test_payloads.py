"""The small form of tests/campaign/payloads.py: some hundreds of changed payloads, and what is said about each kind."""

from __future__ import annotations

import json

import pytest

from campaign import payloads
from fedprune.wire import frame, header
from fedprune.wire.frame import MAGIC, checksum

SMALL = ("masked, auto", "SNIP", "SCAFFOLD", "bits")


@pytest.fixture(scope="module")
def sent() -> list[payloads.Payload]:
    return payloads.payloads(SMALL)


def test_payloads_as_they_were_sent_are_accepted_as_honest(sent):
    assert {payloads.outcome(payload, payloads._message(list(payload.parts))) for payload in sent} == {"sane"}


def test_of_hundreds_of_changed_payloads_none_is_wrongly_accepted_or_ends_in_a_traceback(sent):
    outcomes = payloads.campaign(seed=0, cases=600, until=lambda: False, all_payloads=sent)
    assert outcomes.wrong == []
    assert outcomes.counts["refused"] > 300 and outcomes.counts["sane"] > 20
    assert outcomes.slowest < payloads.SLOWEST


def test_a_case_of_a_seed_is_always_the_same(sent):
    assert payloads.case(7, 3, sent)[1:] == payloads.case(7, 3, sent)[1:] != payloads.case(8, 3, sent)[1:]


def framed(text: bytes, *blocks: bytes) -> bytes:
    return payloads._message([text, *blocks])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"client":1,"client":2}', "the same key twice"),
        (b"[]", "no JSON object, but a list"),
        (b" " * (header.LONGEST + 1), "of at most 1048576"),
    ],
)
def test_headers_that_are_none_are_refused(text, told):
    with pytest.raises(ValueError, match=told):
        frame.unframed(framed(text))


def test_a_message_of_thousands_of_parts_is_not_taken_apart():
    with pytest.raises(ValueError, match="more than 64 parts"):
        frame.unframed(framed(b"{}", *[b""] * 5000))
    with pytest.raises(ValueError, match="no parts"):
        frame.unframed(frame.FRAME.pack(MAGIC, checksum([])))


UPDATE = {"client": 0, "examples": 1, "metrics": {}, "evidence": [], "about": "alive"}
WRONG = {
    "client": [True, 1.0, -2, "0", None, 10**30],
    "examples": [-1, 1.5, "1", True, 10**30],
    "metrics": [[], {"loss": "x"}, {"loss": True}, {"loss": None}, {"loss": 10**30}],
    "evidence": [{}, ["a", "a"], [1], [""], "grads"],
    "about": ["none", 1, None],
    "logged": [{"a": 1}, {"a": ["mean"]}, {"a": ["mean", "1"]}, {"a": [1, 1]}, []],
    "pruned": [False, 1, "yes"],
    "carried": [{"c": [0, 0]}, {"c": [-1]}, {"c": [2]}, {"c": [True]}, {"d": [0]}, {"c": [0], "d": [0]}, [0]],
    "kept": [{}],
    "\x1b[2J": [1],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_each_value_of_an_update_has_its_type_and_bounds(key, value):
    header.checked_update(dict(UPDATE), 2)
    with pytest.raises(ValueError, match=r"^its header has ") as caught:
        header.checked_update(json.loads(json.dumps(UPDATE | {key: value})), 2)
    assert str(caught.value).isprintable()


JOB = {"client": 0, "round": 1, "clock": 1, "seed": 2**40}
WRONG_IN_JOBS = {
    "client": [-2],
    "round": [-1, 0.0, True],
    "seed": [2**65, 1.0],
    "measure": [["grads", "grads"], "grads"],
    "about": ["top"],
    "event": [
        [0, 0.5, 0],
        [0, 1.5, 0, None],
        [0, 0.5, -1, None],
        [0, 0.5, 0, [2, 2]],
        [0, 0.5, 0, [1]],
        [0.5, 0.5, 0, None],
        3,
    ],
    "events": [-1, None],
    "newcomer": [False, 1],
    "shared": [1],
    "kept_mask": [""],
    "subnet": [{}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_IN_JOBS.items() for value in values])
def test_each_value_of_a_job_has_its_type_and_bounds(key, value):
    header.checked_job(JOB | {"event": [0, 0.5, 0.0, [0, 2]], "events": 0, "measure": ["grads"]}, 2)
    with pytest.raises(ValueError, match=r"^its header has "):
        header.checked_job(JOB | {key: value}, 2)
