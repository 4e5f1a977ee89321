"""The experiment that fine-tunes a trained network: its stem stays as it is in the file, and the rest becomes small."""

from __future__ import annotations

import json

import pytest
import torch

from fedprune.config import CONF
from fedprune.models.cnn import cnn_fedavg
from fedprune.ticket.export import load_network
from fedprune.ticket.measure import forward_flops


def test_a_trained_network_becomes_small_and_its_stem_stays(command, folder):
    torch.manual_seed(1)
    before = cnn_fedavg((1, 8, 8), 10)
    torch.save({"state_dict": {f"net.{name}": tensor for name, tensor in before.state_dict().items()}}, "pretrained.pt")
    few = ("rounds=1", "federated.clients=4", "federated.cohort=2", "logger=none", "executor=serial")
    result = command("+experiment=pretrained/finetune", *few)
    assert result.rc == 0, result.text
    assert "names without 'net.'" in result.text and "from the weights in pretrained.pt" in result.out
    run = folder("finetune")
    after = load_network(run, [CONF])
    assert torch.equal(after.net.conv1.weight, before.conv1.weight) and torch.equal(after.net.conv1.bias, before.conv1.bias)
    assert not torch.equal(after.net.fc1.weight, before.fc1.weight)
    assert after.mask["conv2.weight"].any((1, 2, 3)).sum() % 8 == 0
    share = json.loads((run / "summary.json").read_text())["metrics"]["density/flops"]
    pytest.importorskip("torch_pruning")
    small = after.smaller()
    real = forward_flops(small.net, after.example) / forward_flops(after.net, after.example)
    assert abs(share - 0.3) < 0.06 and share == pytest.approx(real)
