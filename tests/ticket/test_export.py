"""What is exported gives the outputs of the network that was trained; checkpoints of torch's own pruning go both ways."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

from fedprune.compaction.resize import resize
from fedprune.config import CONF
from fedprune.errors import ConfigError, DataError
from fedprune.models.cnn import cnn_small
from fedprune.models.resnet import resnet20
from fedprune.storage.checkpoint import load_state, save_ticket
from fedprune.ticket.export import Network, export, load_network
from fedprune.ticket.read import load_ticket
from fedprune.ticket.torch_prune import from_torch_prune, to_torch_prune
from fedprune.types import Subnet

pytestmark = pytest.mark.slow

TINY = (
    *("rounds=1", "federated.clients=4", "federated.cohort=2", "partition=iid", "local.epochs=null", "local.steps=2"),
    *("local.batch_size=16", "logger=none", "executor=serial", "local.optimizer.lr=0.5"),
)
FILTERS = ("model=cnn_fedavg", "what=filters_per_layer", "density=0.5", "when=before_training", "how_often=one_shot")


@pytest.fixture
def run_folder(command, folder) -> Path:
    """A finished run with half of its filters, on 8x8 images."""
    result = command(*TINY, *FILTERS)
    assert result.rc == 0, result.text
    return folder()


@pytest.fixture
def exported(ticket_command):
    """exported(*arguments) -> (exit status, out, err) of `python -m fedprune.ticket export`."""
    return functools.partial(ticket_command, "export", "--untimed")


def outputs(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net.eval()(x)


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def onnx_outputs(path: Path, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"inputs": x.numpy()})[0])


@pytest.mark.parametrize("compacted", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("size", [1, 5])
def test_a_trained_network_gives_the_same_outputs_as_onnx(compacted, size, run_folder, exported, tmp_path):
    trained = load_network(run_folder, [CONF])
    rc, out, err = exported(run_folder, "--to", tmp_path / "new" / "model.onnx", *["--compact"] * compacted)
    assert rc == 0, err
    assert "inputs: 1x8x8, (x - mean) / std" in out
    x = inputs(size, 1, 8, 8)
    torch.testing.assert_close(onnx_outputs(tmp_path / "new" / "model.onnx", x), outputs(trained.net, x), rtol=1e-4, atol=1e-5)


def test_mean_std_and_class_names_travel_with_the_network(run_folder, exported, tmp_path):
    """Of digits mean and deviation are known, and the classes have no names; a ticket from before has neither."""
    onnx = pytest.importorskip("onnx")
    rc, out, _ = exported(run_folder, "--to", tmp_path / "m.onnx", "--compact")
    assert rc == 0 and "mean 4.87791, std 6.01361 of pixels in 0..16; of pixels in 0..1 mean 0.30487, std 0.375851" in out
    props = {prop.key: json.loads(prop.value) for prop in onnx.load(str(tmp_path / "m.onnx")).metadata_props}
    assert props == {"mean": [4.877912], "std": [6.013614], "range": [0, 16]}
    ticket = load_ticket(run_folder)
    named = json.dumps({"mean": [1.0, 2.0], "std": [3.0, 4.0], "class_names": ["cat", "dög"]})
    save_ticket(ticket.params, ticket.mask, {**ticket.provenance, "inputs": named}, tmp_path / "named.safetensors")
    assert exported(tmp_path / "named.safetensors", "--to", tmp_path / "m.onnx")[0] == 0
    props = {prop.key: json.loads(prop.value) for prop in onnx.load(str(tmp_path / "m.onnx")).metadata_props}
    assert props == json.loads(named)
    exported(tmp_path / "named.safetensors", "--to", tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["class_names"]) == ["cat", "dög"]
    before = {key: value for key, value in ticket.provenance.items() if key != "inputs"}
    save_ticket(ticket.params, ticket.mask, before, tmp_path / "before.safetensors")
    rc, out, _ = exported(tmp_path / "before.safetensors", "--to", tmp_path / "m.onnx")
    assert rc == 0 and "its ticket does not say by which mean and scale" in out
    assert not onnx.load(str(tmp_path / "m.onnx")).metadata_props
    raw = {**before, "inputs": json.dumps({"mean": [], "std": [], "class_names": []})}
    save_ticket(ticket.params, ticket.mask, raw, tmp_path / "raw.safetensors")
    assert (
        "as the data set gave them: they were not standardised"
        in exported(tmp_path / "raw.safetensors", "--to", tmp_path / "m.pt")[1]
    )


def test_the_command_times_dense_against_small(run_folder, ticket_command, tmp_path):
    rc, out, _ = ticket_command("export", run_folder, "--to", tmp_path / "m.pt", "--compact")
    assert rc == 0 and "small / dense" in out and "batch of 64" in out


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_compacted_state_dict_and_its_kept_channels_make_the_network_again(ending, run_folder, exported, tmp_path, capsys):
    trained, file = load_network(run_folder, [CONF]), tmp_path / f"model.{ending}"
    rc, out, _ = exported(run_folder, "--to", file, "--compact")
    assert rc == 0 and "parameters of" in out
    if ending == "pt":
        state, kept = torch.load(file, weights_only=True), json.loads((tmp_path / "model.kept.json").read_text())
    else:
        with safe_open(file, "pt") as opened:
            state, kept = load_file(file), json.loads(opened.metadata()["kept"])
    small = resize(trained.net, kept)
    small.load_state_dict(state)
    x = inputs(3, 1, 8, 8)
    torch.testing.assert_close(outputs(small, x), outputs(trained.net, x), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in trained.net.parameters())


def test_a_folder_is_its_trained_network_and_a_ticket_its_weights(run_folder, equal):
    trained = load_state(run_folder / "state" / "state.safetensors").server
    ticket = load_ticket(run_folder)
    assert equal(dict(load_network(run_folder, [CONF]).net.state_dict()), trained.params)
    assert equal(dict(load_network(ticket.path, [CONF]).net.state_dict()), ticket.params)
    assert not equal(trained.params, ticket.params)


def test_a_dense_state_dict_is_plain(run_folder, exported, tmp_path):
    assert exported(run_folder, "--to", tmp_path / "m.pt")[0] == 0
    assert exported(run_folder, "--to", tmp_path / "m.safetensors")[0] == 0
    plain = torch.load(tmp_path / "m.pt", weights_only=True)
    assert type(plain) is dict and all(torch.equal(plain[name], t) for name, t in load_file(tmp_path / "m.safetensors").items())
    assert not (tmp_path / "m.kept.json").exists()


def test_a_network_with_batchnorm_and_residuals_goes_to_onnx(tmp_path):
    net = resnet20((3, 8, 8), 10, norm="batch").eval()
    mask = {"stage1.0.conv1.weight": torch.ones(16, 16, 3, 3, dtype=torch.bool)}
    mask["stage1.0.conv1.weight"][:8] = False
    network = Network(net, mask, torch.zeros(1, 3, 8, 8)).smaller()
    export(network, tmp_path / "m.onnx")
    x = inputs(2, 3, 8, 8)
    torch.testing.assert_close(onnx_outputs(tmp_path / "m.onnx", x), outputs(network.net, x), rtol=1e-4, atol=1e-5)


# --- what is refused -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_said_in_one_line(run_folder, exported, tmp_path, monkeypatch):
    for words, said in (
        (("--to", tmp_path / "m.h5"), "the ending says the format, choose one of .onnx, .safetensors, .pt"),
        (("--to", run_folder / "run.json" / "m.pt"), "cannot write"),
    ):
        rc, _, err = exported(run_folder, *words)
        assert rc == 1 and said in err and err.count("\n") == 1
    rc, _, err = exported(tmp_path / "nothing", "--to", tmp_path / "m.pt")
    assert rc == 1 and "there is no ticket" in err
    monkeypatch.setitem(sys.modules, "onnx", None)
    rc, _, err = exported(run_folder, "--to", tmp_path / "m.onnx")
    assert rc == 1 and "pip install 'fedprune[onnx]'" in err


def rewritten(run_folder: Path, **network: object) -> Path:
    """The run's ticket with another description of its network."""
    ticket = load_ticket(run_folder)
    text = json.dumps(json.loads(ticket.provenance["network"]) | network)
    path = run_folder / "other.safetensors"
    save_ticket(ticket.params, ticket.mask, {**ticket.provenance, "network": text}, path)
    return path


