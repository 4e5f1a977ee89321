"""Runs whose clients train in smaller networks: what they come to, where they run, and where they must not."""

from __future__ import annotations

import pytest
import torch

from fedprune import run_id
from fedprune.compaction import sparse_linear
from fedprune.compaction import train as compacted
from fedprune.compaction.train import Compacted
from fedprune.errors import ConfigError
from fedprune.experiment.build import build
from fedprune.storage.groups import grouped
from helpers.composed import TINY

FILTERS = (
    "what=filters_global",
    "what.layers=[conv,linear]",
    "what.skip=[last]",
    "what.min_per_layer=2",
    "criterion=filter_norm",
)
ONCE = ("when=before_training", "how_often=one_shot")
DURING = ("when.start=0.25", "when.stop=0.5", "how_often=gradual", "how_often.every=1", "rounds=4")
RUNS = {
    "from the start": (*FILTERS, *ONCE, "model=cnn_fedavg"),
    "while they train": (*FILTERS, *DURING, "model=cnn_fedavg"),
    "with batchnorm": (*FILTERS, *DURING, "model=vgg_small"),
    "batchnorm kept by clients": (*FILTERS, *DURING, "model=vgg_small", "federated.batchnorm=local"),
    "frozen batchnorm": (*FILTERS, *ONCE, "model=vgg_small", "federated.batchnorm=frozen"),
    "scaffold": (*FILTERS, *ONCE, "federated=scaffold", "local.optimizer.momentum=0"),
    "kept momentum, decay": (*FILTERS, *DURING, "federated.optimizer_state=kept", "local.optimizer.weight_decay=0.01"),
    "fedprox, clipped": (*FILTERS, *DURING, "local=fedprox", "local.clip_norm=1"),
    "adam": (*FILTERS, *ONCE, "local/optimizer=adam"),
    "personal": (*FILTERS, *DURING, "whose=personal", "local.epochs=2", "local.steps=null", "federated.clients=20"),
    "rewound": (*FILTERS, "when=after_training", "how_often=iterative", "rewind=init", "rounds=2"),
    "single weights": (*ONCE, "density=0.01"),
    "single weights, sparse layers": (*DURING, "density=0.1", "federated.optimizer_state=kept"),
}


@pytest.fixture
def fits(monkeypatch) -> list[int]:
    """Networks and sparse layers of any size pay; the value grows by a smaller network's parameters whenever a client trains
    in one."""
    seen: list[int] = []
    fit = Compacted.fit_smaller

    def counted(self, *args):
        seen.append(sum(p.numel() for p in self.small.net.live.parameters()))
        return fit(self, *args)

    monkeypatch.setattr(compacted, "PER_STEP", -1)
    monkeypatch.setattr(compacted, "PER_JOB", -1)
    monkeypatch.setattr(sparse_linear, "LEAST", 0)
    monkeypatch.setattr(Compacted, "fit_smaller", counted)
    return seen


@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_to_what_it_comes_to_under_masks(name, tiny, play, fits):
    small = play(tiny(*RUNS[name]))
    assert fits
    number = len(fits)
    masked = play(tiny(*RUNS[name], "local.compact=never"))
    assert len(fits) == number
    for (state, metrics), (other, others) in zip(small, masked, strict=True):
        assert all(torch.equal(alive, other.server.mask[n]) for n, alive in state.server.mask.items())
        assert {client: own.mask for client, own in state.personal.items()} == {
            c: own.mask for c, own in other.personal.items()
        }
        for n, value in state.server.params.items():
            torch.testing.assert_close(value, other.server.params[n], rtol=1e-3, atol=1e-5)
        for client, kept in state.kept.items():
            others_kept = grouped(other.kept[client])
            for group, tensors in grouped(kept).items():
                for n, value in tensors.items():
                    torch.testing.assert_close(value, others_kept[group][n], rtol=1e-3, atol=1e-5)
        assert metrics.keys() == others.keys()
        for key in ("train/loss", "flops/train", "wire/up_bytes", "wire/down_bytes", "density/weights"):
            assert metrics.get(key) == pytest.approx(others.get(key), rel=1e-3), key  # bytes: a loss may take a digit more


@pytest.mark.parametrize("name", ["while they train", "kept momentum, decay", "personal", "single weights, sparse layers"])
def test_processes_come_to_what_one_process_comes_to_bit_for_bit(name, tiny, play, fits, differences):
    serial = play(tiny(*RUNS[name]))
    assert fits
    processes = play(tiny(*RUNS[name], "executor=processes", "executor.workers=2"))
    for (state, _), (other, _) in zip(processes, serial, strict=True):
        assert differences(state, other) == []


DIGITS = ("data=digits", "model=lenet_300_100")
UNCHANGED = {
    "swat": (*FILTERS, *ONCE, "local/dropout=swat"),
    "ordered dropout": (*FILTERS, *ONCE, "local/dropout=ordered", "local.dropout.levels=[0.5,1.0]"),
    "a penalty": (*FILTERS, *ONCE, "local/penalty=group_lasso"),
    "error feedback": ("+experiment=feddip", *DIGITS),
    "sampled masks": ("+experiment=fedpm", *DIGITS),
    "evidence summed up": ("+experiment=prunefl", *DIGITS, "how_often.alone=0"),
    "held layers": (*FILTERS, *ONCE, "local.fixed=[fc1]"),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_where_it_could_differ_not_a_bit_does(name, compose, play, fits, differences):
    def run(*more: str):
        return play(build(*compose(*UNCHANGED[name], *TINY, *more)), stop=3)

    for (state, _), (other, _) in zip(run(), run("local.compact=never"), strict=True):
        assert differences(state, other) == []
    assert not fits


def test_small_jobs_are_trained_under_the_mask(tiny, play, monkeypatch):
    """Three batches of 16 on 8 x 8 pixels are over before a network is made for them."""
    monkeypatch.setattr(Compacted, "fit_smaller", lambda *args: pytest.fail("does not pay"))
    play(tiny(*RUNS["from the start"][:-1]))


def test_it_is_another_run_and_an_unknown_word_is_refused(assemble, tiny):
    assert run_id.folder_hash(assemble()[0]) != run_id.folder_hash(assemble("local.compact=never")[0])
    with pytest.raises(ConfigError, match=r"local.compact=always: type auto or never"):
        tiny("local.compact=always")
