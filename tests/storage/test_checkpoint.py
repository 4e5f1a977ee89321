"""A state goes to a file and back without losing a bit; a file that is not one is named; a full disk spares what was saved."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedprune.errors import RunError
from fedprune.storage import checkpoint
from fedprune.storage import replace as in_one_step
from fedprune.storage.checkpoint import NUMBERS, load_state, read, replace_file, save_state, save_ticket, write
from fedprune.types import ClientState, Params, ServerState, State, Subnet
from helpers.odd_networks import odd_tensors


def params(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(2, 3, 3, generator=generator),
        "a.b.bias": torch.tensor([-0.0, 1e-42, float("inf"), 3.0]),
        "bn.num_batches_tracked": torch.tensor(2**53 + 1),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "double": torch.randn(3, dtype=torch.float64, generator=generator),
        "empty": torch.zeros(0, 4),
    }


def kept(seed: int) -> ClientState:
    """A client's state with something in each of its parts; none of a layer's names is any help to tell them apart."""
    return ClientState(
        batchnorm={"control:bn.weight": torch.ones(3), "a/b": torch.zeros(1)},
        weights={"optimizer:0:conv.weight": params(seed)["conv.weight"]},
        optimizer={0: {"step": torch.tensor(3), "exp_avg": torch.ones(2)}, 11: {"exp_avg": torch.zeros(2)}},
        control={"conv.weight": params(seed + 5)["conv.weight"]},
        squared_gradients={"conv.weight": params(seed + 6)["conv.weight"]},
        mask=b"\x00\x05",
    )


def state(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    server, init = params(seed), params(seed + 1)
    mask = {"conv.weight": torch.rand(2, 3, 3, generator=generator) < 0.5, "half": torch.tensor([True, False] * 2 + [True])}
    return State(
        server=Subnet(server, mask),
        init=init,
        ticket=server,  # the same tensors under two names
        round=17,
        clock=3,
        events=2,
        anchors={0: init, 5: params(seed + 2)},
        server_state=ServerState(
            {"m": params(seed + 3), "v": params(seed + 4)}, control=params(seed + 5), common={0: b"\x01\x00", 12: b"\xff\x07"}
        ),
        kept={0: kept(seed), 12: ClientState(batchnorm={"bn.weight": torch.zeros(3)})},
        up_bytes=2**40 + 1,
        down_bytes=3,
        pruned=11,
        opened=True,
        candidate={name: ~alive for name, alive in mask.items()},
        stale={name: server[name] + 1 for name in mask},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "state.safetensors"


def test_a_state_comes_back_bit_for_bit(path, differences):
    save_state(state(), path)
    assert differences(load_state(path), state()) == []


def test_a_state_with_nothing_in_its_optional_parts_comes_back(path, differences):
    bare = State(Subnet(params(0), {}), init=params(0), ticket=params(0))
    save_state(bare, path)
    assert differences(load_state(path), bare) == []


def test_in_a_checkpoint_of_before_the_control_is_among_the_server_optimizers_buffers(path):
    v, c = params(3), params(4)
    groups = {"server": v, "init": v, "ticket": v, "momentum/v": v, "momentum/c": c}
    numbers = dict.fromkeys(NUMBERS, 0)
    write(groups, {"state": json.dumps(numbers)}, path)
    found = load_state(path).server_state
    assert (list(found.momentum), list(found.control), found.common) == (["v"], list(c), {})
    write(groups, {"state": json.dumps({"format": 2, **numbers})}, path)
    assert (list(load_state(path).server_state.momentum), load_state(path).server_state.control) == (["v", "c"], {})


EXCHANGES = ("criterion=rigl", "how_often=dynamic", "how_often.every=1", "when.start=0", "when.stop=1")


@pytest.mark.parametrize(
    ("part", "overrides"),
    [
        ("server_state", ("federated=fedadam", "rewind=early", "rewind.round=1", "when=after_training", "how_often=iterative")),
        ("kept", ("model=resnet20", "model.norm=batch", "federated.batchnorm=local", "local.steps=1", "rounds=2")),
        ("kept", ("local/optimizer=adam", "federated.optimizer_state=kept", "how_often=one_shot")),
        ("stale", ("federated.regrown=server", *EXCHANGES)),
    ],
    ids=["momentum and anchors", "kept BatchNorm", "kept optimizers", "stale values"],
)
def test_the_state_of_a_run_comes_back_bit_for_bit_and_goes_on_as_it_would_have(part, overrides, path, tiny, play, differences):
    experiment = tiny(*overrides)
    played = play(experiment, stop=3)
    reached = played[-2][0]
    assert getattr(reached, part) != getattr(State(reached.server, {}, {}), part)
    save_state(reached, path)
    loaded = load_state(path)
    assert differences(loaded, reached) == []
    (after, _), *_ = play(experiment, state=loaded, stop=loaded.round + 1)
    assert differences(after, played[-1][0]) == []


def test_tensors_that_do_not_lie_row_by_row_are_saved_too(path):
    """A network in channels_last, or with a transposed weight."""
    weights = {"conv": torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last), "t": torch.rand(2, 3).t()}
    save_state(State(Subnet(weights, {}), init=weights, ticket=weights), path)
    assert torch.equal(load_state(path).server.params["conv"], weights["conv"])
    assert torch.equal(load_state(path).init["t"], weights["t"])


def test_nothing_of_a_loaded_state_is_shared_with_another(path):
    save_state(state(), path)
    one, other = load_state(path), load_state(path)
    one.server.params["conv.weight"].zero_()
    assert torch.equal(other.server.params["conv.weight"], state().server.params["conv.weight"])
    assert torch.equal(one.ticket["conv.weight"], state().ticket["conv.weight"])


def test_saving_again_replaces_the_file_and_leaves_nothing_beside_it(path):
    save_state(state(), path)
    save_state(replace(state(), round=18), path)
    assert load_state(path).round == 18
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_holds_no_code(path):
    save_state(state(), path)
    assert path.read_bytes()[8:9] == b"{"  # safetensors: a length and JSON, then numbers
    assert b"pickle" not in path.read_bytes()


def test_a_ticket_is_a_mask_its_weights_and_where_it_comes_from(path):
    mask = state().server.mask
    save_ticket(params(0), mask, {"name": "lth", "seed": "3"}, path)
    groups, metadata = read(path)
    assert metadata["name"] == "lth" and metadata["seed"] == "3"
    assert torch.equal(groups["params"]["conv.weight"], params(0)["conv.weight"])
    assert torch.equal(groups["mask"]["half"], mask["half"])


def test_a_checkpoint_of_before_client_states_is_loaded(path, differences):
    """All that a client kept was one group, with prefixes; what is of the network and prunable is its weights."""
    save_state(replace(state(), kept={}), path)
    groups, metadata = read(path)
    half = torch.ones(5)
    bag = {"bn.weight": torch.ones(3), "x:y.weight": torch.zeros(3), "half": half, "optimizer:0:step": torch.tensor(2)}
    bag |= {"optimizer:11:exp_avg": half + 1, "control:conv.weight": half + 2, "accumulated:half": half + 3}
    neighbour = {"bn.weight": torch.ones(3), "half": half, "trained:mask": torch.tensor([5, 7], dtype=torch.uint8)}
    numbers = json.loads(metadata["state"]) | {"format": 2}
    checkpoint.write({**groups, "kept/3": bag, "kept/4": neighbour}, {"state": json.dumps(numbers)}, path)
    kept = {
        3: ClientState(
            batchnorm={"bn.weight": torch.ones(3), "x:y.weight": torch.zeros(3)},
            weights={"half": half},
            optimizer={0: {"step": torch.tensor(2)}, 11: {"exp_avg": half + 1}},
            control={"conv.weight": half + 2},
            squared_gradients={"half": half + 3},
        ),
        4: ClientState(weights={"bn.weight": torch.ones(3), "half": half}, mask=b"\x05\x07"),
    }
    assert differences(load_state(path), replace(state(), kept=kept)) == []


# --- damage ----------------------------------------------------------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif how == "garbage":
        path.write_bytes(os.urandom(1000))
    elif how == "header":
        path.write_bytes(content[:20] + b"\x00\xff" + content[22:])
    elif how == "another file of tensors":
        save_file({"weight": torch.ones(3)}, path)
    elif how == "a partition":
        save_file({"owner": torch.ones(3)}, path, {"order": json.dumps(["a/owner"])})
    elif how == "a ticket":
        save_ticket(params(0), {}, {"name": "x"}, path)
    elif how == "a folder":
        path.unlink()
        path.mkdir()


DAMAGE = ["empty", "torn", "garbage", "header", "another file of tensors", "a partition", "a ticket", "a folder"]


@pytest.mark.parametrize("how", DAMAGE)
def test_a_file_that_is_no_checkpoint_is_named_with_what_to_do(how, path):
    save_state(state(), path)
    spoil(path, how)
    with pytest.raises(RunError) as caught:
        load_state(path)
    assert str(path) in str(caught.value)
    assert "remove it, or run with force=true" in str(caught.value)


def test_a_missing_file_is_named_too(path):
    with pytest.raises(RunError, match="state.safetensors"):
        load_state(path)


# --- a full disk -----------------------------------------------------------------------------------------------------------


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "open", "replace"])
def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_to_do(call, path, monkeypatch, differences):
    save_state(state(), path)
    if call == "open":
        monkeypatch.setattr(in_one_step, "open", full, raising=False)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(RunError) as caught:
        save_state(replace(state(), round=18), path)
    monkeypatch.undo()
    message = str(caught.value)
    assert str(path) in message
    assert "No space left on device" in message
    assert "make room, and the same command resumes" in message
    assert differences(load_state(path), state()) == []
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_device_that_is_really_full_is_reported_and_nothing_is_lost(path, differences):
    save_state(state(), path)
    path.with_name(path.name + ".partial").symlink_to("/dev/full")
    with pytest.raises(RunError, match="No space left on device"):
        save_state(replace(state(), round=18), path)
    assert differences(load_state(path), state()) == []


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot write .*state.safetensors"):
        save_state(state(), tmp_path / "file" / "state.safetensors")


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    """Until the last step the old content is there, and that step is one rename."""
    path, seen = tmp_path / "file", []
    replace_file(path, b"old")

    def rename(source: Path, target: Path) -> None:
        seen.append((Path(source).read_bytes(), Path(target).read_bytes()))

    monkeypatch.setattr(os, "replace", rename)
    replace_file(path, b"new")
    assert seen == [(b"new", b"old")]


def test_content_is_on_the_disk_before_it_replaces_the_old(tmp_path, monkeypatch):
    order: list[str] = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append("fsync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("replace"), rename(*paths)))
    replace_file(tmp_path / "file", b"new")
    assert order[:2] == ["fsync", "replace"]


def test_tensors_of_every_type_and_shape_come_back_bit_for_bit(path, equal):
    tensors = odd_tensors()
    save_state(State(Subnet(tensors, {}), init=tensors, ticket=tensors, server_state=ServerState({"v": tensors})), path)
    found = load_state(path)
    for params in (found.server.params, found.init, found.ticket, found.server_state.momentum["v"]):
        assert equal(params, tensors)
        assert {name: value.shape for name, value in params.items()} == {name: value.shape for name, value in tensors.items()}
