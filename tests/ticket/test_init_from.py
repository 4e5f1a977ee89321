"""Runs that start from weights that were trained elsewhere; a file that does not fit is refused by name, with what to type."""

from __future__ import annotations

import logging
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.utils import prune

from fedprune.command.words import arguments
from fedprune.errors import ConfigError, DataError, Incompatible
from fedprune.models.lenet import lenet_300_100
from fedprune.pruning.mask import count
from fedprune.run_id import folder_hash
from fedprune.ticket import load_ticket


def net(classes: int = 10, seed: int = 7):
    torch.manual_seed(seed)
    return lenet_300_100((1, 8, 8), classes)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "pretrained.pt"


def started(experiment):
    executor = experiment.executor()
    try:
        return experiment.loop(executor).start()
    finally:
        executor.close()


def of_lightning(state):
    return {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()} | {"metric.total": torch.ones(1)}}


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (lambda state: state, "tensors"),
        (lambda state: {"epoch": 3, "state_dict": state}, "found under 'state_dict'"),
        (lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}}, "names without 'module.'"),
        (of_lightning, "without metric.total, which is not below it"),
        (lambda state: {f"_orig_mod.net.{name}": tensor for name, tensor in state.items()}, "names without 'net.'"),
        (lambda state: {name: tensor.half().float() for name, tensor in state.items()}, "tensors"),
    ],
)
def test_a_state_dict_is_found_in_what_training_scripts_save(saved, said, file, tiny, equal, caplog):
    state = {name: tensor.half().float() for name, tensor in net().state_dict().items()}  # so that halves lose nothing
    torch.save(saved(state), file)
    with caplog.at_level(logging.INFO):
        experiment = tiny(f"init_from.path={file}")
    assert said in caplog.text
    first = started(experiment)
    assert equal(first.server.params, state) and equal(first.init, state)
    assert count(first.server.mask) == 266_200 - (784 - 64) * 300  # nothing is dead; 64 inputs instead of 784


