"""Messages: Job and Update there and back, what stays at home, and damage of every kind."""

import hashlib
import json
import math
import zlib
from dataclasses import replace

import pytest
import torch

from fedprune.pruning.mask import apply
from fedprune.types import ClientState, Job, Mask, Params, Subnet, Update
from fedprune.wire.codec import Layout, auto, bitmap, dense, gaps
from fedprune.wire.frame import FRAME, MAGIC, length
from fedprune.wire.message import Wire, about, answered_under

CODECS = [dense, bitmap, gaps, auto]


def subnet(seed: int = 0, density: float = 0.5) -> Subnet:
    generator = torch.Generator().manual_seed(seed)
    params = {"w": torch.randn(4, 5, generator=generator), "b": torch.randn(4, generator=generator), "n": torch.tensor(3)}
    mask = {"w": torch.rand(4, 5, generator=generator) < density}
    return Subnet(apply(params, mask), mask)


def wire(codec=auto) -> Wire:
    return Wire(codec, Layout.of(subnet().params, ("w",)))


def evidence_about(mask: Mask, which: str, seed: int = 0) -> Params:
    torch.manual_seed(seed)
    return apply({name: torch.randn(alive.shape) for name, alive in mask.items()}, about(mask, which))


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def same_subnet(a: Subnet | None, b: Subnet | None) -> bool:
    return a is b if a is None or b is None else same(a.params, b.params) and same(a.mask, b.mask)


JOBS = [
    Job(client=3, round=7, clock=2, seed=2**40, subnet=subnet()),
    Job(client=0, round=0, clock=0, seed=0, subnet=subnet(), measure=("grads",), about="dead"),
    Job(client=-1, round=0, clock=0, seed=0, subnet=subnet(density=1.0), measure=("grads", "sq_grads"), about="alive"),
]

