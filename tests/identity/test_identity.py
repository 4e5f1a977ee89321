"""Which runs are one run: whatever may change a result is in the identity, and what cannot is not."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import open_dict

from fedprune.data import cache, sources
from fedprune.data.datasets import Dataset
from fedprune.data.sources import FASHION_MNIST, unverified
from fedprune.federated.client.batched import Batched
from fedprune.run_id import folder_hash

TINY = (
    *("rounds=2", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "executor=serial", "density=0.3", "logger=none", "how_often=one_shot", "device=cpu"),
)

OF_THEIR_OWN = """
from pathlib import Path
import torch
from fedprune.data.datasets import Dataset

def shaded(root):
    shade = int((Path(root) / "shade").read_text())
    x, y = torch.full((80, 1, 4, 4), shade, dtype=torch.uint8), torch.arange(80) % 2
    return Dataset("shaded", x, y, x[:10], y[:10], classes=2, mean=(0.0,), std=(1.0,))
"""


@pytest.fixture
def identity(assemble):
    """identity(*overrides) -> the hash of the run's identity."""
    return lambda *overrides: folder_hash(assemble(*TINY, *overrides)[0])


def test_data_of_ones_own_from_another_root_are_another_run(command, outputs, monkeypatch):
    """The loader reads what lies in the root: 3 in A, 200 in B. With the same networks and batches, other losses come out."""
    outputs.parent.joinpath("theirs.py").write_text(OF_THEIR_OWN)
    monkeypatch.syspath_prepend(outputs.parent)
    for name, shade in (("A", 3), ("B", 200)):
        Path(name).mkdir()
        Path(name, "shade").write_text(str(shade))
        assert command(*TINY, "data._target_=theirs.shaded", f"data.root={name}").rc == 0
    losses = {json.loads(path.read_text())["metrics"]["test/loss"] for path in outputs.glob("*/*/summary.json")}
    assert len(losses) == 2
    assert "already done" in command(*TINY, "data._target_=theirs.shaded", "data.root=A").out
    monkeypatch.setenv("FEDPRUNE_DATA", "B")
    assert folder_of("B", outputs) != folder_of("A", outputs)


def folder_of(root: str, outputs: Path) -> Path:
    (found,) = (p.parent for p in outputs.glob("*/*/run.json") if json.loads(p.read_text())["config"]["data"]["root"] == root)
    return found


def test_a_value_from_the_environment_counts_with_what_it_is(compose, monkeypatch):
    config, hashes = compose()[0], set()
    config.local.optimizer.lr = "${oc.decode:${oc.env:RATE}}"
    for value in ("0.1", "0.2", "0.1"):
        monkeypatch.setenv("RATE", value)
        hashes.add(folder_hash(config))
    assert len(hashes) == 2
    assert folder_hash(compose("local.optimizer.lr=0.1")[0]) in hashes  # the same value, typed


@pytest.mark.parametrize("left_out", ["executor.workers", "checkpoint_every", "data.root"])
def test_what_refers_to_a_key_that_is_left_out_counts_with_its_value(left_out, compose):
    """local.steps=${executor.workers} trains as long as there are workers; digits are the same wherever data.root is."""
    referring = ("executor=processes", f"+model.option=${{{left_out}}}")
    three, four = (folder_hash(compose(*referring, f"{left_out}={number}")[0]) for number in (3, 4))
    assert three != four


def test_a_run_in_which_nobody_prunes_alone_is_the_one_of_before_there_was_the_key(identity, assemble):
    config, _ = assemble(*TINY, "how_often=dynamic", "criterion=rigl")
    with open_dict(config):
        del config.how_often["alone"]
    assert folder_hash(config) == identity("how_often=dynamic", "criterion=rigl")
    assert folder_hash(config) != identity("how_often=dynamic", "criterion=rigl", "how_often.alone=20")


def test_augmentation_counts_and_a_run_without_is_the_one_of_before_there_was_the_key(identity, assemble):
    config, _ = assemble(*TINY)
    assert "augment" in config.data
    with open_dict(config.data):
        del config.data["augment"]
    assert folder_hash(config) == identity() == identity("data/augment=none")
    augmented = {identity("data/augment=crop_flip"), identity("data/augment=crop_flip", "data.augment.padding=2")}
    assert len({identity(), *augmented}) == 3


def test_what_rounds_in_another_way_is_another_run_and_what_gives_the_same_bits_is_not(identity):
    assert len({identity(), *(identity(f"executor={name}") for name in ("auto", "processes", "ray"))}) == 1
    assert identity("executor=processes", "executor.workers=3") == identity()
    assert len({identity(), identity("executor=batched"), identity("executor=batched", "executor.at_once=2")}) == 3


def test_who_shares_an_entry_counts_only_where_clients_keep_values_of_their_own(identity, assemble):
    """So runs of personal masks that were finished before there was such a key are found."""
    config = assemble(*TINY, "whose=personal")[0]
    with open_dict(config):
        del config.whose.common
    assert folder_hash(config) == identity("whose=personal")
    own = ("whose=personal", "whose.uncommon=own")
    assert identity(*own, "whose.common=all") != identity(*own)


def test_a_gpu_is_another_run_and_there_auto_is_cuda(identity, monkeypatch):
    """As Experiment.executor has it: on a GPU auto trains clients as one model, and the others one after the other."""
    on_cpu = identity()
    monkeypatch.setattr("fedprune.device.chosen", lambda name: "cuda:1" if name == "auto" else name)
    hashes = {name: identity("device=auto", f"executor={name}") for name in ("auto", "cuda", "serial", "processes", "ray")}
    assert hashes["auto"] == hashes["cuda"] == identity("device=cuda", "executor=batched")
    assert hashes["serial"] == hashes["processes"] == hashes["ray"]
    assert len({on_cpu, hashes["auto"], hashes["serial"]}) == 3
    assert identity() == on_cpu


