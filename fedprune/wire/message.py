"""Messages: Job and Update <-> bytes.

A message is a frame (frame.py) around a header (who, when, what for) and blocks of tensors, each a codec's encoding. A job with
`common` entries brings their values alone, under a mask of these. One to a newcomer has a block more, of what is never trained.
A control beside the subnet (SCAFFOLD's) is one more block, under the mask that both ends know; the header says which of the
layout's tensors are in it, by their places. A job about a removal has one block more: a bit for each living entry, whether
it survives. Evidence that candidate masks are compared by has tensors of its own. `kept` and `kept_mask`, which stay with the
client, are in no message. What is trained is what was decoded, and the bytes that are reported are the lengths of these
messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from fedprune.pruning.evidence.batchnorm import LOSS, OF_CANDIDATES
from fedprune.pruning.mask import all_alive, pack, unpack
from fedprune.pruning.what.top_k import how_many
from fedprune.types import Job, Json, Mask, Params, PruneEvent, Subnet, Update
from fedprune.wire.codec import BITS, Codec, Layout, bits, decode
from fedprune.wire.frame import Message, Piece, framed, unframed
from fedprune.wire.header import COMMON, CONTROL, C, checked_job, checked_update

NOTHING = Layout({}, {}, ())


@dataclass(frozen=True)
class Wire:
    """Both ends of the wire: how tensors become bytes, and the layout of the network that is sent.

    mask_names: the tensors that a client's own mask covers, if they are others than those of the layout. answers: how the
    tensors of an update become bytes, if not as those of a job. untrained: the layout of what goes down once to each client,
    and never up. statistics: the names of BatchNorm's running statistics.
    """

    codec: Codec
    layout: Layout
    mask_names: tuple[str, ...] = ()
    answers: Codec | None = None
    untrained: Layout = NOTHING
    statistics: tuple[str, ...] = ()

    def subnet_block(self, subnet: Subnet, known: Mask | None = None) -> bytes:
        """Encode a subnet: once, for many clients. Names outside the layout are private, and are left out."""
        return self.codec({name: subnet.params[name] for name in self.layout.shapes}, subnet.mask, known)

    def read_subnet(self, block: Piece, known: Mask | None = None) -> Subnet:
        """Return the subnet of a block of weights. Raises ValueError."""
        return Subnet(*_weights(block, self.layout, known))

    def untrained_block(self, params: Params) -> bytes:
        """Encode what is never trained: made once, sent to all newcomers."""
        return self.codec({name: params[name] for name in self.untrained.shapes}, {}, None)

    def splitting(self, untrained: Sequence[str]) -> Wire:
        """Return the same wire, on which those of these tensors that travel go down once to each client."""
        once = [name for name in untrained if name in self.layout.shapes]
        always = [name for name in self.layout.shapes if name not in once]
        return replace(self, layout=self.layout.only(always), untrained=self.layout.only(once)) if once else self

    def encode_job(self, job: Job, block: Piece, untrained: Piece = b"") -> Message:
        """Return a job as a message. block: its subnet, encoded. untrained: for newcomers, the tensors that nobody trains,
        encoded."""
        header: dict[str, object] = {"client": job.client, "round": job.round, "clock": job.clock, "seed": job.seed}
        if job.measure:
            header |= {"measure": job.measure, "about": job.about}
        if job.event is not None:
            header |= {"event": _fields(job.event), "events": job.events}
        if job.common is not None:
            header |= {COMMON: True}
        if untrained:
            header |= {"newcomer": True}
        blocks = [block, *([untrained] if untrained else []), *self._control_blocks(job.control, job.subnet.mask, header)]
        return framed(header, blocks if job.surviving is None else [*blocks, _survivors(job.surviving, job.subnet.mask)])

    def decode_job(self, message: Message, kept_mask: bytes = b"") -> Job:
        """Return the job, with a subnet of its own memory. kept_mask: that of the receiver. Raises ValueError on others."""
        with _sound():
            header, blocks = unframed(message)
            checked_job(header, len(self.layout.shapes))
            header["measure"] = tuple(header.get("measure", ()))
            header["event"] = _event(*header["event"]) if "event" in header else None
            known = self.mask_of(kept_mask)
            subnet = self.read_subnet(blocks.pop(0), known)
            if header.pop(COMMON, False):
                header["common"], subnet = subnet.mask, Subnet(subnet.params, known or self._whole())
            if "newcomer" in header:
                subnet = Subnet(subnet.params | _weights(blocks.pop(0), self.untrained, None)[0], subnet.mask)
            control = self._read_control(header, blocks, subnet.mask)
            surviving = _read_survivors(subnet.mask, *blocks) if blocks else None
            return Job(subnet=subnet, surviving=surviving, control=control, kept_mask=kept_mask, **header)

    def mask_of(self, bits: bytes) -> Mask | None:
        """Return a client's mask that was packed to bits; None if there are none."""
        return (
            unpack(bits, {name: self.layout.shapes[name] for name in self.mask_names or self.layout.masked}) if bits else None
        )

    def _whole(self) -> Mask:
        shapes = {name: self.layout.shapes[name] for name in self.layout.masked}
        return unpack(all_alive(shapes), shapes)

    def encode_update(self, update: Update, known: Mask) -> Message:
        """Return an update as a message. known: the mask that it is answered under (see `answered_under`)."""
        header = {"client": update.client, "examples": update.examples, "metrics": dict(update.metrics)}
        header |= {"evidence": list(update.evidence), "about": update.about}
        if update.logged:
            header |= {"logged": dict(update.logged)}
        if update.pruned:
            header |= {"pruned": True}
        blocks = [] if update.subnet is None else [self._answer().subnet_block(update.subnet, known)]
        blocks += self._control_blocks(update.control, known, header)
        cover = about(known, update.about)
        for name, values in update.evidence.items():
            covered, support = ({}, {}) if name in OF_CANDIDATES else (cover, _support(values, cover, update.about))
            blocks.append(self.codec(values, support, covered))
        return framed(header, blocks)

    def _answer(self) -> Wire:
        return self if self.answers is None else replace(self, codec=self.answers)

    def decode_update(self, message: Message, known: Mask) -> Update:
        """Return the update of a message. Raises ValueError on anything that is not an update under this mask."""
        with _sound():
            header, blocks = unframed(message)
            checked_update(header, len(self.layout.shapes))
            names = header.pop("evidence")
            trained = len(blocks) > len(names) + len(header.get(CONTROL, ()))
            subnet = self._read_answer(blocks.pop(0), known) if trained else None
            control = self._read_control(header, blocks, known)
            cover = about(known, header["about"])
            header["logged"] = {name: (how, float(value)) for name, (how, value) in header.get("logged", {}).items()}
            evidence = {name: self._read_evidence(name, block, cover) for name, block in zip(names, blocks, strict=True)}
            return Update(subnet=subnet, evidence=evidence, control=control, **header)

    def _read_answer(self, block: Piece, known: Mask) -> Subnet:
        """Return the subnet of an update, in the bits or the weights that were agreed on."""
        if self.answers is not bits:
            return self.read_subnet(block, known)
        if block[:1] != bytes([BITS]):
            raise ValueError("it has numbers where bits were agreed on")
        return Subnet(*decode(block, self.layout, known))

    def _read_evidence(self, name: str, block: Piece, cover: Mask) -> Params:
        """Return a piece of evidence, in float32. cover: the entries that it is about, unless it is about a candidate mask."""
        if name in OF_CANDIDATES:
            cover = {}
            shapes = {"loss": torch.Size([])} if name == LOSS else {name: self.layout.shapes[name] for name in self.statistics}
        else:
            shapes = {name: alive.shape for name, alive in cover.items()}
        layout = Layout(shapes, dict.fromkeys(shapes, torch.float32), tuple(cover))
        return _within(cover, *_weights(block, layout, cover))

    def _control_blocks(self, control: Params, known: Mask, header: dict[str, object]) -> list[bytes]:
        """Return the block of a control, if there is any; which tensors are in it is noted in the header."""
        if not control:
            return []
        order = list(self.layout.shapes)
        places, layout = [order.index(name) for name in control], self.layout.only(list(control))
        strangers = [name for name, tensor in control.items() if tensor.dtype != layout.dtypes[name]]
        if strangers:
            raise ValueError(f"a control has to be of the network's own types: {', '.join(strangers)}")
        header[CONTROL] = {C: places}
        mask = {name: known[name] for name in layout.masked}
        return [self.codec(control, mask, mask)]

    def _read_control(self, header: Json, blocks: list[memoryview], known: Mask) -> Params:
        """Return the control, taken from the front of these blocks, and its note from the header."""
        if CONTROL not in header:
            return {}
        order, note = list(self.layout.shapes), header.pop(CONTROL)
        layout = self.layout.only([order[place] for place in note[C]])
        cover = {name: known[name] for name in layout.masked}
        return _within(cover, *_weights(blocks.pop(0), layout, cover))


