"""A ticket from anybody is bounded by its own file before anything is built, and what is in it is printed safely."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedprune.config import CONF
from fedprune.errors import DataError
from fedprune.storage.checkpoint import save_ticket
from fedprune.ticket.export import load_network
from fedprune.ticket.model import model_of
from fedprune.ticket.read import load_ticket

CONFIG = {"_target_": "fedprune.models.mlp.mlp", "hidden": [4]}
NETWORK = {"option": "mlp", "shape": [3], "classes": 2, "config": CONFIG}
PARAMS = {"fc1.weight": torch.ones(4, 3), "fc1.bias": torch.ones(4), "fc2.weight": torch.ones(2, 4), "fc2.bias": torch.ones(2)}


def ticket(folder: Path, network: object = NETWORK, **metadata: str) -> Path:
    path = folder / "ticket.safetensors"
    save_ticket(PARAMS, {}, {"axes": "{}", "name": "x", "network": json.dumps(network), **metadata}, path)
    return path


def test_a_sound_ticket_is_read_and_built(tmp_path):
    assert load_network(ticket(tmp_path), [CONF]).net is not None


NAMES = json.dumps([f"params/{name}" for name in PARAMS])
METADATA = {
    "300,000 repeated names": ({"order": json.dumps(["params/fc1.bias"] * 300_000)}, "its order is not a list of its tensors"),
    "a name twice": ({"order": NAMES[:-1] + ', "params/fc1.bias"]'}, "its order is not a list of its tensors, each once"),
    "a name that is not there": ({"order": '["params/other"]'}, "its order is not a list of its tensors"),
    "numbers for names": ({"order": "[1, 2]"}, "its order is not a list of its tensors"),
    "an object for names": ({"order": "{}"}, "its order are a dict, and no list"),
    "nothing for names": ({"order": "null"}, "its order are a NoneType, and no list"),
    "strange pairs": ({"complex": '[["a"]]'}, "its complex is not a list of its tensors"),
    "nested names": ({"order": "[" * 100_000}, "its order are not JSON"),
    "a list of axes": ({"axes": "[1]"}, "its axes are a list, and no dict"),
    "an axis that is a number": ({"axes": '{"what": 1}'}, "its axes are not names"),
    "nested axes": ({"axes": '{"a":' * 50_000}, "its axes are not JSON"),
    "a list for a network": ({"network": "[]"}, "its network are a list, and no dict"),
    "a number for inputs": ({"inputs": "1e999"}, "its inputs are a float, and no dict"),
    "much metadata": ({"note": "x" * 2**25}, "more than 16777216 bytes of metadata"),
}


@pytest.mark.parametrize("how", METADATA)
def test_metadata_that_no_run_writes_is_refused_at_once(how, tmp_path):
    changed, told = METADATA[how]
    path = tmp_path / "ticket.safetensors"
    tensors = {f"params/{name}": tensor for name, tensor in PARAMS.items()}
    save_file(tensors, path, {"order": NAMES, "axes": "{}", **changed})
    started = time.perf_counter()
    with pytest.raises(DataError) as caught:
        load_ticket(path)
    assert told in str(caught.value) and time.perf_counter() - started < 5


DEEP: object = 1
for _ in range(100):
    DEEP = [DEEP]

NETWORKS = {
    "classes": (NETWORK | {"classes": 10**9}, "its classes is 1000000000"),
    "classes as text": (NETWORK | {"classes": "2"}, "2 classes"),
    "no classes": (NETWORK | {"classes": 0}, "0 classes"),
    "a truth value": (NETWORK | {"classes": True}, "True classes"),
    "a shape": (NETWORK | {"shape": [10**9, 10**9]}, "1000000000"),
    "a shape of texts": (NETWORK | {"shape": "123"}, "is of shape"),
    "a long shape": (NETWORK | {"shape": [1] * 9}, "is of shape"),
    "units": (NETWORK | {"config": CONFIG | {"hidden": [10**9]}}, "its config.hidden.0 is 1000000000"),
    "an endless number": (NETWORK | {"config": CONFIG | {"x": float("inf")}}, "its config.x is inf"),
    "layers": (NETWORK | {"config": CONFIG | {"hidden": [1] * 20_000}}, "its config.hidden has 20000 items"),
    "depth": (NETWORK | {"config": CONFIG | {"x": DEEP}}, "is nested more than 20 levels deep"),
}


@pytest.mark.parametrize("how", NETWORKS)
def test_a_network_beyond_its_file_is_refused_before_it_is_made(how, tmp_path):
    network, told = NETWORKS[how]
    with pytest.raises(DataError) as caught:
        model_of(load_ticket(ticket(tmp_path, network)))
    assert told in str(caught.value)


def test_units_that_are_small_alone_and_large_together_are_refused_without_memory_for_them(tmp_path):
    # 3 x 16,000 + 99 x 16,000^2 + 16,000 x 2 weights and 100 x 16,000 + 2 biases would be 101 GB.
    path = ticket(tmp_path, NETWORK | {"config": CONFIG | {"hidden": [16_000] * 100}})
    with pytest.raises(DataError, match="its network has 25345680002 parameters, and its tensors 26 numbers"):
        load_network(path, [CONF])


def test_export_resolves_no_environment_of_the_files_choosing(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_MINE", "hunter2")
    for value in ("${oc.env:SECRET_OF_MINE}", "x${oc.env:SECRET_OF_MINE}", ["${oc.env:SECRET_OF_MINE}"]):
        path = ticket(tmp_path, NETWORK | {"config": CONFIG | {"hidden": value}})
        with pytest.raises(DataError, match="has an interpolation") as caught:
            load_network(path, [CONF])
        assert "hunter2" not in str(caught.value)


def test_escape_sequences_in_a_ticket_are_shown_and_not_obeyed(tmp_path, ticket_command):
    path = ticket(tmp_path, name="\x1b[2Jred\x07", seed="\x9b31m")
    tensors = {"fc\x1b[31m.weight": torch.ones(2, 2)}
    other = tmp_path / "other.safetensors"
    save_ticket(tensors, {}, {"axes": '{"model": "\\u001b[2J"}'}, other)
    for found in (ticket_command("show", path), ticket_command("show", other)):
        told = (found[1] + found[2]).replace("\n", "")
        assert told.isprintable(), repr(told)
    with pytest.raises(DataError, match="its order is not a list of its tensors"):
        load_ticket(other)