def test_what_a_file_names_is_never_called(run_folder, tmp_path):
    evil = {"_target_": "pathlib.Path.touch", "_args_": [str(tmp_path / "trace")]}
    ours = {"_target_": "fedprune.models.cnn.cnn_fedavg"}
    for config in (evil, {**ours, "more": evil}, {**ours, "more": [1, {"deep": evil}]}):
        with pytest.raises(DataError, match=r"pathlib.Path.touch in it, and .* What a file names is not called by itself"):
            load_network(rewritten(run_folder, config=config), [CONF])
    with pytest.raises(DataError, match="model.norm has an interpolation"):
        load_network(rewritten(run_folder, config={**ours, "norm": "${oc.env:HOME}"}), [CONF])
    for option in ("../model/cnn_fedavg", "os.system", "nothing"):
        with pytest.raises(
            DataError, match="is not known here; for a model of your own give --model MODULE.CLASS, or --config-dir DIR"
        ):
            load_network(rewritten(run_folder, option=option), [CONF])
    assert not (tmp_path / "trace").exists()


def test_another_network_or_none_is_named(run_folder):
    config = {"_target_": "fedprune.models.lenet.lenet_300_100"}
    with pytest.raises(DataError, match="is not of the network that model=lenet_300_100 is here"):
        load_network(rewritten(run_folder, option="lenet_300_100", config=config), [CONF])
    with pytest.raises(DataError, match="its model names no _target_"):
        load_network(rewritten(run_folder, config={}), [CONF])
    with pytest.raises(DataError, match="does not say which network it is of"):
        load_network(rewritten(run_folder, shape=None), [CONF])