UPDATES = [
    Update(client=3, subnet=subnet(1), examples=17, metrics={"loss": 0.1 + 0.2, "steps": 4, "seen": 17}),
    Update(client=0, subnet=None, examples=5, evidence={"grads": evidence_about(subnet().mask, "alive")}),
    Update(client=0, subnet=None, examples=5, evidence={"grads": evidence_about(subnet().mask, "dead")}, about="dead"),
    Update(
        client=1,
        subnet=subnet(),
        examples=1,
        evidence={k: evidence_about(subnet().mask, "alive", i) for i, k in enumerate("ab")},
    ),
    Update(client=2, subnet=None, examples=9),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("job", JOBS)
def test_a_job_arrives_as_it_was_sent(codec, job):
    there = wire(codec)
    back = there.decode_job(there.encode_job(job, there.subnet_block(job.subnet)))
    assert same_subnet(back.subnet, job.subnet)
    assert replace(back, subnet=None, about=job.about) == replace(job, subnet=None)
    assert not job.measure or back.about == job.about


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("update", UPDATES)
def test_an_update_arrives_as_it_was_sent(codec, update):
    known = subnet().mask
    back = wire(codec).decode_update(wire(codec).encode_update(update, known), known)
    assert same_subnet(back.subnet, update.subnet)
    assert list(back.evidence) == list(update.evidence)
    assert all(same(back.evidence[name], update.evidence[name]) for name in update.evidence)
    assert replace(back, subnet=None, evidence={}) == replace(update, subnet=None, evidence={})


def test_a_loss_that_is_not_a_number_arrives_as_such():
    update = Update(0, subnet(), 1, metrics={"loss": math.nan})
    back = wire().decode_update(wire().encode_update(update, subnet().mask), subnet().mask)
    assert math.isnan(back.metrics["loss"])


def test_what_a_client_keeps_is_in_no_message():
    kept = ClientState(batchnorm={"bn.weight": torch.full((4,), 1.2345)})
    job = Job(0, 1, 1, 0, subnet(), kept=kept)
    update = Update(0, subnet(), 5, kept=kept)
    there = wire()
    messages = there.encode_job(job, there.subnet_block(job.subnet)), there.encode_update(update, subnet().mask)
    assert messages[0] == there.encode_job(replace(job, kept=ClientState()), there.subnet_block(job.subnet))
    assert messages[1] == there.encode_update(replace(update, kept=ClientState()), subnet().mask)
    assert there.decode_job(messages[0]).kept.empty
    assert there.decode_update(messages[1], subnet().mask).kept.empty


def test_tensors_outside_the_layout_stay_behind():
    more = Subnet(subnet().params | {"bn.weight": torch.ones(4)}, subnet().mask)
    assert wire().subnet_block(more) == wire().subnet_block(subnet())


def test_an_update_under_the_mask_of_its_job_sends_no_mask():
    # 20 entries: 3 bytes of mask.
    update = Update(0, subnet(), 5)
    known, other = subnet().mask, {"w": ~subnet().mask["w"]}
    assert length(wire().encode_update(update, other)) - length(wire().encode_update(update, known)) == 3


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_evidence_about_the_living_takes_bytes_for_the_living_and_about_the_dead_for_the_dead(density):
    mask = subnet(density=density).mask
    alive = int(mask["w"].sum())
    empty = length(wire().encode_update(Update(0, None, 5, evidence={}), mask))
    for which, number in (("alive", alive), ("dead", 20 - alive)):
        update = Update(0, None, 5, {"grads": evidence_about(mask, which)}, which)
        message = wire().encode_update(update, mask)
        quoted = len('"grads"') - (len("alive") - len(which))
        assert length(message) == empty + quoted + 4 + 2 + 4 * number  # the block's length, the codec's head, the values
        assert same(wire().decode_update(message, mask).evidence["grads"], update.evidence["grads"])


def test_about_is_the_mask_or_its_complement():
    mask = {"w": torch.tensor([True, False, True])}
    assert about(mask, "alive")["w"].tolist() == [True, False, True]
    assert about(mask, "dead")["w"].tolist() == [False, True, False]


# --- removals ---------------------------------------------------------------------------------------------------------------


def removal(density: float = 0.5, stay: float = 0.5, seed: int = 3) -> Job:
    before = subnet(density=density)
    generator = torch.Generator().manual_seed(seed)
    stays = {name: alive & (torch.rand(alive.shape, generator=generator) < stay) for name, alive in before.mask.items()}
    return Job(client=3, round=7, clock=2, seed=1, subnet=before, measure=("fisher_compensation",), surviving=stays)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("stay", [0.0, 0.5, 1.0])
def test_what_survives_a_removal_takes_a_bit_for_each_living_entry(codec, density, stay):
    job, there = removal(density, stay), wire(codec)
    block = there.subnet_block(job.subnet)
    message = there.encode_job(job, block)
    back = there.decode_job(message)
    assert same(back.surviving, job.surviving) and same_subnet(back.subnet, job.subnet)
    living = int(job.subnet.mask["w"].sum())
    plain = there.encode_job(replace(job, surviving=None), block)
    assert length(message) == length(plain) + 4 + -(-living // 8)  # the block's length, and the bits
    assert there.decode_job(plain).surviving is None


def test_evidence_about_a_removal_takes_bytes_for_the_survivors():
    job = removal()
    known = answered_under(job)
    assert known is job.surviving and answered_under(replace(job, surviving=None)) is job.subnet.mask
    update = Update(3, None, 5, {"fisher_compensation": evidence_about(known, "alive")})
    message = wire().encode_update(update, known)
    more = wire().encode_update(update, job.subnet.mask)
    assert length(more) - length(message) == 4 * int((job.subnet.mask["w"] & ~known["w"]).sum()) > 0
    assert same(wire().decode_update(message, known).evidence["fisher_compensation"], update.evidence["fisher_compensation"])


def test_two_removals_and_one_of_another_length_are_refused():
    there, job = wire(), removal()
    head = b"".join(there.encode_job(job, there.subnet_block(job.subnet)))[FRAME.size :]
    length = -(-int(job.subnet.mask["w"].sum()) // 8)
    for body in (head + head[-4 - length :], head[: -4 - length] + b"\x09\0\0\0" + bytes(9)):
        with pytest.raises(ValueError, match=r"."):
            there.decode_job(FRAME.pack(MAGIC, zlib.crc32(body)) + body)


# --- controls ---------------------------------------------------------------------------------------------------------------


def control(mask: Mask, *names: str) -> Params:
    """Of a masked tensor and one that is not, or of these."""
    generator = torch.Generator().manual_seed(7)
    draw = {name: torch.randn(subnet().params[name].shape, generator=generator) for name in names or ("w", "b")}
    return apply(draw, {name: alive for name, alive in mask.items() if name in draw})


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("names", [("w", "b"), ("b",)])
def test_the_control_of_a_job_arrives(codec, density, names):
    there, net = wire(codec), subnet(density=density)
    sent = control(net.mask, *names)
    for job in (Job(3, 7, 2, 1, net, control=sent), replace(removal(density), control=sent)):
        back = there.decode_job(there.encode_job(job, there.subnet_block(job.subnet)))
        assert list(back.control) == list(sent) and same(back.control, sent) and same_subnet(back.subnet, job.subnet)
        assert back.surviving is None if job.surviving is None else same(back.surviving, job.surviving)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("which", ["alive", "dead"])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("measured", [True, False])
def test_the_control_of_an_update_arrives_beside_subnet_and_evidence(codec, which, trained, measured):
    known = subnet().mask
    evidence = {"grads": evidence_about(known, which)} if measured else {}
    update = Update(3, subnet(1, 0.2) if trained else None, 17, evidence, which, control=control(known))
    back = wire(codec).decode_update(wire(codec).encode_update(update, known), known)
    assert same(back.control, update.control) and back.evidence.keys() == evidence.keys()
    assert all(same(back.evidence[name], evidence[name]) for name in evidence)
    assert same_subnet(back.subnet, update.subnet)


def test_a_control_takes_bytes_for_the_living_of_the_masked_and_for_all_of_the_rest():
    net, there = subnet(), wire()
    alive, sent = int(net.mask["w"].sum()), control(net.mask)
    text = len(',"carried":{"c":[0,1]}')  # w and b are the first and the second tensor of the layout
    blocks = 4 + 2 + 4 * (alive + 4)  # the block's length, the codec's head, the values
    job, update = Job(3, 7, 2, 1, net), Update(3, net, 17)
    block = there.subnet_block(net)
    carrying, plain = (there.encode_job(one, block) for one in (replace(job, control=sent), job))
    assert length(carrying) == length(plain) + text + blocks
    answers = [there.encode_update(replace(update, control=more), net.mask) for more in (sent, {})]
    assert length(answers[0]) == length(answers[1]) + text + blocks


def test_a_control_must_be_of_the_networks_own_names_and_types():
    there, net = wire(), subnet()
    for tensors, message in (({"w": net.params["w"].double()}, "types: w"), ({"v": net.params["w"]}, "'v' is not in list")):
        with pytest.raises(ValueError, match=message):
            there.encode_job(Job(0, 0, 0, 0, net, control=tensors), there.subnet_block(net))


def test_other_messages_are_the_bytes_that_they_always_were():
    mask = {"w": torch.arange(20).view(4, 5) % 3 != 0}
    params = {"w": torch.arange(20.0).view(4, 5) * mask["w"], "b": torch.arange(4.0), "n": torch.tensor(3)}
    net, there = Subnet(params, mask), wire()
    training, measuring = Job(1, 2, 3, 4, net), Job(1, 2, 3, 4, net, ("grads",), "dead")
    answers = (Update(1, net, 5, metrics={"loss": 0.5}), Update(1, None, 5, {"grads": {"w": params["w"]}}))
    jobs = [there.encode_job(job, there.subnet_block(net)) for job in (training, measuring)]
    sent = jobs + [there.encode_update(answer, mask) for answer in answers]
    assert [(length(message), hashlib.sha256(b"".join(message)).hexdigest()[:16]) for message in sent] == GOLDEN


GOLDEN = [(138, "b47946fd2fe94c63"), (173, "982e6502d4516a2f"), (172, "e80cd744d05a2277"), (145, "3ccbb75dd600b683")]
"""Of the messages as they were before jobs could be about removals: length, and the beginning of the SHA-256."""


# --- damage ----------------------------------------------------------------------------------------------------------------


def messages() -> dict[str, bytes]:
    there = wire()
    made = {
        "job": there.encode_job(JOBS[0], there.subnet_block(JOBS[0].subnet)),
        "update": there.encode_update(UPDATES[0], subnet().mask),
        "evidence": there.encode_update(UPDATES[2], subnet().mask),
        "removal": there.encode_job(removal(), there.subnet_block(removal().subnet)),
        "carrying": there.encode_update(replace(UPDATES[0], control=control(subnet().mask)), subnet().mask),
    }
    return {name: b"".join(message) for name, message in made.items()}


def readers(message: bytes):
    return [lambda: wire().decode_job(message), lambda: wire().decode_update(message, subnet().mask)]


def refused(message: bytes) -> bool:
    """Whether both readers refuse the message, with nothing but ValueError."""
    for read in readers(message):
        try:
            read()
        except ValueError:
            continue
        return False
    return True


@pytest.mark.parametrize("name", messages())
def test_any_flipped_bit_is_noticed(name):
    message = messages()[name]
    for place in range(len(message)):
        for bit in range(8):
            garbled = bytearray(message)
            garbled[place] ^= 1 << bit
            assert refused(bytes(garbled)), (place, bit)


@pytest.mark.parametrize("name", messages())
def test_cut_and_lengthened_messages_are_noticed(name):
    message = messages()[name]
    assert all(refused(message[:length]) for length in range(len(message)))
    assert all(refused(message + bytes(extra)) for extra in (1, 4, 100))
    assert refused(message + message)


@pytest.mark.parametrize("foreign", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 64, MAGIC, MAGIC + b"\x00" * 8])
def test_foreign_bytes_are_refused(foreign):
    assert refused(foreign)


def test_a_job_is_no_update_and_an_update_no_job():
    made = messages()
    with pytest.raises(ValueError, match=r"."):
        wire().decode_update(made["job"], subnet().mask)
    for name in ("update", "evidence"):
        with pytest.raises(ValueError, match=r"."):
            wire().decode_job(made[name])


def framed(header: object, *rest: bytes) -> bytes:
    head = json.dumps(header).encode()
    body = len(head).to_bytes(4, "little") + head + b"".join(rest)
    return FRAME.pack(MAGIC, zlib.crc32(body)) + body


BLOCK = (len(wire().subnet_block(subnet()))).to_bytes(4, "little") + wire().subnet_block(subnet())


TRAINING = {"client": 0, "round": 0, "clock": 0, "seed": 0}
ANSWER = {"client": 0, "examples": 1, "metrics": {}, "evidence": [], "about": "alive"}
CRAFTED = {
    "nothing": framed({}),
    "a block without a header": framed({}, BLOCK),
    "a list for a header": framed([], BLOCK),
    "null for a header": framed(None),
    "a number for a header": framed(7, BLOCK),
    "a job without a block": framed(TRAINING),
    "a job with a stranger's key": framed(TRAINING | {"lr": 9}, BLOCK),
    "an update that promises evidence": framed(ANSWER | {"evidence": ["grads"]}),
    "an update without a key": framed({key: ANSWER[key] for key in ANSWER if key != "about"}, BLOCK),
    "evidence that is a number": framed(ANSWER | {"evidence": 3}, BLOCK),
    "a block too many": framed(ANSWER, BLOCK, BLOCK),
    "an update that promises a control": framed(ANSWER | {"carried": {"c": [0]}}, BLOCK),
    "a job that promises a control": framed(TRAINING | {"carried": {"c": [0]}}, BLOCK),
    "a job with a control of what the network has not": framed(TRAINING | {"carried": {"c": [9]}}, BLOCK, BLOCK),
    "a job with a list for a control": framed(TRAINING | {"carried": [0]}, BLOCK, BLOCK),
    "a job with a second control": framed(TRAINING | {"carried": {"c": [0], "d": [0]}}, BLOCK, BLOCK, BLOCK),
    "a block without its length": framed({}, b"\x01"),
    "a block that is longer than the message": framed({}, b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("crafted", CRAFTED)
def test_a_sound_frame_around_something_else_is_refused_with_valueerror(crafted):
    assert refused(CRAFTED[crafted])


def test_an_update_for_another_network_is_refused():
    other = Subnet({"w": torch.ones(3, 3)}, {"w": torch.ones(3, 3, dtype=torch.bool)})
    message = Wire(auto, Layout.of(other.params, ("w",))).encode_update(Update(0, other, 5), other.mask)
    with pytest.raises(ValueError, match=r"tensor|too many"):
        wire().decode_update(message, subnet().mask)