def test_safetensors_of_half_precision_are_read(tmp_path, tiny):
    halves = {name: tensor.half() for name, tensor in net().state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    params = started(tiny(f"init_from.path={tmp_path / 'half.safetensors'}")).server.params
    assert all(params[name].dtype == torch.float32 and torch.equal(params[name].half(), halves[name]) for name in halves)


def test_it_is_trained_and_rewound_to(file, tiny, play, equal):
    torch.save(net().state_dict(), file)
    options = ("when=after_training", "how_often=one_shot", "rewind=init", "rounds=1")
    last = play(tiny(f"init_from.path={file}", *options))[-1][0]
    alive = last.server.mask
    assert all(torch.equal(last.ticket[name], net().state_dict()[name] * alive[name]) for name in alive)


def pruned():
    """A network of which torch.nn.utils.prune has taken half of fc1."""
    dense = net()
    prune.l1_unstructured(dense.fc1, "weight", amount=0.5)
    return dense


def test_a_mask_of_torch_prune_is_used_if_asked_for(file, tiny, caplog):
    torch.save(pruned().state_dict(), file)
    with caplog.at_level(logging.INFO):
        dense = started(tiny(f"init_from.path={file}")).server
    assert "type init_from.mask=use" in caplog.text
    masked = started(tiny(f"init_from.path={file}", "init_from.mask=use")).server
    assert torch.equal(masked.params["fc1.weight"], pruned().fc1.weight) and dense.mask["fc1.weight"].all()
    assert torch.equal(dense.params["fc1.weight"], masked.params["fc1.weight"])  # the weights that it computes with
    assert torch.equal(masked.mask["fc1.weight"], pruned().fc1.weight_mask.bool())


def test_other_classes_take_a_fresh_head(file, tiny):
    torch.save(net(classes=5).state_dict(), file)
    with pytest.raises(Incompatible, match=r"fc3.weight is 5x100 there, 10x100 here.*: type init_from.head=fresh$"):
        tiny(f"init_from.path={file}")
    experiment = tiny(f"init_from.path={file}", "init_from.head=fresh")
    params, fresh = started(experiment).server.params, experiment.net.state_dict()
    assert torch.equal(params["fc2.weight"], net(classes=5).fc2.weight)
    assert torch.equal(params["fc3.weight"], fresh["fc3.weight"])


def test_what_does_not_fit_is_named(file, tiny):
    state = net().state_dict()
    state["fc1_1.weight"] = state.pop("fc1.weight")
    state["fc2.weight"] = torch.ones(100, 7)
    torch.save(state | {f"extra{number}.bias": torch.ones(1) for number in range(6)}, file)
    with pytest.raises(Incompatible) as refused:
        tiny(f"init_from.path={file}")
    text = str(refused.value)
    assert "does not fit model=lenet_300_100 on data=digits" in text
    assert "1 missing in the file (fc1.weight (nearest there: fc1_1.weight))" in text
    assert "7 unexpected in the file (fc1_1.weight, extra0.bias, extra1.bias, extra2.bias, extra3.bias and 2 more)" in text
    assert "1 of another shape (fc2.weight is 100x7 there, 100x300 here)" in text and "choose the model=NAME" in text


class Evil:
    """Leaves a trace if it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"fc1.weight": torch.ones(1), "epoch": "three"}}, "epoch \\(str\\).*torch.save\\(net.state_dict\\(\\)"),
        ([torch.ones(1)], "holds a list and no state_dict"),
        ({}, "no state_dict"),
        (Evil(), "holds more than tensors, and none of it is run.*torch.save\\(net.state_dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(content, said, file, tiny, capsys):
    torch.save(content, file)
    with pytest.raises(ConfigError, match=said):
        tiny(f"init_from.path={file}")
    assert "unpickled" not in capsys.readouterr().out


def test_damaged_and_missing_files_are_refused(file, tmp_path, tiny):
    with pytest.raises(ConfigError, match=r"there is no such file: type init_from=FILE"):
        tiny(f"init_from.path={file}")
    with pytest.raises(ConfigError, match=rf"is a folder.*ticket={tmp_path}"):
        tiny(f"init_from.path={tmp_path}")
    torch.save(net().state_dict(), file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="damaged"):
        tiny(f"init_from.path={file}")
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match="torch.save"):
        tiny(f"init_from.path={file}")


def test_entries_that_are_not_numbers_are_refused(file, tiny):
    state = net().state_dict()
    state["fc1.bias"][3] = torch.nan
    torch.save(state, file)
    with pytest.raises(ConfigError, match=r"not numbers \(NaN or infinite\) in fc1.bias"):
        tiny(f"init_from.path={file}")


def test_keys_are_checked(file, tiny):
    torch.save(net().state_dict(), file)
    with pytest.raises(ConfigError, match="init_from.head=new: choose one of keep, fresh"):
        tiny(f"init_from.path={file}", "init_from.head=new")
    with pytest.raises(ConfigError, match="there is none: type init_from=FILE"):
        tiny("init_from.mask=use")
    with pytest.raises(Incompatible, match="no mask of torch.nn.utils.prune: type init_from.mask=ignore"):
        tiny(f"init_from.path={file}", "init_from.mask=use")
    with pytest.raises(ConfigError, match="starts from one: set one of them to null"):
        tiny(f"init_from.path={file}", "ticket.path=x.safetensors")


def test_a_state_dict_given_as_a_ticket_says_what_to_type(file, tmp_path):
    torch.save(net().state_dict(), file)
    with pytest.raises(DataError, match=rf"is a state_dict and not a ticket of fedprune: type init_from={file}"):
        load_ticket(file)
    assert arguments([f"init_from={file}"]) == [f'init_from.path="{file}"'] and arguments(["init_from=no"]) == [
        "init_from.path=no"
    ]


def test_a_run_is_another_one_with_other_weights_and_the_same_in_another_place(file, tmp_path, compose):
    torch.save(net().state_dict(), file)
    hashes = [folder_hash(compose(f"init_from.path={file}")[0])]
    file.rename(tmp_path / "moved.pt")
    hashes.append(folder_hash(compose(f"init_from.path={tmp_path / 'moved.pt'}")[0]))
    torch.save(net(seed=8).state_dict(), tmp_path / "moved.pt")
    hashes += [folder_hash(compose(f"init_from.path={tmp_path / 'moved.pt'}")[0]), folder_hash(compose()[0])]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3