def test_a_folder_of_ones_own_hides_no_model_of_the_package(run_folder, equal, tmp_path):
    (tmp_path / "model").mkdir()
    there = load_network(run_folder, [tmp_path, CONF]).net.state_dict()
    assert equal(dict(there), dict(load_network(run_folder, [CONF]).net.state_dict()))


def test_a_model_of_ones_own_is_found_in_its_folder(run_folder, exported, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "mine.yaml").write_text((CONF / "model" / "cnn_fedavg.yaml").read_text())
    path = rewritten(run_folder, option="mine")
    assert exported(path, "--to", tmp_path / "m.pt")[0] == 1
    assert exported(path, "--to", tmp_path / "m.pt", "--config-dir", tmp_path / "mine")[0] == 0


def test_a_class_that_the_user_names_is_made(run_folder, exported, tmp_path, equal):
    ours = "fedprune.models.cnn.cnn_fedavg"
    path = rewritten(run_folder, option="lenet_300_100", config={"_target_": ours})
    rc, _, err = exported(path, "--to", tmp_path / "m.pt")
    assert rc == 1 and f"type --model {ours}" in err
    assert exported(path, "--to", tmp_path / "m.pt", "--model", ours)[0] == 0
    assert equal(torch.load(tmp_path / "m.pt"), dict(load_network(path, [CONF], [ours]).net.state_dict()))
    rc, _, err = exported(path, "--to", tmp_path / "m.pt", "--model", "os.system")
    assert rc == 1 and f"--model os.system: {path} names {ours}: type these" in err


OWN = "_target_: helpers.user_networks.Strided\nstrides: [1, 2]\nmake:\n  _target_: torch.nn.Tanh\n  _partial_: true\n"


