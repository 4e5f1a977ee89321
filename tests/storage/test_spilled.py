"""Masks beyond what memory may hold, and the file that a checkpoint is written to piece by piece."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fedprune.errors import ConfigError, RunError
from fedprune.federated.masks import PersonalMask
from fedprune.storage.checkpoint import load_state, save_state
from fedprune.storage.safetensors_writer import DTYPES, Rows, pieces
from fedprune.storage.spilled import Stored, beyond
from fedprune.types import Personal, State, Subnet


def masks(*values: int, length: int = 10) -> dict[int, Personal]:
    return {client: Personal(bytes([value]) * length, client, 0) for client, value in enumerate(values)}


def files(personal) -> set[int]:
    return {id(own.mask.file) for own in personal.values() if isinstance(own.mask, Stored)}


def test_masks_go_to_a_file_once_they_take_more_than_they_may(tmp_path):
    few = masks(1, 2, 3)
    assert beyond(few, 30, tmp_path) is few
    moved = beyond(few, 29, tmp_path)
    assert all(isinstance(own.mask, Stored) for own in moved.values())
    assert moved == few and few == masks(1, 2, 3)
    assert [bytes(own.mask) for own in moved.values()] == [bytes([v]) * 10 for v in (1, 2, 3)]
    assert list(moved) == list(few) and [own.events for own in moved.values()] == [0, 1, 2]
    assert os.listdir(tmp_path) == []  # the file has no name


def test_new_masks_are_appended_and_what_an_older_state_has_stays_valid(tmp_path):
    old = beyond(masks(1, 2, 3, 4), 0, tmp_path)
    newer = beyond(old | {0: Personal(b"\x09" * 10, 7)}, 0, tmp_path)
    assert files(newer) == files(old)
    assert bytes(newer[0].mask) == b"\x09" * 10 and bytes(old[0].mask) == b"\x01" * 10
    assert all(newer[client] == old[client] for client in (1, 2, 3))


def test_a_file_of_which_more_than_half_is_of_no_use_is_left_behind(tmp_path):
    states = [beyond(masks(1, 2), 0, tmp_path)]
    for value in range(3, 9):
        states.append(beyond(states[-1] | {0: Personal(bytes([value]) * 10)}, 0, tmp_path))
        lies_in = {os.fstat(own.mask.file.fileno()).st_size for own in states[-1].values()}
        assert len(lies_in) == 1 and lies_in <= {20, 30}  # two masks that are of use, and at most one that was
    assert [bytes(state[0].mask)[0] for state in states] == [1, 3, 4, 5, 6, 7, 8]


def test_a_checkpoint_holds_the_masks_and_loading_it_reads_none(tmp_path, differences):
    subnet = Subnet({"w": torch.rand(80)}, {"w": torch.ones(80, dtype=torch.bool)})
    state = State(subnet, subnet.params, subnet.params, personal=masks(1, 2, 3))
    path = tmp_path / "state.safetensors"
    save_state(replace(state, personal=beyond(state.personal, 0, tmp_path)), path)
    loaded = load_state(path)
    assert all(isinstance(own.mask, Stored) for own in loaded.personal.values())
    assert differences(loaded, state) == []
    assert load_file(path)["personal/masks"].tolist() == [[1] * 10, [2] * 10, [3] * 10]
    save_state(replace(state, personal=masks(7, 7, 7)), path)  # the next checkpoint, over the one that it lies in
    assert loaded.personal == state.personal
    assert load_state(path).personal == masks(7, 7, 7)


def test_a_checkpoint_without_its_masks_is_refused(tmp_path):
    subnet = Subnet({"w": torch.rand(80)}, {"w": torch.ones(80, dtype=torch.bool)})
    path = tmp_path / "state.safetensors"
    save_state(State(subnet, subnet.params, subnet.params, personal=masks(1, 2)), path)
    content = path.read_bytes().replace(b"personal/masks", b"personal/maskz")
    path.write_bytes(content.replace(b'"digest"', b'"before"'))  # as from before there were any
    with pytest.raises(RunError, match="there is no personal/masks"):
        load_state(path)


def test_a_run_whose_masks_are_on_disk_is_the_run_whose_masks_are_in_memory(tiny, play, differences, tmp_path):
    overrides = ("whose=personal", "how_often=gradual", "when.start=0.1", "when.stop=0.9", "rounds=6", "eval_every=2")
    experiment = tiny(*overrides)
    state, played = None, play(experiment)
    for expected, metrics in played:
        ((state, found),) = play(experiment, state=state, stop=expected.round)
        assert differences(state, expected) == []
        assert {k: v for k, v in found.items() if "time" not in k} == {k: v for k, v in metrics.items() if "time" not in k}
        state = replace(state, personal=beyond(state.personal, 0, tmp_path))
    assert len(state.personal) == 4 and all(isinstance(own.mask, Stored) for own in state.personal.values())


def test_memory_is_no_less_than_nothing():
    with pytest.raises(ConfigError, match="whose.memory_mb=-1 is what all masks may take in memory"):
        PersonalMask(memory_mb=-1)


def test_the_file_is_what_safetensors_reads(tmp_path):
    odd = {str(dtype): torch.arange(3).to(dtype) for dtype in DTYPES}  # three of each: nothing is aligned by luck
    tensors = odd | {"": torch.tensor(2.5), "none": torch.empty(0, 4), "turned": torch.rand(3, 5).T}
    tensors["again"] = tensors["turned"]
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"".join(pieces({**tensors, "rows": Rows(2, [b"ab", b"cd"])}, {"who": "me"})))
    found = load_file(path)
    assert found.pop("rows").tolist() == [[97, 98], [99, 100]]
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in tensors.items())