def _weights(block: Piece, layout: Layout, known: Mask | None) -> tuple[Params, Mask]:
    """Decode numbers. Raises ValueError also for an encoding as bits, which has no mask."""
    if block[:1] == bytes([BITS]):
        raise ValueError("it has bits where numbers were agreed on")
    return decode(block, layout, known)


def _within(cover: Mask, values: Params, mask: Mask) -> Params:
    """Return values that are sent of these entries at most. Raises ValueError for others."""
    for name, alive in mask.items():
        if alive is not cover[name] and bool((alive & ~cover[name]).any()):
            raise ValueError(f"it has values in {name} at entries that it was not asked for")
    return values


def _fields(event: PruneEvent) -> tuple[object, ...]:
    """Return what a client is told of an event: an initial pruning is never a client's own."""
    return event.round, event.density, event.swap, event.block


def _event(round: int, density: float, swap: float, block: list[int] | None) -> PruneEvent:
    return PruneEvent(round, density, swap, None if block is None else (block[0], block[1]))


@contextmanager
def _sound() -> Iterator[None]:
    """Raise ValueError for whatever a damaged message makes fail."""
    try:
        yield
    except (struct.error, LookupError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"not a message of this kind ({type(error).__name__}: {error})") from error


def answered_under(job: Job) -> Mask:
    """Return the mask that both ends have when the job is answered."""
    return job.subnet.mask if job.surviving is None else job.surviving


def _survivors(surviving: Mask, mask: Mask) -> bytes:
    """Return one bit for each living entry: whether it survives."""
    return pack({name: surviving[name][alive] for name, alive in mask.items()})


def _read_survivors(mask: Mask, bits: memoryview) -> Mask:
    stays = unpack(bytes(bits), {name: torch.Size([how_many(alive)]) for name, alive in mask.items()})
    return {name: torch.zeros_like(alive).masked_scatter(alive, stays[name]) for name, alive in mask.items()}


def about(mask: Mask, which: str) -> Mask:
    """Return the entries that evidence is about: the living, all, or the dead; `top` is about the dead, and mostly zero."""
    if which == "all":
        return {name: torch.ones_like(alive) for name, alive in mask.items()}
    return mask if which == "alive" else {name: ~alive for name, alive in mask.items()}


def _support(values: Params, cover: Mask, which: str) -> Mask:
    """Return the entries that are sent: where most are zero, only those that are not, with their places."""
    return {name: value != 0 for name, value in values.items()} if which == "top" else cover