def test_the_whole_config_makes_the_network_again_lists_dicts_and_added_options(command, folder, exported, tmp_path):
    """Right: strides 2 then 1, a sigmoid, a width of 5 and a Tanh, as in the run; none of it is what the yaml or the function
    would give by itself (strides 1 then 2, ReLU, width 4, Identity)."""
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "net-1.yaml").write_text("defaults:\n- base\n- _self_\n")
    (tmp_path / "mine" / "model" / "base.yaml").write_text(OWN)
    changed = ("model.strides=[2,1]", "+model.act=sigmoid", "+model.block={width: 5}")
    result = command("--config-dir", str(tmp_path / "mine"), *TINY, "model=net-1", *changed, "density=0.5")
    assert result.rc == 0, result.text
    net = load_network(folder(), [tmp_path / "mine", CONF]).net
    assert net[0].stride == (2, 2) and net[2].stride == (1, 1) and net[2].out_channels == 5
    assert isinstance(net[1], nn.Sigmoid) and isinstance(net[3], nn.Tanh)
    assert exported(folder(), "--to", tmp_path / "m.pt", "--config-dir", tmp_path / "mine")[0] == 0
    rc, _, err = exported(folder(), "--to", tmp_path / "m.pt")
    assert rc == 1 and "give --model MODULE.CLASS, or --config-dir DIR" in err
    (tmp_path / "mine" / "model" / "base.yaml").write_text(OWN.replace("helpers.user_networks.Strided", "nowhere.Strided"))
    rc, _, err = exported(folder(), "--to", tmp_path / "m.pt", "--config-dir", tmp_path / "mine")
    assert rc == 1 and "model is helpers.user_networks.Strided in it, and nowhere.Strided in model/net-1.yaml here" in err


# --- torch.nn.utils.prune --------------------------------------------------------------------------------------------------


def pruned() -> nn.Module:
    """A network that was pruned by torch's own tool, and trained on: what is masked in it is not zero any more."""
    net = cnn_small((1, 16, 16), 4)
    prune.l1_unstructured(net.conv2, "weight", amount=0.5)
    prune.ln_structured(net.fc1, "weight", amount=0.3, n=2, dim=0)
    with torch.no_grad():
        net.conv2.weight_orig += 0.1
    return net


def test_a_checkpoint_of_torchs_prune_gives_the_network_that_it_computes():
    theirs = pruned()
    subnet = from_torch_prune(theirs.state_dict())
    ours = cnn_small((1, 16, 16), 4)
    ours.load_state_dict(subnet.params)
    x = inputs(2, 1, 16, 16)
    assert torch.equal(outputs(ours, x), outputs(theirs, x))
    assert set(subnet.mask) == {"conv2.weight", "fc1.weight"}
    assert all(not subnet.params[name][~alive].any() for name, alive in subnet.mask.items())


def test_a_subnet_goes_to_torchs_prune_and_back():
    subnet = from_torch_prune(pruned().state_dict())
    state, theirs = to_torch_prune(subnet), cnn_small((1, 16, 16), 4)
    prune.identity(theirs.conv2, "weight")
    prune.identity(theirs.fc1, "weight")
    theirs.load_state_dict(state)  # strict: every name is there, and no other
    again = from_torch_prune(theirs.state_dict())
    for one, other in ((subnet.params, again.params), (subnet.mask, again.mask)):
        assert set(one) == set(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(("there", "missing"), [("w_mask", "w_orig"), ("w_orig", "w_mask")])
def test_half_of_a_pair_is_named(there, missing):
    with pytest.raises(DataError, match=f"{there} without {missing}"):
        from_torch_prune({there: torch.ones(2)})


def test_what_was_never_pruned_passes_as_it_is():
    subnet = from_torch_prune({"fc.weight": torch.ones(2, 2), "fc.bias": torch.zeros(2)})
    assert subnet.mask == {} and list(subnet.params) == ["fc.weight", "fc.bias"]
    assert list(to_torch_prune(Subnet(subnet.params, {}))) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    "mask", [torch.full((2,), 0.5), torch.ones(3), torch.tensor([1.0, np.nan])], ids=["half", "shape", "nan"]
)
def test_a_mask_that_is_none_is_named(mask):
    with pytest.raises(DataError, match="w_mask is not a mask of w_orig"):
        from_torch_prune({"w_orig": torch.ones(2), "w_mask": mask})


def test_an_imported_subnet_is_a_ticket(tmp_path, tiny):
    subnet = from_torch_prune(pruned().state_dict())
    save_ticket(subnet.params, subnet.mask, {"name": "imported", "axes": "{}"}, tmp_path / "t.safetensors")
    assert load_ticket(tmp_path / "t.safetensors").density < 0.7
    with pytest.raises(
        ConfigError, match=r"fc1.weight is 50x20 in the ticket .*: choose the model and data set that it comes from"
    ):
        tiny(f"ticket.path={tmp_path / 't.safetensors'}")