class Together(Batched):
    """An executor of somebody's own, which is what it is by what it declares and not by its name."""


def test_an_executor_of_ones_own_is_taken_at_its_word(identity):
    target = f"executor._target_={__name__}.{Together.__name__}"
    assert identity(target, "+executor.at_once=32") == identity("executor=batched")
    assert identity("executor._target_=nowhere.at_all") == identity()  # build says that there is none


def test_a_folder_that_is_named_by_hand_does_not_hand_back_the_numbers_of_another_run(command, outputs):
    """hydra.run.dir has no hash in it: the folder is another run's, done or half done, and stays that."""
    assert command(*TINY, "hydra.run.dir=outputs/mine/one").rc == 0
    one = outputs / "mine" / "one"
    before = {path: path.read_bytes() for path in one.rglob("*") if path.is_file()}
    assert "already done" in command(*TINY, "hydra.run.dir=outputs/mine/one").out
    other = command(*TINY, "hydra.run.dir=outputs/mine/one", "seed=1")
    assert other.rc == 1
    assert "outputs/mine/one holds another run" in other.err and "force=true" in other.err
    assert {path: path.read_bytes() for path in one.rglob("*") if path.is_file()} == before
    (one / "summary.json").unlink()
    assert "holds another run" in command(*TINY, "hydra.run.dir=outputs/mine/one", "seed=1").err
    assert command(*TINY, "hydra.run.dir=outputs/mine/one", "seed=1", "force=true").rc == 0
    assert json.loads((one / "run.json").read_text())["seed"] == 1


# --- data sets of ours -----------------------------------------------------------------------------------------------------


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """archives(folder) -> Fashion-MNIST's four files there, as if they were the official ones."""
    monkeypatch.setitem(vars(FASHION_MNIST), "system", None)
    content = {file.name: gzip.compress(file.name.encode(), mtime=0) for file in FASHION_MNIST.files}
    md5 = {name: hashlib.md5(bytes(data)).hexdigest() for name, data in content.items()}
    official = tuple(replace(file, md5=md5[file.name]) for file in FASHION_MNIST.files)
    monkeypatch.setitem(vars(FASHION_MNIST), "files", official)

    def place(folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name, data in content.items():
            (folder / name).write_bytes(data)
        return folder

    return place


def test_official_archives_are_the_same_data_wherever_they_lie(archives, tmp_path, identity):
    here, there = archives(tmp_path / "here"), archives(tmp_path / "there" / "fashion_mnist").parent
    hashes = {identity("data=fashion_mnist", f"data.root={root}") for root in (here, there, tmp_path / "to be downloaded")}
    assert len(hashes) == 1


@pytest.mark.parametrize("how", ["packed again", "unpacked"])
def test_files_that_may_hold_anything_are_what_they_hold(how, archives, tmp_path, identity):
    here, there = archives(tmp_path / "here"), archives(tmp_path / "there")
    assert unverified(FASHION_MNIST, str(there)) == []
    changed = there / FASHION_MNIST.files[1].name
    if how == "unpacked":
        (there / FASHION_MNIST.files[1].unpacked).write_bytes(b"labels")
    else:
        changed.write_bytes(gzip.compress(b"other labels"))
    assert unverified(FASHION_MNIST, str(there)) != []
    assert identity("data=fashion_mnist", f"data.root={there}") != identity("data=fashion_mnist", f"data.root={here}")


def test_what_the_system_has_installed_does_not_depend_on_the_root(archives, tmp_path, monkeypatch):
    monkeypatch.setitem(vars(FASHION_MNIST), "system", str(archives(tmp_path / "system")))
    assert unverified(FASHION_MNIST, str(tmp_path / "empty")) == []
    (tmp_path / "mine").mkdir()
    for file in FASHION_MNIST.files:
        (tmp_path / "mine" / file.unpacked).write_bytes(b"mine")
    mine = [tmp_path / "mine" / file.unpacked for file in FASHION_MNIST.files]
    assert unverified(FASHION_MNIST, str(tmp_path / "mine")) == mine


def test_embedded_data_do_not_depend_on_the_root(identity):
    assert identity("data.root=/a") == identity("data.root=/b") == identity()


@pytest.mark.parametrize("name", ["mnist", "mnist_10k", "fashion_mnist", "cifar10", "cifar100", "shakespeare", "watch"])
def test_a_root_with_nothing_in_it_is_as_good_as_another(name, identity, tmp_path):
    assert identity(f"data={name}", f"data.root={tmp_path}") == identity(f"data={name}", f"data.root={tmp_path}/other")


# --- what was read before --------------------------------------------------------------------------------------------------


def test_two_loaders_of_the_same_files_do_not_get_what_the_other_has_read(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("")
    source = sources.Source("theirs", (sources.File("x", "", unpacked="y"),))

    def load(root: str, shade: int) -> Dataset:
        x = torch.full((2, 1, 2, 2), shade, dtype=torch.uint8)
        return Dataset("theirs", x, torch.arange(2), x, torch.arange(2), classes=2, mean=(0.0,), std=(1.0,))

    def one(root: str) -> Dataset:
        return load(root, 1)

    def two(root: str) -> Dataset:
        return load(root, 2)

    first, second = (cache.cached(source, Dataset)(loader) for loader in (one, two))
    assert [int(loader(str(tmp_path)).x.max()) for loader in (first, second, first)] == [1, 2, 1]
